"""Sequences of different lengths, one behind the other in a packed row, without padding.

Flows in: lengths, and for branches what each shares with a sequence of the trunk. Flows out: `Packing`: where every
segment lies, its position ids, and how a packed row is cut into pieces of a bounded number of tokens.

A *trunk* holds sequences from their first token on. A *branch* continues one: its segments start behind a *prefix* of a
trunk sequence, whose keys and values it reads instead of computing them again. Segments of equal shape that follow each
other form a `Run`, which attention takes in one call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Run:
    """`count` segments of `length` tokens each, the first at token `start` of the packed row.

    Where `prefix` is not 0, segment i continues the trunk sequence that starts at token
    `trunk_start + i * trunk_length` of the trunk, behind its first `prefix` tokens.
    """

    start: int
    count: int
    length: int
    prefix: int = 0
    trunk_start: int = 0
    trunk_length: int = 0

    @property
    def stop(self) -> int:
        return self.start + self.count * self.length


@dataclass(frozen=True)
class Segment:
    """One sequence, or the part of it behind a prefix that lies at `trunk_start` of the trunk."""

    length: int
    prefix: int = 0
    trunk_start: int = 0
    trunk_length: int = 0


@dataclass(frozen=True)
class Piece:
    """Rows `rows` and tokens `tokens` of a packed stream: what goes through a block at once. `runs` count from the
    piece's own first token."""

    rows: slice
    tokens: slice
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Packing:
    """The layout of a packed row: `positions` [N] are position ids, `ends` [segments] each segment's last token."""

    runs: tuple[Run, ...]
    positions: Tensor
    ends: Tensor

    @classmethod
    def of(cls, segments: Sequence[Segment], device: torch.device) -> Packing:
        """Lay out `segments` in the given order."""
        runs: list[Run] = []
        start = 0
        for segment in segments:
            single = Run(start, 1, segment.length, segment.prefix, segment.trunk_start, segment.trunk_length)
            if runs and _continues(runs[-1], single):
                runs[-1] = replace(runs[-1], count=runs[-1].count + 1)
            else:
                runs.append(single)
            start = single.stop
        own = [torch.arange(s.prefix, s.prefix + s.length) for s in segments]
        lengths = torch.tensor([s.length for s in segments])
        return cls(tuple(runs), torch.cat(own).to(device), (lengths.cumsum(0) - 1).to(device))

    @property
    def num_tokens(self) -> int:
        return self.runs[-1].stop

    def pieces(self, num_rows: int, most: int) -> Iterator[Piece]:
        """Cut `num_rows` such rows into pieces of at most `most` tokens where a segment is not longer than that: whole
        rows together, or parts of one row."""
        if self.num_tokens <= most:
            for start, stop in pairwise(even_cuts(num_rows, most // self.num_tokens)):
                yield Piece(slice(start, stop), slice(0, self.num_tokens), self.runs)
            return
        parts = list(self._parts(self.num_tokens / -(-self.num_tokens // most)))
        for row in range(num_rows):
            for runs in parts:
                first = runs[0].start
                moved = tuple(replace(run, start=run.start - first) for run in runs)
                yield Piece(slice(row, row + 1), slice(first, runs[-1].stop), moved)

    def _parts(self, most: float) -> Iterator[list[Run]]:
        """The runs in parts of about `most` tokens, cut between segments."""
        part: list[Run] = []
        held = 0
        for run in self.runs:
            rest: Run | None = run
            while rest is not None:
                fits = int((most - held) // rest.length)
                if fits < 1 and part:
                    yield part
                    part, held = [], 0
                    continue
                taken, rest = _split(rest, max(1, fits))
                part.append(taken)
                held += taken.count * taken.length
        yield part


def even_cuts(total: int, most: int) -> list[int]:
    """Bounds that cut `total` into the fewest parts of at most `most`, as even as can be: [0, ..., total]."""
    parts = -(-total // max(1, most))
    return [total * i // parts for i in range(parts + 1)] if parts else [0]


def _continues(run: Run, single: Run) -> bool:
    same = (run.length, run.prefix, run.trunk_length) == (single.length, single.prefix, single.trunk_length)
    return same and (run.prefix == 0 or single.trunk_start == run.trunk_start + run.count * run.trunk_length)


def _split(run: Run, count: int) -> tuple[Run, Run | None]:
    if count >= run.count:
        return run, None
    rest = replace(
        run,
        start=run.start + count * run.length,
        count=run.count - count,
        trunk_start=run.trunk_start + count * run.trunk_length,
    )
    return replace(run, count=count), rest
