"""What an import of scores did, as data and in words.

Flows in: counts, notes and failures of each file. Flows out: the lines that `steer import` prints.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.imports.options import OtherLetters


@dataclass(frozen=True)
class CellReport:
    """What became of one file. `with_others` and `without` are (best layer, delta) with and without the rows whose
    matching answer is neither A nor B; both None where there are none."""

    model: str
    concept: str
    num_lines: int
    num_scores: int
    num_rejects: int
    first_reject: str = ""
    notes: tuple[str, ...] = ()
    failure: str = ""
    num_other_letters: int = 0
    other_letters: str = ""
    with_others: tuple[int, float] | None = None
    without: tuple[int, float] | None = None


@dataclass(frozen=True)
class ImportSummary:
    """What one import did; `unchanged` if all of it was in the warehouse already."""

    run: str
    protocol: str
    other_letters: OtherLetters
    unchanged: bool
    num_layers: dict[str, int]
    cells: list[CellReport]

    @property
    def failed(self) -> list[CellReport]:
        return [cell for cell in self.cells if cell.failure]


def summary_lines(summary: ImportSummary) -> Iterable[str]:
    """What the command prints."""
    cells = summary.cells
    num_lines, num_scores, num_rejects = (
        sum(getattr(cell, name) for cell in cells) for name in ("num_lines", "num_scores", "num_rejects")
    )
    done = "is in the warehouse already, nothing changed" if summary.unchanged else "imported"
    yield (
        f"run {summary.run} {done}: {num_scores:,} scores of {num_lines:,} rows, {num_rejects:,} rejected; "
        f"{len({c.model for c in cells})} models, {len({c.concept for c in cells})} concepts, "
        f"protocol {summary.protocol}"
    )
    layers = ", ".join(f"{model} {count}" for model, count in sorted(summary.num_layers.items()))
    yield f"layers (deepest scored + 1, or as given with --num-layers): {layers or 'none'}"
    for cell in cells:
        where = f"{cell.model}, {cell.concept}"
        if cell.num_rejects:
            yield f"{where}: {cell.num_rejects:,} of {cell.num_lines:,} rows rejected; first: {cell.first_reject}"
        for note in cell.notes:
            yield f"{where}: note: {note}"
        if cell.failure:
            yield f"{where}: NOT imported: {cell.failure}"
    if num_rejects:
        yield (
            "every rejected row with file, line and reason: "
            f"steer sql \"select * from rejects where run = '{summary.run}'\""
        )
    others = [cell for cell in cells if cell.num_other_letters]
    if others:
        letters = ", ".join(sorted(set("".join(cell.other_letters for cell in others))))
        yield (
            f"{sum(cell.num_other_letters for cell in others):,} rows have another matching answer than A or B "
            f"({letters}). The files have no log-probability of it, and score one of A and B in its place. Kept as "
            "the files score them, marked by their letter in scores.matching; --other-letters reject leaves them out:"
        )
        for cell in others:
            if cell.with_others and cell.without:
                yield (
                    f"  {cell.model}, {cell.concept}: best delta {cell.with_others[1]:.2f} at layer "
                    f"{cell.with_others[0]} with them, {cell.without[1]:.2f} at layer {cell.without[0]} without"
                )
