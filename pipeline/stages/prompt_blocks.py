"""Prompts cut into the blocks that travel through the stages: a block is what one model actor takes at a time.

Flows in: prompts of one concept. Flows out: Arrow tables of PROMPT_ROWS. The rows themselves travel, so no node needs
the prompts' files, and what is computed is what was checked.

Ray Data merges and cuts blocks to the batch size of an operator, and its GPU operators must have one; a tokenised block
therefore travels as one row, and stays whole. Otherwise blocks of 25 prompts came to a model asked for 32 as 32 and 18.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipeline.prompts import Prompt
from pipeline.schemas import PROMPT_ROWS


def prompt_blocks(prompts: Sequence[Prompt], batch_size: int) -> Iterator[pa.Table]:
    """`prompts` in order, in as few blocks of at most `batch_size` as can be, all of about one size."""
    num_blocks = math.ceil(len(prompts) / batch_size)
    for block in range(num_blocks):
        start, end = (len(prompts) * edge // num_blocks for edge in (block, block + 1))
        yield pa.Table.from_pylist([_row(prompt) for prompt in prompts[start:end]], schema=PROMPT_ROWS)


def prompts_of(block: pa.Table) -> list[Prompt]:
    """The prompts of a block again."""
    return [
        Prompt(r["concept"], r["split"], r["id"], r["question"], (r["choice_a"], r["choice_b"]), r["matching"])
        for r in block.select(PROMPT_ROWS.names).to_pylist()
    ]


def as_one_row(rows: pa.Table) -> pa.Table:
    """`rows` as a table of one row."""
    values = rows.combine_chunks().to_struct_array().combine_chunks()
    return pa.table({"rows": pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)})


def from_one_row(row: pa.Table) -> pa.Table:
    """The reverse of `as_one_row`."""
    return pa.Table.from_struct_array(row.column("rows").combine_chunks().flatten())


def _row(prompt: Prompt) -> dict[str, str]:
    return {
        "concept": prompt.concept,
        "split": prompt.split,
        "id": prompt.id,
        "question": prompt.question,
        "choice_a": prompt.choices[0],
        "choice_b": prompt.choices[1],
        "matching": prompt.matching,
    }
