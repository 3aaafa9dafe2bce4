"""What all sides work on: one model with random weights, ragged prompts, contrastive pairs, the published grid.

Flows in: a shape's name, a dtype, counts, a seed. Flows out: a `Workload`, the same for the same arguments. Nothing is
written or downloaded. Speed does not depend on what the weights are, so random ones of a true shape will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.engine.checkpoint import Checkpoint
from pipeline.engine.model import DtypeName, Model
from pipeline.engine.tokens import EncodedAnswer, EncodedPrompt

_QWEN3 = {
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "max_position_embeddings": 40_960,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
}
_TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # wide enough that every layer, position and expert moves the logits
}
_EXPERTS = {"num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 768, "norm_topk_prob": True}
_TINY_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "0.6b": ("qwen3", _QWEN3),
    "moe": ("qwen3_moe", {**_QWEN3, "num_hidden_layers": 24, **_EXPERTS}),  # 4 x 768 at work: a token's cost as 0.6b's
    "tiny": ("qwen3", {**_QWEN3, **_TINY}),
    "tiny-moe": ("qwen3_moe", {**_QWEN3, **_TINY, **_EXPERTS, **_TINY_EXPERTS}),
}
STRENGTHS = (-1.0, 0.0, 1.0)
FIRST_LAYER_FRACTION = 0.33
SUFFIX = 10  # tokens of a prompt that count as its suffix
PAD = 0


@dataclass(frozen=True)
class Workload:
    """`model` wraps `hf` for the engine. `matching[i]` and `other[i]` are the two sides of pair i. `tokenizer` turns
    `text(ids)` back into exactly `ids` and pads on the left, for libraries that take text only."""

    hf: Any
    model: Model
    tokenizer: Any
    prompts: list[EncodedPrompt]
    matching: list[EncodedAnswer]
    other: list[EncodedAnswer]
    answer_ids: tuple[int, int]
    layers: tuple[int, ...]
    strengths: tuple[float, ...]

    @staticmethod
    def text(ids: Sequence[int]) -> str:
        """The text that `tokenizer` turns into `ids`."""
        return " ".join(_word(i) for i in ids)


def make_workload(
    shape: str = "0.6b",
    dtype: DtypeName = "float32",
    prompts: int = 32,
    pairs: int = 32,
    seed: int = 0,
    device: str = "cpu",
    lengths: tuple[int, int] = (60, 100),
) -> Workload:
    """The workload of `shape`; prompt lengths are drawn from `lengths`, both ends included."""
    model_type, values = SHAPES[shape]
    hf = make_model(model_type, values, dtype, seed, device)
    vocab = int(values["vocab_size"])
    tokenizer = make_tokenizer(vocab)
    generator = torch.Generator().manual_seed(seed)
    answer_ids = (vocab - 2, vocab - 1)

    def draw(count: int) -> list[tuple[int, ...]]:
        sizes = torch.randint(lengths[0], lengths[1] + 1, (count,), generator=generator).tolist()
        return [tuple(torch.randint(1, vocab - 2, (size,), generator=generator).tolist()) for size in sizes]

    questions = draw(pairs)
    sides = [
        [EncodedAnswer((*ids, answer), len(ids)) for ids, answer in zip(questions, answers, strict=True)]
        for answers in ([answer_ids[i % 2] for i in range(pairs)], [answer_ids[1 - i % 2] for i in range(pairs)])
    ]
    config = {**hf.config.to_dict(), "model_type": model_type}
    num_layers = int(values["num_hidden_layers"])
    return Workload(
        hf=hf,
        model=Model(f"random-{shape}", hf, tokenizer, Checkpoint(Path(), config, {}, f"random-{shape}-{seed}")),
        tokenizer=tokenizer,
        prompts=[EncodedPrompt(ids, len(ids) - SUFFIX) for ids in draw(prompts)],
        matching=sides[0],
        other=sides[1],
        answer_ids=answer_ids,
        layers=tuple(range(int(FIRST_LAYER_FRACTION * num_layers), num_layers)),
        strengths=STRENGTHS,
    )


def make_model(model_type: str, values: dict[str, Any], dtype: DtypeName, seed: int, device: str) -> Any:
    """A transformers model with weights drawn as transformers draws them, ready for inference."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **values, pad_token_id=PAD, bos_token_id=None, eos_token_id=PAD)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    hf.requires_grad_(False)
    return hf.to(device).eval()


def make_tokenizer(vocab: int) -> Any:
    """A fast tokenizer with one word for each token id, split at spaces, padding on the left."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({_word(i): i for i in range(vocab)}, unk_token=_word(PAD)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": _word(PAD), "eos_token": _word(PAD), "unk_token": _word(PAD)}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)


def _word(token: int) -> str:
    return "<pad>" if token == PAD else f"t{token}"
