"""Through the `steering-vectors` library: the same tensors, and the same logits as the engine's own steering."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from pipeline.engine.stream import steering
from pipeline.errors import UserError
from pipeline.exports.command import export
from pipeline.exports.from_warehouse import find_vectors
from pipeline.exports.options import AddSite, ExportFormat
from pipeline.exports.placement import place
from pipeline.exports.steering_vector import FIRST_BLOCK, INSTALL, to_steering_vector
from tests.exports.vector_warehouse import HIDDEN, NUM_LAYERS, drawn_vectors, publish_run

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])


@pytest.fixture
def library():
    return pytest.importorskip(
        "steering_vectors", reason=f"the library steering-vectors is not installed ({INSTALL})", exc_type=ImportError
    )


@pytest.fixture(scope="module")
def mild(tmp_path_factory):
    """As `warehouse`, with vectors of a size that a model survives, read at each of the two sites."""
    drawn = np.random.default_rng(3).normal(size=(NUM_LAYERS, HIDDEN)).astype(np.float32)
    root = tmp_path_factory.mktemp("mild") / "warehouse"
    publish_run(root, run="post", protocol="caa", vectors=drawn)
    publish_run(root, run="pre", protocol="published", vectors=drawn)
    return root, drawn


def loaded(file):
    """As the README loads it."""
    from safetensors.torch import load_file
    from steering_vectors import SteeringVector

    return SteeringVector({int(layer): vector for layer, vector in load_file(file).items()})


def logits(model):
    with torch.inference_mode():
        return model.hf(input_ids=IDS, use_cache=False).logits


def test_written_equals_read_and_equals_what_is_made_in_memory(library, warehouse, tmp_path):
    export(warehouse, "tiny", "kind", ExportFormat.steering_vectors, tmp_path / "v.safetensors", layers="all")
    made = to_steering_vector(place(find_vectors(warehouse, "tiny", "kind", layers="all"), None, FIRST_BLOCK, "it"))
    for vector in (loaded(tmp_path / "v.safetensors"), made):
        assert isinstance(vector, library.SteeringVector)
        assert vector.layer_type == "decoder_block"
        assert sorted(vector.layer_activations) == list(range(NUM_LAYERS))
        for layer, activation in vector.layer_activations.items():
            assert activation.dtype == torch.float32
            assert activation.numpy().tobytes() == drawn_vectors()[layer].tobytes()


@pytest.mark.parametrize("strength", [1.0, -2.0])
@pytest.mark.parametrize("layer", range(NUM_LAYERS))
def test_applying_it_gives_the_engines_logits(library, model, mild, tmp_path, layer, strength):
    root, drawn = mild
    export(root, "tiny", "kind", ExportFormat.steering_vectors, tmp_path / "v", run="post", layers=str(layer))
    with steering(model, drawn[layer], layer, strength):
        ours = logits(model)
    with loaded(tmp_path / "v").apply(model.hf, multiplier=strength):
        theirs = logits(model)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0)
    assert not torch.allclose(ours, logits(model))


@pytest.mark.parametrize("layer", range(1, NUM_LAYERS))
def test_vectors_read_before_a_block_are_added_there(library, model, mild, tmp_path, layer):
    root, drawn = mild
    for site in AddSite:
        export(
            root, "tiny", "kind", ExportFormat.steering_vectors, tmp_path / "v", run="pre", layers=str(layer), site=site
        )
        with steering(model, drawn[layer], layer, 1.0, site.value):
            ours = logits(model)
        with loaded(tmp_path / "v").apply(model.hf):
            theirs = logits(model)
        torch.testing.assert_close(theirs, ours, rtol=0, atol=0)


def test_the_embedding_is_refused(mild, tmp_path):
    with pytest.raises(UserError, match=r"steering-vectors library cannot add at resid_pre\[0\].*resid_pre\[1\]"):
        export(mild[0], "tiny", "kind", ExportFormat.steering_vectors, tmp_path / "v", run="pre", layers="0")


@pytest.mark.skipif(importlib.util.find_spec("steering_vectors") is not None, reason="the library is installed")
def test_a_missing_library_says_how_to_install_it(warehouse):
    placed = place(find_vectors(warehouse, "tiny", "kind"), None, FIRST_BLOCK, "it")
    with pytest.raises(UserError, match="pip install --no-deps steering-vectors"):
        to_steering_vector(placed)
