"""A safetensors file: a tensor a layer, to the last bit, with what says what it is."""

from __future__ import annotations

import json

from safetensors import safe_open

from pipeline.exports.command import export
from pipeline.exports.options import ExportFormat
from tests.exports.vector_warehouse import NUM_LAYERS, drawn_vectors


def test_written_equals_read(warehouse, tmp_path):
    file = tmp_path / "v.safetensors"
    export(warehouse, "tiny", "kind", ExportFormat.safetensors, file, layers="all")
    drawn = drawn_vectors()
    with safe_open(str(file), framework="numpy") as opened:
        assert sorted(opened.keys()) == [f"layer.{layer}" for layer in range(NUM_LAYERS)]
        for layer in range(NUM_LAYERS):
            assert opened.get_tensor(f"layer.{layer}").tobytes() == drawn[layer].tobytes()
        metadata = opened.metadata()
    assert metadata["model"] == "tiny"
    assert metadata["concept"] == "kind"
    assert metadata["run"] == "one-12345678"
    assert metadata["site"] == "resid_post"
    assert metadata["read_position"] == "answer_letter"
    assert metadata["protocol"] == "caa"
    assert json.loads(metadata["layers"]) == list(range(NUM_LAYERS))
    assert json.loads(metadata["residual_norms"]) == [10.0, 11.0, 12.0, 13.0]
    assert len(json.loads(metadata["norms"])) == NUM_LAYERS
    assert json.loads(metadata["versions"]) == {"torch": "2.13.0"}
    assert metadata["commit"] == "abc"
