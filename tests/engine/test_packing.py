"""Every token of a packed stream lies in exactly one piece, and pieces keep segments and their prefixes together."""

from __future__ import annotations

import pytest
import torch

from pipeline.engine.packing import Packing, Run, Segment, even_cuts

CPU = torch.device("cpu")


def test_segments_of_one_shape_that_follow_each_other_are_one_run():
    packing = Packing.of([Segment(3), Segment(3), Segment(5)], CPU)
    assert packing.runs == (Run(0, 2, 3), Run(6, 1, 5))
    assert packing.positions.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 4]
    assert packing.ends.tolist() == [2, 5, 10]


def test_a_segment_behind_a_prefix_counts_its_positions_on():
    packing = Packing.of([Segment(2, 4, 0, 6), Segment(2, 4, 6, 6), Segment(2, 4, 0, 6)], CPU)
    assert packing.runs == (Run(0, 2, 2, 4, 0, 6), Run(4, 1, 2, 4, 0, 6))  # the third continues the first again
    assert packing.positions.tolist() == [4, 5] * 3


@pytest.mark.parametrize("most", [1, 4, 7, 11, 12, 25, 1000])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_pieces_cover_every_token_once_and_cut_between_segments(rows, most):
    segments = [Segment(3, 2, 0, 5), Segment(3, 2, 5, 5), Segment(3, 2, 10, 5), Segment(2), Segment(1)]
    packing = Packing.of(segments, CPU)
    seen = torch.zeros(rows, packing.num_tokens, dtype=torch.int64)
    found = []
    for piece in packing.pieces(rows, most):
        block = seen[piece.rows, piece.tokens]
        block += 1
        assert block.shape[1] == sum(run.count * run.length for run in piece.runs)
        assert block.numel() <= most or sum(run.count for run in piece.runs) == 1
        assert piece.runs[0].start == 0
        if piece.rows.start == 0:
            found += [
                (run.length, run.prefix, run.trunk_start + i * run.trunk_length)
                for run in piece.runs
                for i in range(run.count)
            ]
    assert (seen == 1).all()
    assert found == [(s.length, s.prefix, s.trunk_start) for s in segments]


@pytest.mark.parametrize(
    ("total", "most", "cuts"), [(7, 3, [0, 2, 4, 7]), (6, 3, [0, 3, 6]), (2, 5, [0, 2]), (0, 5, [0])]
)
def test_cuts_are_the_fewest_and_even(total, most, cuts):
    assert even_cuts(total, most) == cuts
