"""Vectors survive their file, and controls have the norm they control for."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.engine.moments import Moments
from pipeline.engine.vectors import SteeringVectors, VectorOrigin, random_controls
from pipeline.errors import ActivationError, WarehouseError

ORIGIN = VectorOrigin("some-model", "kindness", "resid_post", "answer_letter", "caa")


def make(differences, norms=None):
    norms = np.linalg.norm(differences, axis=-1) if norms is None else norms
    return SteeringVectors.from_moments(ORIGIN, Moments.of(differences), Moments.of(norms))


@pytest.fixture
def vectors():
    return make(np.random.default_rng(0).normal(1, 1, (20, 3, 8)))


def test_written_equals_read(vectors, tmp_path):
    vectors.save(tmp_path / "v.safetensors")
    read = SteeringVectors.load(tmp_path / "v.safetensors")
    assert read.origin == vectors.origin
    assert read.num_pairs == vectors.num_pairs
    for name in ("vectors", "residual_norm", "standard_error", "coherence"):
        np.testing.assert_array_equal(getattr(read, name), getattr(vectors, name))


def test_a_file_that_is_no_vectors_is_refused(tmp_path):
    (tmp_path / "v.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(WarehouseError, match="no steering vectors"):
        SteeringVectors.load(tmp_path / "v.safetensors")


def test_coherence_is_one_for_equal_differences_and_small_for_noise():
    same = make(np.tile(np.arange(1.0, 9.0), (10, 3, 1)))
    noise = make(np.random.default_rng(1).normal(0, 1, (400, 3, 64)))
    np.testing.assert_allclose(same.coherence, 1.0)
    np.testing.assert_allclose(noise.coherence, 1 / 400, rtol=0.5)


def test_the_unit_of_residual_norm_has_that_norm(vectors):
    np.testing.assert_allclose(np.linalg.norm(vectors.unit("residual_norm"), axis=-1), vectors.residual_norm, rtol=1e-5)
    np.testing.assert_array_equal(vectors.unit("raw"), vectors.vectors)


def test_controls_have_the_vectors_norm_and_depend_on_seed_and_label_alone(vectors):
    controls = random_controls(vectors.vectors, 3, 0, "m/c")
    np.testing.assert_allclose(np.linalg.norm(controls, axis=-1), np.tile(vectors.norm, (3, 1)), rtol=1e-5)
    np.testing.assert_array_equal(controls, random_controls(vectors.vectors, 3, 0, "m/c"))
    np.testing.assert_array_equal(controls[:2], random_controls(vectors.vectors, 2, 0, "m/c"))
    assert not np.allclose(controls, random_controls(vectors.vectors, 3, 1, "m/c"))
    assert not np.allclose(controls, random_controls(vectors.vectors, 3, 0, "m/d"))


def test_a_vector_that_is_not_finite_names_its_layer():
    differences = np.ones((4, 3, 8))
    differences[2, 1, 5] = np.nan
    with pytest.raises(ActivationError, match=r"'some-model', concept 'kindness': the vector at layer 1"):
        make(differences)
