"""Colours: readable on both papers, and told apart by eyes of every common kind."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipeline.report.palette import NUM_SERIES, NUM_STEPS, ROLES, contrast, series, step

# Machado, Oliveira and Fernandes (2009), severity 1, for linear RGB
_EYES = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
    "trichromacy": np.eye(3),
}


def lab(linear: np.ndarray) -> np.ndarray:
    """CIELAB of a linear RGB colour, D65."""
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    xyz = np.asarray(to_xyz) @ np.clip(linear, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def linear(colour: str) -> np.ndarray:
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("dark", [0, 1])
def test_text_and_lines_stand_out_from_the_paper(dark: int) -> None:
    paper = ROLES["paper"][dark]
    assert contrast(ROLES["ink"][dark], paper) > 12
    assert contrast(ROLES["muted"][dark], paper) > 4.5
    assert min(contrast(ROLES[f"series-{i}"][dark], paper) for i in range(NUM_SERIES)) >= 3


@pytest.mark.parametrize("dark", [0, 1])
def test_figures_are_readable_on_every_step_of_the_scale(dark: int) -> None:
    ratios = [contrast(ROLES[f"step-{i}"][dark], ROLES[f"step-ink-{i}"][dark]) for i in range(NUM_STEPS)]
    assert min(ratios) >= 4.5


@pytest.mark.parametrize("eyes", _EYES)
@pytest.mark.parametrize("dark", [0, 1])
def test_series_are_told_apart(eyes: str, dark: int) -> None:
    seen = [lab(np.asarray(_EYES[eyes]) @ linear(ROLES[f"series-{i}"][dark])) for i in range(NUM_SERIES)]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 14


def test_the_scale_is_even_around_zero_and_bounded() -> None:
    middle = NUM_STEPS // 2
    assert step(0.0, 3.0) == middle
    assert step(3.0, 3.0) == step(99.0, 3.0) == NUM_STEPS - 1
    assert step(-3.0, 3.0) == 0
    assert step(1.0, 0.0) == step(float("nan"), 1.0) == middle
    assert series(0) == series(NUM_SERIES)
