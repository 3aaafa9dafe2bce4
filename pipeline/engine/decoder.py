"""Decoder blocks over packed streams: the arithmetic of a transformers block, on rows without padding.

Flows in: a model's blocks (their own modules, as DeepSpeed or our sharding left them) and a packed residual stream.
Flows out: the stream behind a block, updated in place, and on request the block's keys and values.

Why not the model's own forward: it needs padding, computes every position of the last block, passes tensors through
that are larger than any cache, and cannot let branches share the keys and values of a prefix. Projections, norms, MLP
and experts are the model's own modules; what is written here is the order of a block, rotation and attention. Tests
hold it to the model's own forward.

A stream goes through a block in pieces of a bounded number of tokens, so that what a block makes on the way stays in
the cache, and memory is the stream plus one piece.

Legend: R rows, N tokens of a packed row, S segments, H hidden, h query heads, g key/value heads, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.engine.experts import IdleAttention
from pipeline.engine.packing import Packing, Piece, Run

Queries = Literal["all", "ends", "none"]
"""Which tokens go on behind a block: all, each segment's last (behind the last block nothing else is looked at), or
none (only the block's keys and values are wanted)."""


@dataclass(frozen=True)
class KeyValues:
    """Keys (rotated) and values of a trunk in one block, [N, g, D] each."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines of each position id, [positions, D / 2], in the model's dtype."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, hf: Any, num_positions: int, like: Tensor) -> Rotation:
        """From the model's own rotary embedding, whatever its kind; both halves of it are the same."""
        positions = torch.arange(num_positions, device=like.device)[None]
        cos, sin = hf.model.rotary_emb(like, positions)  # [1, positions, D]
        half = cos.shape[-1] // 2
        return cls(cos[0, :, :half], sin[0, :, :half])

    def at(self, positions: Tensor | slice) -> Rotation:
        return Rotation(self.cos[positions], self.sin[positions])

    def turn(self, x: Tensor) -> Tensor:
        """Rotate `x` [R, N, heads, D], whose tokens are those this rotation was taken at."""
        cos, sin = self.cos[:, None], self.sin[:, None]  # [N, 1, D / 2]
        half = x.shape[-1] // 2
        first, second = x[..., :half], x[..., half:]
        out = torch.empty_like(x)
        torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
        return out


def run_block(
    block: Any,
    stream: Tensor,
    packing: Packing,
    rotation: Rotation,
    chunk: int,
    queries: Queries = "all",
    trunk: KeyValues | None = None,
    keep: bool = False,
) -> tuple[Tensor, KeyValues | None]:
    """Pass `stream` [R, N, H] (contiguous) through `block`, `chunk` tokens at a time.

    Returns the stream, updated in place, or a new one of the segments' ends [R, S, H] (empty for no queries); and, with
    `keep`, the keys and values of its only row. `trunk` holds those that segments with a prefix continue.
    """
    taken = rotation.at(packing.positions)
    made: list[KeyValues] = []
    ends: list[Tensor] = []
    for piece in packing.pieces(stream.shape[0], chunk):
        x = stream[piece.rows, piece.tokens]
        tail, key_values = _run_piece(block, x, piece, taken.at(piece.tokens), queries, trunk, keep)
        if key_values is not None:
            made.append(key_values)
        if queries == "ends":
            ends.append(tail)
    kept = KeyValues(torch.cat([k.keys for k in made]), torch.cat([k.values for k in made])) if keep else None
    if queries == "all":
        return stream, kept
    if not ends:
        return stream[:, :0], kept
    by_rows = ends[0].shape[1] == len(packing.ends)  # else each row was cut into parts
    joined = torch.cat(ends) if by_rows else torch.cat(ends, dim=1).view(stream.shape[0], -1, stream.shape[-1])
    return joined, kept


def _run_piece(
    block: Any, x: Tensor, piece: Piece, rotation: Rotation, queries: Queries, trunk: KeyValues | None, keep: bool
) -> tuple[Tensor, KeyValues | None]:
    """One piece `x` [R, N, H] through one block; in place with all queries, else the ends come back as a new tensor."""
    at = _ends(piece, x.device) if queries == "ends" else None
    attended, key_values = _self_attention(block, x, piece, rotation, queries, at, trunk, keep)
    if attended is None:
        return x[:, :0], key_values
    if at is not None:
        x = x[:, at]
    x += attended
    del attended  # all that attention made is free again before the MLP takes memory
    x += block.mlp(block.post_attention_layernorm(x))
    return x, key_values


def _self_attention(
    block: Any,
    x: Tensor,
    piece: Piece,
    rotation: Rotation,
    queries: Queries,
    at: Tensor | None,
    trunk: KeyValues | None,
    keep: bool,
) -> tuple[Tensor | None, KeyValues | None]:
    """What the attention of `block` adds to `x`, at the tokens `at` if they are given (None for no queries), and, to
    keep, the keys and values of the piece's only row."""
    attention = block.self_attn
    idle = isinstance(attention, IdleAttention)  # a rank without heads
    if idle:
        attention = attention.attention
    normed = block.input_layernorm(x)
    keys = attention.k_proj(normed).unflatten(-1, (-1, attention.head_dim))
    if not idle:
        keys = rotation.turn(attention.k_norm(keys))
    values = attention.v_proj(normed).unflatten(-1, (-1, attention.head_dim))
    kept = KeyValues(keys[0], values[0]) if keep else None
    if queries == "none":
        return None, kept
    if at is not None:
        normed, rotation = normed[:, at], rotation.at(at)
    if idle:
        return attention.o_proj(normed.new_empty(*normed.shape[:-1], 0)), kept
    wanted = attention.q_norm(attention.q_proj(normed).unflatten(-1, (-1, attention.head_dim)))
    context = _attend(rotation.turn(wanted), keys, values, piece.runs, trunk, attention.scaling, at is not None)
    return attention.o_proj(context), kept


def _ends(piece: Piece, device: torch.device) -> Tensor:
    ends = [run.start + (i + 1) * run.length - 1 for run in piece.runs for i in range(run.count)]
    return torch.tensor(ends, device=device)


def _attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    runs: tuple[Run, ...],
    trunk: KeyValues | None,
    scale: float,
    ends_only: bool,
) -> Tensor:
    """Causal attention of every segment over itself and the prefix it continues.

    `queries` [R, N, h, D], or [R, S, h, D] of the segments' ends; `keys`, `values` [R, N, g, D]. Returns
    [R, N or S, h * D].
    """
    parts = []
    first = 0
    for run in runs:
        stop = first + run.count * (1 if ends_only else run.length)
        q = queries[:, first:stop].unflatten(1, (run.count, -1))  # [R, count, length or 1, h, D]
        k = keys[:, run.start : run.stop].unflatten(1, (run.count, -1))
        v = values[:, run.start : run.stop].unflatten(1, (run.count, -1))
        if run.prefix:
            assert trunk is not None
            parts.append(_attend_behind(q, k, v, run, trunk, scale, ends_only))
        else:
            parts.append(_attend_whole(q, k, v, scale, ends_only))
        first = stop
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _attend_whole(q: Tensor, k: Tensor, v: Tensor, scale: float, ends_only: bool) -> Tensor:
    """Segments from their first token on: [R, count, length, heads, D] to [R, count * length, h * D]."""
    shared = q.shape[3] != k.shape[3]  # several query heads read one key/value head
    query, key, value = (x.flatten(0, 1).transpose(1, 2) for x in (q, k, v))  # [R * count, heads, length, D]
    out = functional.scaled_dot_product_attention(
        query, key, value, is_causal=not ends_only, scale=scale, enable_gqa=shared
    )
    return out.transpose(1, 2).reshape(q.shape[0], -1, q.shape[3] * q.shape[4])


def _attend_behind(
    q: Tensor, k: Tensor, v: Tensor, run: Run, trunk: KeyValues, scale: float, ends_only: bool
) -> Tensor:
    """Segments behind a prefix, in float32: the queries of all rows of one segment are one product with the prefix's
    keys, which no row copies; the segment's own keys, few, differ from row to row."""
    rows, count, width, heads, size = q.shape
    groups = k.shape[3]
    each = heads // groups
    span = slice(run.trunk_start, run.trunk_start + run.count * run.trunk_length)
    prefix_k, prefix_v = (
        x[span].unflatten(0, (count, -1))[:, : run.prefix].to(torch.float32).transpose(1, 2)  # [count, g, prefix, D]
        for x in (trunk.keys, trunk.values)
    )
    q = q.to(torch.float32) * scale
    q = q.reshape(rows, count, width, groups, each, size).permute(1, 3, 0, 4, 2, 5)  # [count, g, R, each, width, D]
    own_k, own_v = (x.to(torch.float32).permute(1, 3, 0, 2, 4) for x in (k, v))  # [count, g, R, length, D]
    behind = (q.flatten(2, 4) @ prefix_k.mT).view(*q.shape[:-1], run.prefix)
    own = (q.flatten(3, 4) @ own_k.mT).view(*q.shape[:-1], run.length)
    if not ends_only:
        future = torch.ones(width, run.length, dtype=torch.bool, device=q.device).triu(1)
        own = own.masked_fill(future, -torch.inf)
    weights = torch.cat([behind, own], dim=-1).softmax(dim=-1)
    out = (weights[..., : run.prefix].flatten(2, 4) @ prefix_v).view(q.shape)
    out += (weights[..., run.prefix :].flatten(3, 4) @ own_v).view(q.shape)
    out = out.permute(2, 0, 4, 1, 3, 5).reshape(rows, count * width, heads * size)
    return out.to(trunk.keys.dtype)
