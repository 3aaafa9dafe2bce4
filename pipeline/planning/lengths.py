"""Tokens of the study's prompts.

Flows in: prompts and, where there is one at hand, the folder of a tokenizer. Flows out: `PromptLengths`. With a
tokenizer the counts are those of `engine.tokens.PromptEncoder` (a test compares them); it is read with the `tokenizers`
package alone, because transformers would bring torch along. Without one they are estimated from characters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import TokenizerError
from pipeline.prompts import Prompt
from pipeline.protocols import AnswerForm, ReadPosition

# Under Qwen3's tokenizer the 650 shipped prompts have 4.00 characters a token on average, single ones 3.53 to 4.68.
CHARACTERS_PER_TOKEN = 4.0
TEMPLATE_TOKENS = 12  # of Qwen3's chat template around the user's text, thinking off
TEMPLATE_SUFFIX = 9  # of those, behind the text


@dataclass(frozen=True)
class PromptLengths:
    """Tokens of each row that goes through a model: `train`, two rows a pair, with the answer; `test`, one a prompt,
    up to the answer; `suffix`, how many of a test prompt's tokens come behind the user's text; `answer`, how many of a
    train row's the two sides do not share. `exact` is False where they are estimated."""

    train: tuple[int, ...]
    test: tuple[int, ...]
    suffix: tuple[int, ...]
    answer: int
    exact: bool

    @property
    def longest(self) -> int:
        return max(*self.train, *self.test)


def prompt_lengths(
    train: Sequence[Prompt],
    test: Sequence[Prompt],
    answer_form: AnswerForm,
    read_position: ReadPosition,
    tokenizer: Path | None,
) -> PromptLengths:
    """Lengths of the prompts under a protocol; `tokenizer` is the folder of one, or None to estimate."""
    texts = [prompt.text for prompt in (*train, *test)]
    prefill = "(" if answer_form == "A" else ""
    answer = 1 if read_position == "answer_letter" else 2  # "(A" alone, or "(A" and ")"
    prompts = _estimated(texts, prefill) if tokenizer is None else _counted(texts, prefill, tokenizer)
    pairs = [length + answer for length, _ in prompts[: len(train)] for _side in range(2)]
    lengths, suffixes = zip(*prompts[len(train) :], strict=True) if test else ((), ())
    return PromptLengths(tuple(pairs), lengths, suffixes, answer, tokenizer is not None)


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` holds a tokenizer with a chat template."""
    return (folder / "tokenizer.json").is_file() and _template(folder) is not None


def _estimated(texts: Sequence[str], prefill: str) -> list[tuple[int, int]]:
    """Tokens of each rendered text, and of what follows the text in it."""
    behind = TEMPLATE_SUFFIX + len(prefill)
    around = TEMPLATE_TOKENS - TEMPLATE_SUFFIX + behind
    return [(around + round(len(text) / CHARACTERS_PER_TOKEN), behind) for text in texts]


def _counted(texts: Sequence[str], prefill: str, folder: Path) -> list[tuple[int, int]]:
    """The same, counted with the tokenizer in `folder`."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string(_template(folder) or "")
        rendered = [
            template.render(
                messages=[{"role": "user", "content": text}],
                add_generation_prompt=True,
                enable_thinking=False,
            )
            + prefill
            for text in texts
        ]
    except Exception as error:
        raise TokenizerError(f"the tokenizer in {folder} cannot be read ({error}); fetch it again") from error
    encodings = tokenizer.encode_batch(rendered, add_special_tokens=False)
    ends = [whole.rindex(text) + len(text) for whole, text in zip(rendered, texts, strict=True)]
    return [
        (len(encoding), max(1, sum(start >= end for start, _ in encoding.offsets)))
        for encoding, end in zip(encodings, ends, strict=True)
    ]


def _template(folder: Path) -> str | None:
    """The chat template of the tokenizer in `folder`, or None where it has none that can be read."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    try:
        config: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    template = config.get("chat_template")
    return template if isinstance(template, str) else None
