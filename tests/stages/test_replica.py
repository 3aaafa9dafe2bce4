"""A model of one rank in an actor: it loads beside what comes before its first batch, and fails there if it must."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from pipeline.engine.extract import read_activations
from pipeline.engine.model import load_model
from pipeline.engine.moments import Moments
from pipeline.engine.sweep import SweepGrid
from pipeline.engine.tokens import PromptEncoder, load_tokenizer
from pipeline.engine.vectors import SteeringVectors, VectorOrigin
from pipeline.errors import CheckpointError
from pipeline.prompts import Prompt
from pipeline.stages import replica as replica_module
from pipeline.stages.gang import ReplicaSpec
from pipeline.stages.prompt_blocks import prompt_blocks
from pipeline.stages.replica import ExtractActivations, ScorePrompts, ScoreSpec
from pipeline.stages.tensors import to_array
from pipeline.stages.tokenise import TokenisePairs, TokenisePrompts, TokeniseSpec

PROMPTS = [
    Prompt("kind", "train", f"p{i}", f"Would you {'so ' * i}do it?", ("yes", "no"), "AB"[i % 2]) for i in range(3)
]


def replica(checkpoint) -> ExtractActivations:
    return ExtractActivations(ReplicaSpec("tiny", checkpoint, "float32", "cpu"), "resid_post")


def tokenised(checkpoint):
    (block,) = prompt_blocks(PROMPTS, 8)
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


def test_the_tokenizer_is_read_once_the_model_is_loaded(dense_checkpoint, tmp_path, monkeypatch):
    """Not beside it: two threads that import transformers at once can fail (`cannot import name`)."""
    model = load_model(dense_checkpoint)
    zeros = np.zeros((model.num_layers, model.hidden_size), dtype=np.float32)
    origin = VectorOrigin("tiny", "kind", "resid_post", "answer_letter", "caa")
    moments = Moments.of(zeros[None]), Moments.of(zeros[None, :, 0])
    file = tmp_path / "kind.safetensors"
    SteeringVectors.from_moments(origin, *moments).save(file)
    grid = SweepGrid((1,), (0.0, 1.0), "resid_post", "all")
    actor = ScorePrompts(
        ReplicaSpec("tiny", dense_checkpoint, "float32", "cpu"), ScoreSpec(grid, {"kind": file}, "(A", "raw", 0, 0)
    )
    loaded = []

    def tokenizer_of(checkpoint):
        assert actor._loading is not None
        loaded.append(actor._loading.done())
        return load_tokenizer(checkpoint)

    monkeypatch.setattr(replica_module, "load_tokenizer", tokenizer_of)
    (block,) = prompt_blocks(PROMPTS, 8)
    actor(TokenisePrompts(TokeniseSpec(dense_checkpoint, "(A", "answer_letter", 256))(block))
    assert loaded == [True]


def test_a_model_that_cannot_be_loaded_fails_at_its_first_batch_and_not_before(dense_checkpoint, tmp_path):
    broken = shutil.copytree(dense_checkpoint, tmp_path / "broken")
    for file in broken.glob("*.safetensors"):
        file.write_bytes(b"no weights")
    block = tokenised(broken)
    actor = replica(broken)
    with pytest.raises(CheckpointError):
        actor(block)
