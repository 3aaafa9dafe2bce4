"""Vectors for the `steering-vectors` library.

Flows in: placed vectors. Flows out: its `SteeringVector` in memory, or the bytes of a safetensors file.

The library (0.12) has no file form of its own; people pickle the object, and unpickling runs whatever the file says. So
the file holds its one field that matters, `layer_activations`, with the layer number as the tensor's name:

    SteeringVector({int(layer): vector for layer, vector in load_file(FILE).items()})

Layers: its `decoder_block` number N, counted from 0, is a hook on the output of block N, our `resid_post[N]`. It can
add at every block; only `resid_pre[0]`, the embedding, is out of its reach.
"""

from __future__ import annotations

import importlib
from typing import Any

from pipeline.errors import UserError
from pipeline.exports.placement import PlacedVectors

FIRST_BLOCK = 0
INSTALL = "pip install scikit-learn && pip install --no-deps steering-vectors"


def to_steering_vector(placed: PlacedVectors) -> Any:
    """The library's `SteeringVector`; `with vector.apply(model, multiplier=1.0): ...` adds all of its layers to a
    Hugging Face model. Raises UserError where the library is not installed."""
    try:
        library = importlib.import_module("steering_vectors")  # by name: mypy need not find it
    except ImportError as error:
        raise UserError(f"the steering-vectors library is not installed ({error}); {INSTALL}") from error
    import torch

    activations = {
        block: torch.from_numpy(placed.vectors.vectors[row].copy()) for row, block in enumerate(placed.blocks)
    }
    return library.SteeringVector(layer_activations=activations, layer_type="decoder_block")


def to_layer_activations(placed: PlacedVectors) -> bytes:
    """A safetensors file: tensors `N` (the library's layer number, float32 [H]), and the metadata."""
    from safetensors.numpy import save

    tensors = {str(block): placed.vectors.vectors[row].copy() for row, block in enumerate(placed.blocks)}
    return save(tensors, metadata={**placed.metadata(), "layer_type": "decoder_block"})
