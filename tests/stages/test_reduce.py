"""The reducer gives the mean difference whatever the cut into blocks, lone sides included."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.engine.vectors import VectorOrigin
from pipeline.schemas import activation_rows
from pipeline.stages.reduce import VectorReducer, partial_moments
from pipeline.stages.tensors import to_array, to_column

LAYERS, HIDDEN, PAIRS = 3, 5, 12


def origin(concept):
    return VectorOrigin("m", concept, "resid_post", "answer_letter", "caa")


@pytest.fixture(scope="module")
def activations():
    return np.random.default_rng(0).normal(2, 3, (2, PAIRS, 2, LAYERS, HIDDEN)).astype(np.float32)


@pytest.fixture(scope="module")
def rows(activations):
    """Activation rows of two concepts, whose pairs take turns."""
    keys, values = [], []
    for pair in range(PAIRS):
        for c, concept in enumerate(("kind", "bold")):
            for s, side in enumerate(("matching", "other")):
                keys.append((concept, f"p{pair}", side))
                values.append(activations[c, pair, s])
    columns = [*(pa.array(list(k)) for k in zip(*keys, strict=True)), to_column(np.stack(values))]
    return pa.Table.from_arrays(columns, schema=activation_rows(LAYERS, HIDDEN))


@pytest.mark.parametrize("block", [1, 2, 3, 4, 7, 48])
def test_any_cut_into_blocks_gives_the_mean_difference(rows, activations, block):
    reducer = VectorReducer()
    for start in range(0, rows.num_rows, block):
        reducer.add(partial_moments(rows.slice(start, block)))
    for c, concept in enumerate(("kind", "bold")):
        differences = activations[c, :, 0].astype(np.float64) - activations[c, :, 1]
        vectors = reducer.vectors(origin(concept))
        assert reducer.num_pairs(concept) == vectors.num_pairs == PAIRS
        np.testing.assert_allclose(vectors.vectors, differences.mean(axis=0), rtol=1e-6)
        norms = np.linalg.norm(activations[c].astype(np.float64), axis=-1).mean(axis=(0, 1))
        np.testing.assert_allclose(vectors.residual_norm, norms, rtol=1e-12)
        error = np.linalg.norm(differences.std(axis=0, ddof=1), axis=-1) / np.sqrt(PAIRS)
        np.testing.assert_allclose(vectors.standard_error, error, rtol=1e-9)


def test_a_block_becomes_one_row_a_concept(rows):
    moments = partial_moments(rows)
    assert sorted(moments.column("concept").to_pylist()) == ["bold", "kind"]
    assert moments.column("count").to_pylist() == [PAIRS, PAIRS]


def test_a_pair_with_one_side_is_noticed(rows):
    reducer = VectorReducer()
    reducer.add(partial_moments(rows.slice(0, 5)))
    with pytest.raises(AssertionError, match="one side only"):
        reducer.vectors(origin("kind"))


def test_missing_columns_name_the_stage():
    with pytest.raises(AssertionError, match=r"stage partial_moments needs columns \['activation'\]"):
        partial_moments(pa.table({"concept": ["a"], "pair": ["p"], "side": ["other"]}))


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2), (0, 3, 2)])
def test_arrays_survive_arrow_and_parquet(shape, tmp_path):
    import pyarrow.parquet as pq

    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    table = pa.table({"x": to_column(array)})
    np.testing.assert_array_equal(to_array(table.column("x")), array)
    pq.write_table(table, tmp_path / "x.parquet")
    np.testing.assert_array_equal(to_array(pq.read_table(tmp_path / "x.parquet").column("x")), array)
    if len(array):
        np.testing.assert_array_equal(to_array(table.slice(1).column("x")), array[1:])
