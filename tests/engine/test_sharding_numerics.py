"""How far bf16 moves delta from float32, on the demo models: vectors read and prompts scored in the one or the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.engine.extract import compute_vectors
from pipeline.engine.model import load_model
from pipeline.engine.sweep import sweep_prompts
from pipeline.prompts import find_concept, read_split

ZOO = Path(__file__).resolve().parents[2] / "data" / "zoo"
NUM_PROMPTS = 24
BOUND = 0.02  # 0.0042 is the largest found, where delta reaches 2.9


@pytest.mark.parametrize("name", ["demo-dense", "demo-moe", "demo-distilled"])
def test_bf16_moves_delta_by_no_more_than_the_bound(name):
    if not (ZOO / name / "model.safetensors").is_file():
        pytest.skip(f"data/zoo/{name} is not at hand")
    concept = find_concept("corrigible")
    train, test = read_split(concept, "train")[:NUM_PROMPTS], read_split(concept, "test")[:NUM_PROMPTS]
    matching = [prompt.matching for prompt in test]
    deltas = {}
    for dtype in ("float32", "bfloat16"):
        model = load_model(ZOO / name, dtype)
        deltas[dtype] = sweep_prompts(model, test, compute_vectors(model, train)).delta(matching)[0]  # [layers]
    off = np.abs(deltas["bfloat16"] - deltas["float32"])
    print(f"{name}: delta {deltas['float32'].round(3)}, off by {off.round(4)}")
    assert (off <= BOUND).all()
    assert deltas["float32"].max() > 50 * BOUND
