"""Vectors as safetensors: one tensor a layer, for anyone.

Flows in: `ExportedVectors`. Flows out: the bytes of the file: tensors `layer.L` (0-based, float32 [H]) and the metadata
`ExportedVectors.metadata` lists; `site` says which end of the layer they were read at.
"""

from __future__ import annotations

from pipeline.exports.exported_vectors import ExportedVectors


def to_safetensors(vectors: ExportedVectors) -> bytes:
    """The whole file. `safetensors.safe_open` reads tensors and `metadata()`."""
    from safetensors.numpy import save

    tensors = {f"layer.{layer}": vectors.vectors[row].copy() for row, layer in enumerate(vectors.layers)}
    return save(tensors, metadata=vectors.metadata())
