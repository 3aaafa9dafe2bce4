"""The GPU check, small and on the CPU: the same path as on a GPU, and a clear word where there is none."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_check
from pipeline.engine.architecture import architecture_facts
from tests.planning.conftest import SHARED

SMALL = ["--tiny", "--device", "cpu", "--prompts", "10", "--tokens", "24", "--naive-prompts", "5", "--repeats", "1"]
PUBLISHED = {"8b": "Qwen3-8B", "32b": "Qwen3-32B", "30b-a3b": "Qwen3-30B-A3B"}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, dict[str, Any]]:
    """Exit code, what was printed, and the object in its last line."""
    code = gpu_check.main([*SMALL, *arguments])
    printed = capsys.readouterr().out
    return code, printed, json.loads(printed.splitlines()[-1])


@pytest.mark.parametrize("size", ["8b", "30b-a3b"])
@pytest.mark.parametrize("positions", ["all", "suffix", "last"])
def test_the_tiny_size_agrees_with_the_reference_in_float32(capsys, size, positions):
    code, printed, found = run(capsys, "--model", size, "--positions", positions, "--dtype", "float32")
    assert code == 0
    assert "They agree." in printed
    agreement = found["agreement"]
    assert agreement["off"] < 1e-4
    assert agreement["largest_delta"] > 0.05  # there is an effect to agree on
    assert agreement["num_prompts"] == 5
    assert found["num_layers_swept"] == 5  # layers 1 to 5 of 6
    for stage in ("extract", "sweep"):
        row = found[stage]
        assert row["tflops"] == pytest.approx(1000 * row["pflop"] / row["seconds"])
        assert row["share_of_matrix_product"] == pytest.approx(row["tflops"] / found["matrix_tflops"])
    assert found["extract"]["num_tokens"] == 2 * (found["sweep"]["num_tokens"] + 10)


@pytest.mark.parametrize("size", ["8b", "30b-a3b"])
def test_in_bf16_it_agrees_to_what_that_dtype_allows(capsys, size):
    code, _, found = run(capsys, "--model", size, "--controls", "1")
    assert code == 0
    assert found["num_directions"] == 2
    assert 1e-5 < found["agreement"]["off"] < found["agreement"]["allowed"]


def test_a_sweep_that_steers_one_block_too_late_does_not_agree(capsys, monkeypatch):
    real = gpu_check.sweep

    def late(model, prompts, directions, answer_ids, grid):
        moved = replace(grid, layers=tuple(min(layer + 1, model.num_layers - 1) for layer in grid.layers[:-1]))
        scores = real(model, prompts, directions, answer_ids, moved)
        return replace(scores, logits=scores.logits[:, :, [*range(len(moved.layers)), -1]], logsumexp=scores.logsumexp)

    monkeypatch.setattr(gpu_check, "sweep", late)
    code, printed, found = run(capsys, "--dtype", "bfloat16")
    assert code == 1
    assert "THEY DO NOT AGREE" in printed
    assert not found["agreement"]["agrees"]


def test_scores_that_are_no_numbers_do_not_agree():
    agreement = gpu_check.Agreement(1, math.nan, 0.0, 0.0, 1.0, 0.05)
    assert not agreement.agrees
    assert replace(agreement, off=0.01).agrees


def test_the_result_is_written_with_its_command(capsys, tmp_path: Path):
    code, _, found = run(capsys, "--dtype", "float32", "--output", str(tmp_path / "results"))
    assert code == 0
    (file,) = (tmp_path / "results").iterdir()
    text = file.read_text()
    assert file.name.startswith("gpu_check_8b-tiny_all_")
    assert "python -m benchmarks.gpu_check --tiny --device cpu" in text
    assert json.loads(text.splitlines()[-1]) == found


def test_without_a_cuda_device_it_says_that_it_skips(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("skipped: torch sees no CUDA device")
    assert json.loads(lines[-1]) == {"benchmark": "gpu_check", "skipped": "torch sees no CUDA device"}


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_sizes_are_the_published_ones(size):
    file = SHARED / "configs" / f"{PUBLISHED[size]}.json"
    if not file.is_file():
        pytest.skip("genuine Qwen3 configs are not at hand")
    published = json.loads(file.read_text())
    assert {key: published[key] for key in gpu_check.SIZES[size]} == gpu_check.SIZES[size]
    assert architecture_facts(gpu_check.SIZES[size]) == architecture_facts(published)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_on_a_gpu_the_tiny_size_agrees_in_bf16(capsys):
    assert gpu_check.main([*SMALL, "--device", "cuda"]) == 0
