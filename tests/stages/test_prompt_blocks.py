"""Prompts in blocks: as few as can be, of one size, whole on their way."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pipeline.prompts import Prompt
from pipeline.schemas import TOKEN_ROWS
from pipeline.stages.prompt_blocks import (
    BATCHES_PER_BLOCK,
    as_one_row,
    batches_per_block,
    each_batch,
    from_one_row,
    prompt_blocks,
    prompts_of,
)


def prompts(count):
    return [Prompt("kind", "test", f"p{i}", f"Why {i}?", (f"yes {i}", "no"), "AB"[i % 2]) for i in range(count)]


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [(100, 32, [25, 25, 25, 25]), (7, 3, [2, 2, 3]), (3, 32, [3]), (64, 32, [32, 32]), (1, 1, [1])],
)
def test_blocks_are_few_of_one_size_and_hold_every_prompt_once_in_order(count, batch_size, sizes):
    blocks = list(prompt_blocks(iter(prompts(count)), count, batch_size))
    batches = [from_one_row(block) for block in blocks]
    assert [batch.num_rows for batch in batches] == sizes
    assert [prompt for batch in batches for prompt in prompts_of(batch)] == prompts(count)


def test_batches_are_the_same_however_many_make_a_block():
    one_by_one = pa.concat_tables(prompt_blocks(iter(prompts(100)), 100, 8))
    blocks = list(prompt_blocks(iter(prompts(100)), 100, 8, batches_in_block=5))
    assert [block.num_rows for block in blocks] == [5, 5, 3]
    assert pa.concat_tables(blocks).to_pylist() == one_by_one.to_pylist()


def test_no_more_than_a_block_of_prompts_is_held():
    taken = []
    blocks = prompt_blocks((taken.append(p) or p for p in prompts(100)), 100, 8, batches_in_block=2)
    next(blocks)
    assert 0 < len(taken) <= 17


def test_prompts_beyond_their_number_are_noticed():
    with pytest.raises(AssertionError, match="one more than 3"):
        list(prompt_blocks(iter(prompts(4)), 3, 2))


def test_a_block_is_one_batch_until_every_replica_has_many():
    assert batches_per_block(100, 32, 1) == 1
    assert batches_per_block(63 * 32, 32, 1) == 1
    assert batches_per_block(64 * 32, 32, 1) == 2
    assert batches_per_block(64 * 32, 32, 2) == 1
    assert batches_per_block(10**6, 32, 1) == BATCHES_PER_BLOCK


def test_work_is_done_batch_by_batch():
    [block] = prompt_blocks(iter(prompts(10)), 10, 4, batches_in_block=3)
    seen = []
    done = each_batch(block, lambda batch: seen.append(batch.num_rows) or batch.select(["id"]))
    assert seen == [3, 3, 4]
    assert [row["id"] for batch in done.column("rows").to_pylist() for row in batch] == [p.id for p in prompts(10)]


def test_a_block_travels_as_one_row_and_comes_back_as_it_was():
    rows = [
        {"concept": "kind", "prompt": "a", "matching": "A", "ids": [1, 2, 3], "suffix_start": 1},
        {"concept": "kind", "prompt": "b", "matching": "B", "ids": [], "suffix_start": 0},
    ]
    table = pa.concat_tables([pa.Table.from_pylist([row], schema=TOKEN_ROWS) for row in rows])
    row = as_one_row(table)
    assert row.num_rows == 1
    assert from_one_row(row).equals(table.combine_chunks())
    assert from_one_row(pa.concat_tables([row]).slice(0, 1)).to_pylist() == rows
