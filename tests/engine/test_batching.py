"""Groups stay within the budget, and a run that meets the end of memory goes on with less."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.engine import batching
from pipeline.engine.batching import Budget, is_out_of_memory, work_through
from pipeline.errors import ReplicaError

OUT_OF_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")


def run(model, costs, budget, work=lambda group, budget: None, seen=None):
    def keep(group, budget):
        work(group, budget)
        if seen is not None:
            seen.append((list(group), budget))

    work_through(model, range(len(costs)), budget, lambda i, _: costs[i], keep)


def test_groups_are_consecutive_and_stay_within_both_limits(model):
    seen = []
    run(model, [(10, 1), (10, 1), (25, 1), (50, 1), (5, 6), (5, 6)], Budget(30, 2), seen=seen)
    assert [group for group, _ in seen] == [[0, 1], [2], [3], [4], [5]]  # the last two by their trunks of 4 * 2


def test_memory_that_runs_out_halves_the_budget_and_repeats_nothing(model):
    seen = []

    def work(group, budget):
        if budget.held > 30:
            raise OUT_OF_MEMORY

    run(model, [(10, 1)] * 5, Budget(80, 8), work, seen)
    assert [group for group, _ in seen] == [[0, 1], [2, 3], [4]]
    assert seen[0][1] == Budget(20, 2)


def test_memory_that_is_too_small_for_one_row_is_an_error_with_advice(model):
    def work(group, budget):
        raise OUT_OF_MEMORY

    with pytest.raises(ReplicaError, match="offload"):
        run(model, [(10, 1)], Budget(80, 8), work)


def test_other_errors_and_those_of_a_rank_among_others_pass_through(model):
    def work(group, budget):
        raise error

    for error, among_others in ((RuntimeError("something else"), None), (OUT_OF_MEMORY, object())):
        with pytest.raises(RuntimeError, match=str(error)[:10].replace("[", r"\[")):
            run(replace(model, ranks=among_others), [(10, 1)], Budget(80, 8), work)


def test_what_torch_raises_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(ValueError("wrong"))


def test_the_budget_follows_free_memory_and_what_the_study_says(model, monkeypatch):
    ample = Budget.of(model)
    assert ample == Budget(batching.CPU_HELD, batching.CPU_CHUNK)
    assert Budget.of(model, 50).held == 50
    monkeypatch.setattr(batching, "CPU_SHARE", 1e-9)
    poor = Budget.of(model)
    assert poor.held < ample.held
    assert poor.chunk < ample.chunk
