"""Verdicts by their rules, on made-up models and on a planted warehouse."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import QueryError
from pipeline.statistics.cells import load_cells
from pipeline.statistics.factors import ModelFigures, factor_effects, load_models
from pipeline.statistics.tables import STATISTICS, fetch_statistics
from pipeline.statistics.verdicts import (
    NOT_SUPPORTED,
    NOT_TESTABLE,
    SUPPORTED,
    distilled_over_full_rl,
    method_over_architecture_over_size,
    mixture_of_experts_is_neutral,
    models_answer_with_a_choice,
    most_steerable_without_position_bias,
    order_of_concepts,
    verdicts,
)
from pipeline.warehouse.manifest import Warehouse
from pipeline.warehouse.views import connect
from tests.warehouse.planted import (
    PlantedStudy,
    draw_logits,
    model_table,
    publish_one,
    publish_planted,
    publish_scores,
    run_table,
    score_table,
)

STRENGTHS = (-1.0, 0.0, 1.0)


def model(
    number: int, delta: float, method: str | None, architecture: str = "dense", **concepts: float
) -> ModelFigures:
    draws = delta + 0.01 * np.random.default_rng(number).normal(size=200)
    outcomes = ("delta", "cohens_d", "delta_of_shared_concepts")
    return ModelFigures(
        model=f"m{number}",
        method=method,
        architecture=architecture,
        num_params=1e9 * 2.0 ** (number * 5 % 7),
        num_active_params=1e9 * (number + 1),
        concepts=concepts,
        figures=dict.fromkeys(outcomes, delta),
        draws=dict.fromkeys(outcomes, draws),
    )


def models(distilled: Sequence[float], full_rl: Sequence[float]) -> list[ModelFigures]:
    both = [(delta, "distilled") for delta in distilled] + [(delta, "full_rl") for delta in full_rl]
    kinds = ("moe", "dense", "dense")
    return [model(k, delta, method, kinds[k % 3]) for k, (delta, method) in enumerate(both)]


# --- the rules ---------------------------------------------------------------------------------------


def test_method_first_is_supported_where_enough_models_show_it_and_untestable_where_they_cannot() -> None:
    many = [8.3, 8.0, 8.1, 8.4], [4.2, 3.9, 4.25, 4.1]
    found = method_over_architecture_over_size(models(*many))
    assert (found.verdict, found.p_value) == (SUPPORTED, pytest.approx(2 / 70))
    assert found.figure is not None
    assert found.low is not None
    assert found.low <= found.figure <= 1.0
    few = method_over_architecture_over_size(models([8.3, 8.0, 8.1, 8.4], [4.2, 3.9]))
    assert few.verdict in (NOT_TESTABLE, NOT_SUPPORTED)
    assert few.p_value == pytest.approx(1 / 15)
    assert "1/15" in few.detail
    one = method_over_architecture_over_size(models(many[0], []))
    assert (one.verdict, one.figure) == (NOT_TESTABLE, None)
    assert "method cannot be compared" in one.detail


def test_method_first_is_not_supported_where_another_factor_explains_more() -> None:
    by_kind = [
        model(k, 8.0 if k % 2 else 4.0, "distilled" if k < 4 else "full_rl", "moe" if k % 2 else "dense")
        for k in range(8)
    ]
    assert method_over_architecture_over_size(by_kind).verdict == NOT_SUPPORTED


@pytest.mark.parametrize(
    ("distilled", "full_rl", "expected"),
    [([10.0, 10.0], [4.0, 4.0], SUPPORTED), ([7.0, 7.0], [4.0, 4.0], NOT_SUPPORTED), ([16.0], [4.0], NOT_SUPPORTED)],
)
def test_the_ratio_must_lie_within_what_is_claimed(distilled: list[float], full_rl: list[float], expected: str) -> None:
    found = distilled_over_full_rl(models(distilled, full_rl))
    assert found.verdict == expected
    assert found.figure == pytest.approx(np.mean(distilled) / np.mean(full_rl))


def test_a_ratio_over_nothing_is_not_tested() -> None:
    assert distilled_over_full_rl(models([5.0], [-1.0])).verdict == NOT_TESTABLE
    assert distilled_over_full_rl(models([5.0], [])).verdict == NOT_TESTABLE


@pytest.mark.parametrize(
    ("moe", "dense", "expected"),
    [
        ([6.0, 6.1, 6.05], [6.1, 6.0, 6.05], SUPPORTED),
        ([8.0, 8.1, 8.05], [4.1, 4.0, 4.05], NOT_SUPPORTED),
        ([9.0, 5.0], [9.0, 3.0, 6.0], NOT_TESTABLE),
        ([6.0], [6.0, 6.1], NOT_TESTABLE),
    ],
)
def test_neutral_needs_evidence_of_likeness_not_only_no_difference(
    moe: list[float], dense: list[float], expected: str
) -> None:
    both = [(delta, "moe") for delta in moe] + [(delta, "dense") for delta in dense]
    found = mixture_of_experts_is_neutral([model(k, delta, None, kind) for k, (delta, kind) in enumerate(both)])
    assert found.verdict == expected


def test_the_claimed_order_of_concepts_is_asked_for_where_the_concepts_are_there() -> None:
    def judged(num_models: int, **concepts: float) -> str:
        return order_of_concepts([model(k, 1.0, None, **concepts) for k in range(num_models)]).verdict

    assert judged(4, corrigible=9.0, self_awareness=7.0, sycophancy=2.0) == SUPPORTED
    assert judged(4, corrigible=7.0, self_awareness=9.0, sycophancy=2.0) == NOT_SUPPORTED
    assert judged(4, honest=7.0, terse=9.0, kind=2.0) == SUPPORTED
    assert judged(2, honest=7.0, terse=9.0) == NOT_TESTABLE
    assert judged(1, honest=7.0, terse=9.0) == NOT_TESTABLE


def test_a_winner_that_a_letter_made_is_named() -> None:
    rows = [("one", 2.0, 1.0, "C"), ("two", 1.5, 1.4, "C"), ("two", 9.0, 9.0, "only of two")]
    found = most_steerable_without_position_bias(rows)
    assert found.verdict == NOT_SUPPORTED
    assert "one as scored, two with the bias taken out" in found.detail
    assert most_steerable_without_position_bias(rows[1:2]).verdict == NOT_TESTABLE
    assert most_steerable_without_position_bias([*rows[:1], ("two", 1.0, None, "C")]).verdict == NOT_TESTABLE


def test_one_cell_below_the_threshold_of_choice_mass_is_enough() -> None:
    assert models_answer_with_a_choice([0.9, 0.5]).verdict == SUPPORTED
    assert models_answer_with_a_choice([0.9, 0.009]).verdict == NOT_SUPPORTED
    assert models_answer_with_a_choice([]).verdict == NOT_TESTABLE


# --- on a warehouse ----------------------------------------------------------------------------------


def test_cells_are_the_planted_arms(planted: PlantedStudy) -> None:
    cells = {(cell.model, cell.concept): cell for cell in load_cells(connect(planted.root))}
    assert set(cells) == set(planted.logits)
    for (name, concept), cell in cells.items():
        minus, _, plus = planted.arms(name, concept)
        np.testing.assert_array_equal(cell.plus, plus)
        np.testing.assert_array_equal(cell.minus, minus)
        assert tuple(cell.layers) == planted.layers
        assert "".join(cell.matching) == "AB" * 20
        assert cell.num_layers == 20


def test_a_layer_that_is_not_finite_and_a_prompt_that_lacks_a_layer_are_left_out(wh: Warehouse) -> None:
    logits = draw_logits(np.random.default_rng(0), [1.0, 2.0, 3.0], (-1.0, 1.0), 6)
    logits[0, 0, 0, 0] = np.nan
    data = score_table(logits, (3, 4, 5), (-1.0, 1.0))
    publish_scores(wh, "R", "M", "C", [data.slice(0, data.num_rows - 1)])  # the last prompt lacks layer 5 at +1
    [cell] = load_cells(connect(wh.root))
    assert (tuple(cell.layers), len(cell.prompts), cell.num_layers) == ((4, 5), 5, None)


def test_the_planted_effect_is_found_and_the_planted_null_is_not(wh: Warehouse) -> None:
    rng = np.random.default_rng(0)
    for run, effect in (("planted", 2.0), ("null", 0.0)):
        publish_one(wh, "run", "runs", run_table(run), run)
        for name in ("one", "two", "three"):
            publish_one(wh, "model", "models", model_table(), run, model=name)
            logits = draw_logits(rng, [0.0, effect / 2, effect, 0.0], STRENGTHS, 40)
            publish_scores(wh, run, name, "C", [score_table(logits, (8, 10, 12, 16), STRENGTHS)])
    found = {(each.run, each.name): each for each in verdicts(connect(wh.root))}
    assert found["planted", "steering_has_an_effect"].verdict == SUPPORTED
    null = found["null", "steering_has_an_effect"]
    assert (null.verdict, null.figure) == (NOT_SUPPORTED, 0.0)
    depth = found["planted", "best_depth"]
    assert (depth.verdict, depth.figure, depth.low, depth.high) == (SUPPORTED, 0.6, 0.6, 0.6)
    assert found["null", "best_depth"].verdict == NOT_SUPPORTED
    assert found["planted", "distilled_over_full_rl"].verdict == NOT_TESTABLE


def test_every_statistic_is_a_table_and_the_same_every_time(planted: PlantedStudy, wh: Warehouse) -> None:
    con, empty = connect(planted.root), connect(wh.root)
    for name in STATISTICS:
        result = fetch_statistics(con, name)
        assert all(len(row) == len(result.columns) for row in result.rows)
        assert (len(result.rows) > 0) == (name != "published_claims"), name
        again = fetch_statistics(connect(planted.root), name)
        assert again.columns == result.columns
        for one, other in zip(again.rows, result.rows, strict=True):
            for value, expected in zip(one, other, strict=True):  # threads add up floats in any order
                assert value == (pytest.approx(expected, rel=1e-9) if isinstance(expected, float) else expected)
        assert fetch_statistics(empty, name) == (result.columns, [])
    with pytest.raises(QueryError, match="no statistic 'verdict'; the statistics are layer_choice"):
        fetch_statistics(con, "verdict")


def test_runs_are_judged_apart(tmp_path: Path) -> None:
    publish_planted(PlantedStudy(tmp_path / "warehouse"))
    publish_planted(PlantedStudy(tmp_path / "warehouse", run="second", num_prompts=12), seed=1)
    con = connect(tmp_path / "warehouse")
    assert {key: len(members) for key, members in load_models(con).items()} == {
        ("first", "all"): 3,
        ("second", "all"): 3,
    }
    assert {each.run for each in verdicts(con)} == {"first", "second"}
    assert {(each.run, each.factor) for each in factor_effects(con)} >= {("second", "architecture")}


def test_statistics_need_neither_torch_nor_ray(planted: PlantedStudy) -> None:
    script = (
        "import sys\nfrom pipeline.statistics.tables import fetch_statistics\n"
        "from pipeline.warehouse.views import connect\nfetch_statistics(connect(sys.argv[1]), 'verdicts')\n"
        "heavy = {'torch', 'ray', 'pandas'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script, str(planted.root)], env=environment, check=True)
