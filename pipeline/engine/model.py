"""A checkpoint loaded for inference: on one device, or inside a DeepSpeed-Inference replica.

Flows in: a checked checkpoint folder, a dtype, a device. Flows out: a `Model`, the few parts of a decoder
the engine touches (embedding, blocks, final norm, head) beside its tokenizer.

Weights are read with safetensors only; `trust_remote_code` is never on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.engine.checkpoint import Checkpoint, read_checkpoint, resolve_checkpoint
from pipeline.engine.tokens import load_tokenizer, render_chat
from pipeline.errors import CheckpointError

DtypeName = Literal["float32", "bfloat16"]


@dataclass
class Model:
    """A loaded decoder. `hf` is the transformers model (DeepSpeed's engine wraps and may rewrite it in place)."""

    name: str
    hf: Any
    tokenizer: Any
    checkpoint: Checkpoint

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.hf.model.layers

    @property
    def final_norm(self) -> nn.Module:
        return self.hf.model.norm

    @property
    def head_weight(self) -> Tensor:
        """The output embedding, [vocabulary, hidden]."""
        return self.hf.lm_head.weight

    @property
    def num_layers(self) -> int:
        return len(self.hf.model.layers)

    @property
    def hidden_size(self) -> int:
        return int(self.hf.config.hidden_size)

    @property
    def max_positions(self) -> int:
        return int(self.hf.config.max_position_embeddings)

    @property
    def device(self) -> torch.device:
        return self.hf.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.hf.model.embed_tokens.weight.dtype

    def forward_blocks(self, ids: Tensor) -> Tensor:
        """Run the decoder over right-padded `ids` [R, T]; returns what leaves the final norm.

        No attention mask is passed: causal attention lets no token see the padding to its right. Position ids
        are shared by all rows ([1, T]), so that a hook on the stream may change the number of rows.
        """
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        return self.hf.model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state

    def generate(self, text: str, max_new_tokens: int = 20) -> str:
        """What the model answers to the user's message `text`, greedily, thinking off."""
        rendered = render_chat(self.tokenizer, text)
        inputs = self.tokenizer(rendered, add_special_tokens=False, return_tensors="pt").to(self.device)
        options = {"do_sample": False, "pad_token_id": self.tokenizer.pad_token_id}
        output = self.hf.generate(**inputs, max_new_tokens=max_new_tokens, **options)
        return str(self.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def load_model(path: str | Path, dtype: DtypeName = "float32", device: str = "cpu", name: str | None = None) -> Model:
    """Load the checkpoint at `path` (a local folder or a Hugging Face id) on one device, ready for inference.

    Raises CheckpointError or TokenizerError with what is wrong and the fix, before weights are read where possible.
    """
    folder = path if isinstance(path, Path) else resolve_checkpoint(path)
    checkpoint = read_checkpoint(folder)
    tokenizer = load_tokenizer(folder)
    from transformers import AutoModelForCausalLM

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise CheckpointError(f"device {device!r} asked for, but torch sees no CUDA device; use device='cpu'")
    try:
        hf = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation="sdpa",
        )
    except Exception as error:
        raise CheckpointError(f"the checkpoint in {folder} cannot be loaded ({error}); fetch it again") from error
    hf.requires_grad_(False)
    return Model(name or folder.name, hf.to(device).eval(), tokenizer, checkpoint)


def with_deepspeed(model: Model) -> Model:
    """The same model under DeepSpeed-Inference, one rank. One such model lives in a process at a time, because
    DeepSpeed keeps its process group in class state."""
    import deepspeed

    engine = deepspeed.init_inference(
        model.hf, tensor_parallel={"tp_size": 1}, dtype=model.dtype, replace_with_kernel_inject=False
    )
    return Model(model.name, engine.module, model.tokenizer, model.checkpoint)


def pad_right(rows: Sequence[Sequence[int]], device: torch.device, pad: int = 0) -> Tensor:
    """Token ids as one tensor [R, T], shorter rows padded on the right with `pad`."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)
