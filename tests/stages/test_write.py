"""Files of scores: written promptly where they are few, gathered where they would be thousands."""

from __future__ import annotations

import pytest

from pipeline.stages.write import FILES_PER_PARTITION, ROWS_PER_FILE, rows_per_file


@pytest.mark.parametrize("num_prompts", [1, 100, FILES_PER_PARTITION * 32])
def test_blocks_of_a_small_partition_are_written_as_they_come(num_prompts):
    assert rows_per_file(num_prompts, 12, 32) is None


@pytest.mark.parametrize("num_prompts", [FILES_PER_PARTITION * 32 + 1, 20_000, 100_000])
def test_a_large_partition_comes_in_tens_of_files_of_whole_blocks(num_prompts):
    rows = rows_per_file(num_prompts, 3, 256)
    assert rows is None or rows % (3 * 256) == 0
    assert num_prompts * 3 / (rows or 3 * 256) <= FILES_PER_PARTITION


def test_no_writer_holds_more_than_a_bounded_number_of_rows():
    assert rows_per_file(10**7, 200, 256) == ROWS_PER_FILE


def test_a_block_larger_than_that_is_written_as_it_comes():
    assert rows_per_file(10**7, 1_000_000, 256) is None
