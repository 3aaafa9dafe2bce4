"""Configs and workloads for planning tests: made up, and the genuine Qwen3 configs where they are at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.planning.lengths import PromptLengths
from pipeline.planning.workload import ModelSizes, Workload

SHARED = Path(__file__).resolve().parents[3] / "shared" / "qwen3"
QWEN3 = ("0.6B", "1.7B", "4B", "8B", "14B", "32B", "30B-A3B", "235B-A22B")

DENSE: dict[str, Any] = {
    "model_type": "qwen3",
    "num_hidden_layers": 6,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
MOE: dict[str, Any] = {
    **DENSE,
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
}


def genuine(name: str) -> dict[str, Any]:
    file = SHARED / "configs" / f"Qwen3-{name}.json"
    if not file.is_file():
        pytest.skip("genuine Qwen3 configs are not at hand")
    return json.loads(file.read_text())


def sizes_of(config: dict[str, Any]) -> ModelSizes:
    return ModelSizes.of(config, "config.json")


def make_work(
    num_layers: int,
    test: tuple[int, ...] = (64,) * 4,
    train: tuple[int, ...] = (65,) * 8,
    layers: tuple[int, ...] | None = None,
    **changes: Any,
) -> Workload:
    values = {"num_branches": 2, "site": "resid_post", "batch_size": 32, "token_budget": 0, **changes}
    tested = tuple(range(num_layers // 3, num_layers)) if layers is None else layers
    suffix = tuple(min(8, length) for length in test)
    return Workload(PromptLengths(train, test, suffix, 1, True), num_layers, tested, **values)
