"""Vectors as a GGUF control vector, as llama.cpp reads it (`--control-vector FILE`).

Flows in: placed vectors. Flows out: the bytes of the file (GGUF version 3, little-endian), written here: the format is
a page, and the package `gguf` is needed to read the file back, in the tests, not to make it.

Layers: llama.cpp adds tensor `direction.N` to the output of block N **counted from 0**, our `resid_post[N]`
(`build_cvec(cur, il)` stands at the end of block `il = 0, 1, ...` in src/models/qwen3.cpp and qwen3moe.cpp, and
`llama_adapter_cvec::apply` in src/llama-adapter.cpp gives block `il` what was loaded from `direction.il`). There is no
direction.0: the loader refuses it, and the output of block 0 cannot be steered. (llama.cpp's own cvector-generator
stores what it reads at the output of block il as direction.(il+1), one block further on; that is not followed here.)
Checked against llama.cpp itself, see DECISIONS.md.

All directions of a file are added at once, to every token, times the scale of `--control-vector-scaled FILE:SCALE`.
"""

from __future__ import annotations

import struct

import numpy as np

from pipeline.errors import UserError
from pipeline.exports.placement import PlacedVectors

FIRST_BLOCK = 1
ARCHITECTURES = {"qwen3": "qwen3", "qwen3_moe": "qwen3moe"}
"""`model_type` of a config.json -> llama.cpp's name of the architecture."""

_MAGIC = b"GGUF"
_VERSION = 3
_ALIGNMENT = 32  # the format's default
_INT32, _STRING = 5, 8  # types of values
_F32 = 0  # type of tensors


def to_gguf(placed: PlacedVectors) -> bytes:
    """The whole file: `general.architecture` "controlvector", `controlvector.model_hint` and `.layer_count`, our
    metadata as `steerability.*`, and tensors `direction.N`, float32 [H].

    Raises UserError for a model that llama.cpp has no name for here.
    """
    facts = placed.vectors.facts
    if facts.model_type not in ARCHITECTURES:
        raise UserError(
            f"model {facts.model!r}: its config.json has model_type {facts.model_type!r}; llama.cpp's name is known "
            f"for {', '.join(ARCHITECTURES)} only; use --format safetensors"
        )
    assert min(placed.blocks) >= FIRST_BLOCK, "llama.cpp has no direction.0"
    values = [
        _string_value("general.architecture", "controlvector"),
        _string_value("controlvector.model_hint", ARCHITECTURES[facts.model_type]),
        _string("controlvector.layer_count") + struct.pack("<Ii", _INT32, len(placed.blocks)),
        *(_string_value(f"steerability.{key}", value) for key, value in placed.metadata().items()),
    ]
    infos, data = [], b""
    for row, block in enumerate(placed.blocks):
        vector = np.ascontiguousarray(placed.vectors.vectors[row], dtype="<f4")  # [H]
        infos.append(_string(f"direction.{block}") + struct.pack("<IQIQ", 1, vector.size, _F32, len(data)))
        data += _padded(vector.tobytes())
    head = _MAGIC + struct.pack("<IQQ", _VERSION, len(infos), len(values))
    return _padded(head + b"".join(values) + b"".join(infos)) + data


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _string_value(key: str, text: str) -> bytes:
    return _string(key) + struct.pack("<I", _STRING) + _string(text)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
