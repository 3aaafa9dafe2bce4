"""The sides of the speed comparison: each does extraction and the sweep on the same weights, prompts and grid.

Flow: `workload` builds a model with random weights and its prompts; each other module is one side of it.

workload            model, prompts, contrastive pairs, grid
side                what every side offers, and the loop over the grid that the one-forward-a-point sides share
branching           this project: `engine.extract` and `engine.sweep`
naive               the way of published scripts: left padding, every point of the grid a whole forward
steering_vectors    the `steering-vectors` library
repeng              the `repeng` library
nnsight             the `nnsight` library
"""

from benchmarks.sides.side import SIDE_NAMES, Side, load_side, missing_packages
from benchmarks.sides.workload import SHAPES, Workload, make_workload

__all__ = ["SHAPES", "SIDE_NAMES", "Side", "Workload", "load_side", "make_workload", "missing_packages"]
