"""Prompts in formats that researchers have, read into questions with two lettered choices.

Flows in: a file of one FORMATS. Flows out: an `Item` for each question that a prompt row can say, and an `ItemReject`
for each other one, with its reason.

    anthropic-evals  model-written evals: JSON lines of question, answer_matching_behavior, answer_not_matching_behavior
    caa              contrastive activation addition: a JSON list of the same
    study-pairs      a JSON list of prompt, positive, negative (the prompt and an answer after it)
    study-eval       a JSON list of prompt, matching_answer, not_matching_answer

A prompt row has two choices, A and B. An item with more is rejected: to keep two of its choices would ask another
question, and to score its letter as B would answer none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PromptError
from pipeline.imports.options import ImportFormat
from pipeline.prompts import LETTERS, Letter, Prompt


@dataclass(frozen=True)
class Item:
    """One question of the file; `number` is its line (JSON lines) or its place in the list, from 1."""

    number: int
    question: str
    choices: tuple[str, str]
    matching: Letter
    respelt: bool  # as a prompt row it reads otherwise than in the file: white space, heading, "Answer:"


@dataclass(frozen=True)
class ItemReject:
    """One item of the file that was not taken."""

    number: int
    field: str
    value: str
    reason: str


@dataclass(frozen=True)
class _Raw:
    """What a format says of an item: its text with choices, and the two answers."""

    field: str
    text: str
    answers: dict[str, str]  # field -> answer; the matching one first


class _RejectError(Exception):
    """Field, value and reason of an item that cannot be taken."""

    def __init__(self, field: str, value: object, reason: str) -> None:
        super().__init__(field, value, reason)
        shown = value if isinstance(value, str) else json.dumps(value)
        self.field, self.value, self.reason = field, shown[:500], reason


_CHOICE = re.compile(r"[ \t]*\(([A-Z])\)[ \t]*(.*)")
_HEADING = re.compile(r"(?:^|\n)[ \t]*(?:answer )?(?:choices|options|answers)[ \t]*:?\s*$", re.IGNORECASE)
_CALL = re.compile(r"\s*\n\s*answer[ \t]*:[ \t]*\(?\s*$", re.IGNORECASE)  # "Answer:" after the choices
_ANSWER = re.compile(r"\s*\(?([A-Z])\)?\s*")


def read_items(path: Path, form: ImportFormat) -> tuple[list[Item], list[ItemReject]]:
    """The items of a file and its rejects, both in file order. Raises PromptError where it is no file of this form."""
    items, rejects = [], []
    for number, record in _records(path, form):
        try:
            if isinstance(record, _RejectError):
                raise record
            items.append(_item(number, _RAW[form](record)))
        except _RejectError as reject:
            rejects.append(ItemReject(number, reject.field, reject.value, reject.reason))
    if not items and not rejects:
        raise PromptError(f"{path}: holds no item")
    return items, rejects


# --- file to records -----------------------------------------------------------------------------------------


def _records(path: Path, form: ImportFormat) -> Iterator[tuple[int, Any]]:
    """Number and JSON value of each item; a line that is no JSON is a _RejectError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}: is not valid UTF-8 at byte {error.start}; save it as UTF-8") from error
    except OSError as error:
        raise PromptError(f"{path}: cannot be read ({error.strerror}); give one file of prompts") from error
    if form is ImportFormat.anthropic_evals:
        if text.lstrip().startswith("["):
            raise PromptError(f"{path}: is a JSON list, not JSON lines; import it as {ImportFormat.caa}")
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield number, _RejectError("", line, f"is not valid JSON ({error})")
        return
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptError(
            f"{path}: is not valid JSON ({error}); {form} is one JSON list, JSON lines are "
            f"{ImportFormat.anthropic_evals}"
        ) from error
    if not isinstance(records, list):
        raise PromptError(f"{path}: is not a JSON list; {form} is a list of objects")
    yield from enumerate(records, start=1)


# --- record to text and answers ------------------------------------------------------------------------------


def _field(record: Any, name: str) -> str:
    if not isinstance(record, dict):
        raise _RejectError("", record, "is not a JSON object")
    if name not in record:
        raise _RejectError(name, "", f"is missing; the item has {', '.join(record) or 'no field'}")
    if not isinstance(record[name], str):
        raise _RejectError(name, record[name], "is not a string")
    return record[name]


def _with_behavior(record: Any) -> _Raw:
    fields = ("answer_matching_behavior", "answer_not_matching_behavior")
    return _Raw("question", _field(record, "question"), {name: _field(record, name) for name in fields})


def _with_answers(record: Any) -> _Raw:
    fields = ("matching_answer", "not_matching_answer")
    return _Raw("prompt", _field(record, "prompt"), {name: _field(record, name) for name in fields})


def _with_sides(record: Any) -> _Raw:
    prompt = _field(record, "prompt")
    answers = {}
    for name in ("positive", "negative"):
        text = _field(record, name)
        if not text.startswith(prompt):
            raise _RejectError(name, text, "does not begin with the item's prompt")
        answers[name] = text[len(prompt) :]
    return _Raw("prompt", prompt, answers)


_RAW: dict[ImportFormat, Callable[[Any], _Raw]] = {
    ImportFormat.anthropic_evals: _with_behavior,
    ImportFormat.caa: _with_behavior,
    ImportFormat.study_pairs: _with_sides,
    ImportFormat.study_eval: _with_answers,
}


# --- text and answers to an item -----------------------------------------------------------------------------


def _item(number: int, raw: _Raw) -> Item:
    question, choices = _split_choices(raw)
    letters = [_letter(name, answer, choices) for name, answer in raw.answers.items()]
    if letters[0] == letters[1]:
        raise _RejectError(next(iter(raw.answers)), letters[0], "is the answer on both sides")
    if len(choices) != len(LETTERS):
        last = list(choices)[-1]
        named = f"{len(choices)} choices (A to {last})" if len(choices) > 1 else "one choice"
        raise _RejectError(raw.field, raw.text, f"has {named}; a prompt row holds two, and dropping some asks another")
    matching: Letter = "A" if letters[0] == "A" else "B"
    shown = Prompt("", "", "", question, (choices["A"], choices["B"]), matching).text
    return Item(number, question, (choices["A"], choices["B"]), matching, respelt=shown != raw.text)


def _split_choices(raw: _Raw) -> tuple[str, dict[str, str]]:
    """The question, and letter -> text of the choices: the last lines that count up from (A)."""
    lines = _CALL.sub("", raw.text).rstrip().split("\n")
    found = [match for line in lines if (match := _CHOICE.fullmatch(line))]
    starts = [i for i, line in enumerate(lines) if (match := _CHOICE.fullmatch(line)) and match[1] == "A"]
    if not starts:
        reason = "has no lettered choices" if not found else "has choices, but none is (A)"
        raise _RejectError(raw.field, raw.text, f"{reason}, one a line as in (A) yes")
    choices: dict[str, str] = {}
    for line in lines[starts[-1] :]:
        match = _CHOICE.fullmatch(line)
        expected = chr(ord("A") + len(choices))
        if match is None:
            if line.strip():
                raise _RejectError(
                    raw.field, raw.text, f"goes on after choice {list(choices)[-1]}: {line.strip()[:80]!r}"
                )
        elif match[1] != expected:
            raise _RejectError(raw.field, raw.text, f"has choice ({match[1]}) where ({expected}) should be")
        else:
            choices[expected] = match[2].rstrip()
    question = "\n".join(lines[: starts[-1]])
    return _HEADING.sub("", question).rstrip(), choices


def _letter(field: str, answer: str, choices: dict[str, str]) -> str:
    match = _ANSWER.fullmatch(answer)
    if match is None:
        raise _RejectError(field, answer, "is not a letter such as (A)")
    if match[1] not in choices:
        raise _RejectError(field, answer, f"is none of the choices {', '.join(choices)}")
    return match[1]
