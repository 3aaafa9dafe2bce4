"""Bytes on the fullest rank of a replica.

Flows in: a model's sizes, its workload, a rank count. Flows out: `RankMemory`.

Weights are counted tensor by tensor with the cuts of `engine.layout`. What the branching sweep holds at once was read
from the code and checked against the allocations of the real sweep (a test keeps it there). No cache of keys and values
is kept: those of one block live while it runs. While a block runs, these are alive, in the model's dtype, a token:

    4 H               the stream before and after the branches were appended, the residual, the normed input
    5 a + 2 b, or     in attention, a the width of the rank's query heads and b of its key/value heads (queries before
    3 a + 4 b         and after norm and rotation, the output; keys and values, with copies)
    3 I               in a dense MLP of which the rank holds the width I
    K (4 I + H), or   in experts: all K copies of a token are laid out on every rank, foreign ones included
    4 K H             (and some bytes of routing)

and in a norm 12 H bytes, three copies in float32. Allocators round and split; `RESERVE_BYTES` stands for that, for the
CUDA context and the buffers of collectives.

Legend: H hidden, K experts a token, I width of an MLP or expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.engine.layout import MLP_GRAIN, even_widths, rank_params
from pipeline.planning.workload import ModelSizes, Workload, rank_heads

RESERVE_BYTES = 2_000_000_000
ITEM_BYTES = {"float32": 4, "bfloat16": 2}
_VOCABULARY_SLICE = 16_384  # of the head, upcast at a time (engine.readout)


@dataclass(frozen=True)
class RankMemory:
    """Bytes on the fullest rank, at the least batch the sweep can take: one prompt and all its branches.

    `kv` is the part of `block` that keys and values of one block are. Readout comes after the blocks, so the larger of
    the two counts.
    """

    weights: int
    directions: int
    stream: int
    block: int
    kv: int
    readout: int
    reserve: int = RESERVE_BYTES

    @property
    def working(self) -> int:
        """All that is not weights or reserve."""
        return self.directions + max(self.stream + self.block, self.readout)

    @property
    def total(self) -> int:
        return self.weights + self.working + self.reserve


def params_by_rank(sizes: ModelSizes, num_ranks: int) -> list[int]:
    """`layout.rank_params`, from one block of each kind instead of all of them (a hundred times faster at 94 blocks of
    128 experts)."""

    def params(num_layers: int, sparse: bool) -> list[int]:
        dense = [] if sparse else list(range(num_layers))
        few = {"num_hidden_layers": num_layers, "mlp_only_layers": dense, "decoder_sparse_step": 1}
        return rank_params({**sizes.config, **few}, num_ranks)

    num_dense = sizes.facts.num_layers - sizes.num_sparse
    one = params(1, sparse=False)
    dense = [two - first for two, first in zip(params(2, sparse=False), one, strict=True)]
    outside = [first - block for first, block in zip(one, dense, strict=True)]
    sparse = dense
    if sizes.num_sparse:
        sparse = [first - rest for first, rest in zip(params(1, sparse=True), outside, strict=True)]
    return [
        rest + num_dense * dense_block + sizes.num_sparse * sparse_block
        for rest, dense_block, sparse_block in zip(outside, dense, sparse, strict=True)
    ]


def rank_memory(sizes: ModelSizes, work: Workload, dtype: Literal["float32", "bfloat16"], num_ranks: int) -> RankMemory:
    """Memory of the fullest of `num_ranks` ranks, for the least batch, or for the token budget the study asks for."""
    facts, item = sizes.facts, ITEM_BYTES[dtype]
    tokens = tokens_at_once(work)
    _, kv_heads = rank_heads(facts, num_ranks)
    rows = work.rows_read * max(1, tokens // (work.rows_per_prompt * work.lengths.longest))
    vocabulary = min(max(even_widths(facts.vocab_size, num_ranks)), _VOCABULARY_SLICE)
    return RankMemory(
        weights=item * max(params_by_rank(sizes, num_ranks)),
        directions=item * facts.num_layers * work.num_branches * facts.hidden_size,
        stream=tokens * item * 4 * facts.hidden_size,
        block=tokens * _block_bytes(sizes, item, num_ranks),
        kv=tokens * item * 2 * kv_heads * facts.head_dim,
        readout=4 * (vocabulary * facts.hidden_size + rows * (2 * vocabulary + 8 * facts.hidden_size)),
    )


def tokens_at_once(work: Workload) -> int:
    """Tokens that must go through the last block at once: the longest prompt with all its branches, or the study's own
    budget where that is more and a batch fills it."""
    least = work.rows_per_prompt * work.lengths.longest
    return max(least, min(work.token_budget, work.batch_size * least))


def token_bytes(sizes: ModelSizes, dtype: Literal["float32", "bfloat16"], num_ranks: int) -> int:
    """Bytes alive for each token that goes through a block."""
    item = ITEM_BYTES[dtype]
    return item * 4 * sizes.facts.hidden_size + _block_bytes(sizes, item, num_ranks)


def _block_bytes(sizes: ModelSizes, item: int, num_ranks: int) -> int:
    """Bytes a token that a block takes beside the stream, in whichever of its parts takes most."""
    facts = sizes.facts
    heads, kv_heads = rank_heads(facts, num_ranks)
    queries, keys = heads * facts.head_dim, kv_heads * facts.head_dim
    parts = [
        max(5 * queries + 2 * keys, 3 * queries + 4 * keys),
        12 * facts.hidden_size // item,
    ]
    if sizes.num_sparse < facts.num_layers:
        parts.append(3 * max(even_widths(sizes.mlp_width, num_ranks, MLP_GRAIN)))
    if sizes.num_sparse:
        copies = facts.num_experts_per_token
        routing = (32 * copies + 8 * facts.num_experts) // item  # probabilities, sorted indexes
        parts.append(copies * max(4 * sizes.expert_width + facts.hidden_size, 4 * facts.hidden_size) + routing)
    return item * max(parts)
