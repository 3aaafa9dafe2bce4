"""A model of one rank in an actor: it loads beside what comes before its first batch, and fails there if it must."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from pipeline.engine.extract import read_activations
from pipeline.engine.model import load_model
from pipeline.engine.sweep import SweepGrid
from pipeline.engine.tokens import PromptEncoder
from pipeline.engine.vectors import SteeringVectors, VectorOrigin
from pipeline.errors import CheckpointError
from pipeline.prompts import Prompt
from pipeline.stages import replica as replica_module
from pipeline.stages.gang import ReplicaSpec
from pipeline.stages.prompt_blocks import prompt_blocks
from pipeline.stages.replica import ExtractActivations, ScorePrompts, ScoreSpec
from pipeline.stages.tensors import to_array
from pipeline.stages.tokenise import TokenisePairs, TokenisePrompts, TokeniseSpec
from pipeline.warehouse.manifest import PartitionKey, Warehouse

PROMPTS = [
    Prompt("kind", "train", f"p{i}", f"Would you {'so ' * i}do it?", ("yes", "no"), "AB"[i % 2]) for i in range(3)
]


def replica(checkpoint) -> ExtractActivations:
    return ExtractActivations(ReplicaSpec("tiny", checkpoint, "float32", "cpu"), "resid_post")


def tokenised(checkpoint):
    (block,) = prompt_blocks(PROMPTS, len(PROMPTS), 8)
    return TokenisePairs(TokeniseSpec(checkpoint, "(A", "answer_letter", 256))(block)


def test_a_block_of_pairs_gives_the_engines_activations(dense_checkpoint):
    rows = replica(dense_checkpoint)(tokenised(dense_checkpoint))
    model = load_model(dense_checkpoint)
    encoder = PromptEncoder(model.tokenizer)
    answers = [(p, side, getattr(p, side)) for p in PROMPTS for side in ("matching", "other")]
    expected = read_activations(model, [encoder.answered(p.text, letter) for p, _, letter in answers], "resid_post")
    assert list(zip(rows["pair"].to_pylist(), rows["side"].to_pylist(), strict=True)) == [
        (p.id, side) for p, side, _ in answers
    ]
    np.testing.assert_allclose(to_array(rows["activation"]), expected, atol=1e-5)


def test_a_model_that_cannot_be_loaded_fails_at_its_first_batch_and_not_before(dense_checkpoint, tmp_path):
    broken = shutil.copytree(dense_checkpoint, tmp_path / "broken")
    for file in broken.glob("*.safetensors"):
        file.write_bytes(b"no weights")
    block = tokenised(broken)
    actor = replica(broken)
    with pytest.raises(CheckpointError):
        actor(block)


def test_a_replica_of_one_rank_imports_the_tokenizer_in_no_second_thread(dense_checkpoint, tmp_path, monkeypatch):
    def not_here(checkpoint):
        raise AssertionError("the loading thread imports transformers too: the import may fail")

    monkeypatch.setattr(replica_module, "load_tokenizer", not_here)
    model = load_model(dense_checkpoint)
    ones = np.ones(model.num_layers)
    origin = VectorOrigin("tiny", "kind", "resid_post", "answer_letter", "caa")
    vectors = SteeringVectors(origin, np.ones((model.num_layers, model.hidden_size), np.float32), ones, ones, ones, 3)
    warehouse = Warehouse.create(tmp_path / "warehouse")
    key = PartitionKey("run-1", "extract", "tiny", "kind")
    file = warehouse.add_file("", key, vectors.save, ".safetensors")
    grid = SweepGrid((1,), (-1.0, 0.0, 1.0), "resid_post", "all")
    score = ScoreSpec(grid, warehouse.root, {"kind": file}, "(A", "raw", controls=0, seed=0)
    (block,) = prompt_blocks(PROMPTS, len(PROMPTS), 8)
    tokens = TokenisePrompts(TokeniseSpec(dense_checkpoint, "(A", "answer_letter", 256))(block)
    rows = ScorePrompts(ReplicaSpec("tiny", dense_checkpoint, "float32", "cpu"), score)(tokens)
    assert len(rows) == len(PROMPTS) * 3
