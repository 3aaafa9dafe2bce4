"""Kinds of GPU: found however they are written, plausible figures, an unknown one lists the others."""

from __future__ import annotations

import pytest

from pipeline.errors import StudyError
from pipeline.planning.gpus import gpu_named, known_gpus


@pytest.mark.parametrize(
    ("written", "name"),
    [("H200", "H200"), ("h200", "H200"), ("rtx-4090", "RTX 4090"), ("RTX4090", "RTX 4090"), ("a100 80gb", "A100-80GB")],
)
def test_a_name_is_found_whatever_its_case_spaces_and_dashes(written, name):
    assert gpu_named(written).name == name


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(StudyError, match=r"did you mean 'H200'.*A100-40GB.*RTX 4090"):
        gpu_named("H20O")


def test_every_kind_has_plausible_figures():
    known = known_gpus()
    assert {"A100-40GB", "A100-80GB", "H100-80GB", "H200", "L40S", "RTX 4090"} <= set(known)
    for gpu in known.values():
        assert gpu.bf16_tflops > gpu.fp32_tflops  # tensor cores
        # a figure "with sparsity" would put more operations against a byte than any of these GPUs has
        assert 50 < 1000 * gpu.bf16_tflops / gpu.bandwidth_gb_per_s < 450
