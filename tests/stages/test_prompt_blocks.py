"""Prompts in blocks: as few as can be, of one size, whole on their way."""

from __future__ import annotations

import pytest

from pipeline.prompts import Prompt
from pipeline.schemas import TOKEN_ROWS
from pipeline.stages.prompt_blocks import as_one_row, from_one_row, prompt_blocks, prompts_of


def prompts(count):
    return [Prompt("kind", "test", f"p{i}", f"Why {i}?", (f"yes {i}", "no"), "AB"[i % 2]) for i in range(count)]


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [(100, 32, [25, 25, 25, 25]), (7, 3, [2, 2, 3]), (3, 32, [3]), (64, 32, [32, 32]), (1, 1, [1])],
)
def test_blocks_are_few_of_one_size_and_hold_every_prompt_once_in_order(count, batch_size, sizes):
    blocks = list(prompt_blocks(prompts(count), batch_size))
    assert [block.num_rows for block in blocks] == sizes
    assert [prompt for block in blocks for prompt in prompts_of(block)] == prompts(count)


def test_a_block_travels_as_one_row_and_comes_back_as_it_was():
    import pyarrow as pa

    rows = [
        {"concept": "kind", "prompt": "a", "matching": "A", "ids": [1, 2, 3], "suffix_start": 1},
        {"concept": "kind", "prompt": "b", "matching": "B", "ids": [], "suffix_start": 0},
    ]
    table = pa.concat_tables([pa.Table.from_pylist([row], schema=TOKEN_ROWS) for row in rows])
    row = as_one_row(table)
    assert row.num_rows == 1
    assert from_one_row(row).equals(table.combine_chunks())
    assert from_one_row(pa.concat_tables([row]).slice(0, 1)).to_pylist() == rows
