"""Prompts cut into what travels through the stages: batches, each one row, and blocks of them, each one task a stage.

Flows in: prompts of one concept, one at a time. Flows out: Arrow tables in which each row is a batch of PROMPT_ROWS,
what a model takes at a time. The prompts themselves travel, so no node needs their files, and what is computed is what
was checked.

Ray Data merges and cuts blocks to the batch size of an operator, and its GPU operators must have one; a batch
therefore travels as one row, and stays whole. Otherwise blocks of 25 prompts came to a model asked for 32 as 32 and 18.
Where there are many batches, several make a block: each task, object and file costs the same however small it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import pyarrow as pa

from pipeline.prompts import Prompt
from pipeline.schemas import PROMPT_ROWS

BATCHES_PER_BLOCK = 8  # at most: what is computed again when an actor is lost, and what progress waits for
BLOCKS_PER_REPLICA = 32  # at least, where there are so many batches: replicas end at about the same time


def batches_per_block(num_prompts: int, batch_size: int, num_replicas: int) -> int:
    """How many batches make a block: one, until every replica has many blocks to work on."""
    num_batches = math.ceil(num_prompts / batch_size)
    return max(1, min(BATCHES_PER_BLOCK, num_batches // (BLOCKS_PER_REPLICA * num_replicas)))


def prompt_blocks(
    prompts: Iterable[Prompt], num_prompts: int, batch_size: int, batches_in_block: int = 1
) -> Iterator[pa.Table]:
    """`prompts`, `num_prompts` of them, in order: in as few batches of at most `batch_size` as can be, all of about
    one size. No more than a block of them is held."""
    waiting = iter(prompts)
    num_batches = math.ceil(num_prompts / batch_size)
    block: list[pa.Table] = []
    for batch in range(num_batches):
        start, end = (num_prompts * edge // num_batches for edge in (batch, batch + 1))
        block.append(as_one_row(_table(islice(waiting, end - start))))
        if len(block) == batches_in_block or batch == num_batches - 1:
            yield pa.concat_tables(block).combine_chunks()
            block = []
    for prompt in waiting:  # whoever hands them out may have something to say at the end
        raise AssertionError(f"prompt {prompt.id!r} is one more than {num_prompts}")


def each_batch(block: pa.Table, work: Callable[[pa.Table], pa.Table]) -> pa.Table:
    """`work` done on the rows of each batch of `block`; its results are the batches of the block returned."""
    batches = (from_one_row(block.slice(at, 1)) for at in range(block.num_rows))
    return pa.concat_tables([as_one_row(work(batch)) for batch in batches])


def prompts_of(batch: pa.Table) -> list[Prompt]:
    """The prompts of a batch again."""
    return [
        Prompt(r["concept"], r["split"], r["id"], r["question"], (r["choice_a"], r["choice_b"]), r["matching"])
        for r in batch.select(PROMPT_ROWS.names).to_pylist()
    ]


def as_one_row(rows: pa.Table) -> pa.Table:
    """`rows` as a table of one row."""
    values = rows.combine_chunks().to_struct_array().combine_chunks()
    return pa.table({"rows": pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)})


def from_one_row(row: pa.Table) -> pa.Table:
    """The reverse of `as_one_row`."""
    return pa.Table.from_struct_array(row.column("rows").combine_chunks().flatten())


def _table(prompts: Iterable[Prompt]) -> pa.Table:
    rows = [(p.concept, p.split, p.id, p.question, *p.choices, p.matching) for p in prompts]
    columns = zip(*rows, strict=True)
    return pa.Table.from_arrays([pa.array(column, pa.string()) for column in columns], schema=PROMPT_ROWS)
