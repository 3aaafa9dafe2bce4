"""Colours that read on light and on dark, and with colour-blind eyes.

Flows in: nothing. Flows out: roles (`ink`, `series-3`, `step-7`), each with a light and a dark colour. Plots are
drawn in the light colours; on the page every one of them is replaced by the CSS variable of its role, so one drawing
serves both schemes. That needs light colours that are all different, which `ROLES` asserts.

Series differ in lightness as well as in hue (they were moved until no two come closer than 14 in CIELAB under
simulated protanopia, deuteranopia or tritanopia), and plots give each its own marker and dash too. Heat maps run
from blue over the paper's colour to orange, which no common colour blindness confuses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

NUM_SERIES = 8
NUM_STEPS = 13
"""Of a heat map's scale; the middle one is zero."""

_BASE = {
    "paper": ("#ffffff", "#15181c"),
    "ink": ("#1b1f24", "#e9ebee"),
    "muted": ("#59626c", "#a4adb7"),
    "grid": ("#d8dde3", "#363d45"),
}
_SERIES = (
    ("#0b62b8", "#1a8ad1"),  # blue
    ("#d65e1b", "#ff9154"),  # vermilion
    ("#037952", "#2fc79a"),  # green
    ("#b04a90", "#ec94cd"),  # purple
    ("#705303", "#d9b92f"),  # ochre
    ("#2fa0bd", "#92e9fb"),  # cyan
    ("#3a2f73", "#b3a6ff"),  # indigo
    ("#818080", "#cccccc"),  # grey
)
_COLD = ("#1f5fae", "#5d9de8")
_MIDDLE = ("#f3f4f5", "#23282e")
_WARM = ("#bd540b", "#f2904a")


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two colours, 1 to 21 (WCAG 2)."""
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def series(index: int) -> str:
    """The light colour of the `index`-th model; after the last it begins again (the dash then differs)."""
    return ROLES[f"series-{index % NUM_SERIES}"][0]


def step(value: float, limit: float) -> int:
    """Which step of the scale `value` falls on, -limit being the first and +limit the last."""
    if not limit > 0 or not math.isfinite(value):
        return NUM_STEPS // 2
    place = round((value / limit + 1) / 2 * (NUM_STEPS - 1))
    return min(max(place, 0), NUM_STEPS - 1)


def colour(role: str) -> str:
    """The light colour of a role."""
    return ROLES[role][0]


def css_variables(dark: bool) -> str:
    """`--ink: #...;` for every role, one a line."""
    return "\n".join(f"  --{role}: {colours[dark]};" for role, colours in ROLES.items())


def _roles() -> Mapping[str, tuple[str, str]]:
    roles = dict(_BASE)
    roles |= {f"series-{i}": colours for i, colours in enumerate(_SERIES)}
    half = NUM_STEPS // 2
    for place in range(NUM_STEPS):
        end = _COLD if place < half else _WARM
        share = abs(place - half) / half
        fills = tuple(_mixed(_MIDDLE[dark], end[dark], share) for dark in (False, True))
        roles[f"step-{place}"] = (fills[0], fills[1])
        black, white = _inks(place)
        inks = [black if contrast(black, fill) > contrast(white, fill) else white for fill in fills]
        roles[f"step-ink-{place}"] = (inks[0], inks[1])
    lights = [light for light, _ in roles.values()]
    assert len(set(lights)) == len(lights), "two roles share a light colour"
    return roles


def _inks(place: int) -> tuple[str, str]:
    """A black and a white for the figures on a step; told apart by their last digits, not by the eye."""
    return f"#1010{place:02x}", f"#ffff{0xF0 + place:02x}"


def _mixed(first: str, second: str, share: float) -> str:
    parts = zip(_channels(first), _channels(second), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in parts)


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in _channels(colour))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


ROLES = _roles()
"""Role -> (light, dark). Light colours are all different."""
