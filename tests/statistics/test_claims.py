"""Published figures against a warehouse's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import WarehouseError
from pipeline.statistics.claims import check_claims, read_claims
from pipeline.warehouse.views import connect, prepare, view_files
from tests.warehouse.planted import PlantedStudy

FILE = """
[studies.mine]
models = ["small", "large"]
concepts = ["honest"]

[[claims]]
name = "prompts"
study = "mine"
claim = "prompts of each figure"
published = {published}
decimals = {decimals}
unit = "prompts"
sql = "select max(num_prompts) from best_layers where run = $run and positions = $positions"
"""


@pytest.mark.parametrize(
    ("published", "decimals", "agrees"), [("40", 0, True), ("40.4", 1, False), ("35\npublished_high = 40", 0, True)]
)
def test_a_claim_agrees_where_the_figure_rounds_to_it(
    planted: PlantedStudy, tmp_path: Path, published: str, decimals: int, agrees: bool
) -> None:
    path = tmp_path / "claims.toml"
    path.write_text(FILE.format(published=published, decimals=decimals))
    [check] = check_claims(connect(planted.root), read_claims(path))
    assert (check.run, check.figure, check.agrees) == ("first", 40.0, agrees)
    assert ("the scores give 40" in check.detail) == (not agrees)


def test_a_claim_about_models_that_are_not_there_is_not_compared(planted: PlantedStudy, tmp_path: Path) -> None:
    path = tmp_path / "claims.toml"
    path.write_text(FILE.format(published=1, decimals=0).replace('"large"', '"huge"'))
    assert check_claims(connect(planted.root), read_claims(path)) == []
    assert check_claims(connect(planted.root)) == []


def test_a_figure_that_is_not_there_neither_agrees_nor_not(planted: PlantedStudy, tmp_path: Path) -> None:
    path = tmp_path / "claims.toml"
    path.write_text(FILE.format(published=1, decimals=0).replace("$positions", "$positions and model = 'none'"))
    [check] = check_claims(connect(planted.root), read_claims(path))
    assert (check.figure, check.agrees) == (None, None)


def test_the_claims_that_ship_can_be_read_and_run(planted: PlantedStudy) -> None:
    con = connect(planted.root)
    prepare(con, view_files())
    claims = read_claims()
    assert len({claim.name for claim in claims}) == len(claims) > 20
    for claim in claims:
        row = con.execute(claim.sql, {"run": "first", "positions": "all"}).fetchone()
        assert row is None or len(row) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("unit =", "units ="), "claim 1 lacks unit; add it"),
        (('study = "mine"', 'study = "yours"'), "is of study 'yours'; the file describes mine"),
        (("[[claims]]", "[[claims"), "cannot be read"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = tmp_path / "claims.toml"
    path.write_text(FILE.format(published=1, decimals=0).replace(*change))
    with pytest.raises(WarehouseError, match=message):
        read_claims(path)
    with pytest.raises(WarehouseError, match=r"absent\.toml cannot be read"):
        read_claims(tmp_path / "absent.toml")
