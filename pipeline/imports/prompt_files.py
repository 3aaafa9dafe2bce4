"""Imported prompts into a concept folder: `train.jsonl`, `test.jsonl` or both, and beside them what was rejected.

Flows in: a file of prompts in one of the formats, the folder, and which split or what share of each. Flows out: files
that `pipeline.prompts` reads without a fault, `<splits>.rejects.jsonl`, and a `PromptSummary`. Items in are rows and
rejects out, none lost.

Written whole or not at all: the files are checked in a temporary folder as a study would check them, then moved.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import PromptError, UserError
from pipeline.imports.options import ImportFormat
from pipeline.imports.prompt_items import Item, ItemReject, read_items
from pipeline.prompts import SPLITS, Concept, Split, parse_row, read_concept, read_split
from pipeline.warehouse.layout import PartitionKey

TRAIN_SHARE = 0.6
_SPLIT_OF: dict[ImportFormat, Split] = {ImportFormat.study_pairs: "train", ImportFormat.study_eval: "test"}


@dataclass(frozen=True)
class SplitOptions:
    """`split` puts every item there; without it `train_share` of the items go to train and the others to test, drawn
    with `seed`, alike for both letters. With neither, the study's formats are the split that they were, and the
    others are divided at 0.6. `replace` overwrites files with other content."""

    split: Split | None = None
    train_share: float | None = None
    seed: int = 0
    replace: bool = False


@dataclass(frozen=True)
class PromptSummary:
    """What one import did; `unchanged` if the files were there already."""

    folder: Path
    num_items: int
    num_rows: dict[str, int]  # split -> rows
    num_respelt: int
    rejects: list[ItemReject]
    rejects_file: Path
    unchanged: bool


def import_prompts(path: Path, form: ImportFormat, folder: Path, options: SplitOptions) -> PromptSummary:
    """Import the prompts of `path` as the concept `folder`; its name is the concept's. Raises PromptError, with
    nothing written, where the file is of another form or no sound split comes of it."""
    concept = Concept(folder.resolve().name, folder)
    PartitionKey("import", "prompts", concept=concept.name)  # raises on a name that the warehouse cannot have
    if options.split is not None and options.train_share is not None:
        raise UserError("--split and --train-share exclude each other: all into one split, or a share into each")
    share = options.train_share
    if share is not None and not 0 < share < 1:
        raise UserError(f"--train-share {share:g}: give a number between 0 and 1, such as 0.6")
    split = options.split or (_SPLIT_OF.get(form) if share is None else None)
    items, rejects = read_items(path, form)
    num_items = len(items) + len(rejects)
    of_other = _questions_of_the_other(concept, split) if split else {}
    items, more = _distinct(items, of_other)
    rejects += more
    splits = {split: items} if split else _divided(items, TRAIN_SHARE if share is None else share, options.seed)
    files: dict[str, bytes] = {}
    num_rows: dict[str, int] = {}
    num_respelt = 0
    for name, mine in splits.items():
        rows, more = _rows(mine, concept.name, name)
        rejects += more
        refused = {reject.number for reject in more}
        num_respelt += sum(item.respelt for item in mine if item.number not in refused)
        files[f"{name}.jsonl"] = "".join(f"{row}\n" for row in rows).encode()
        num_rows[name] = len(rows)
    rejects.sort(key=lambda reject: reject.number)
    assert num_items == sum(num_rows.values()) + len(rejects), "an item was lost"
    _check(files, concept, rejects, path)
    rejects_name = f"{'-'.join(splits)}.rejects.jsonl"
    lines = [json.dumps({"file": path.name} | asdict(reject), ensure_ascii=False) for reject in rejects]
    files[rejects_name] = "".join(f"{line}\n" for line in lines).encode()
    written = _write(files, folder, options.replace)
    return PromptSummary(folder, num_items, num_rows, num_respelt, rejects, folder / rejects_name, not written)


def _folded(text: str) -> str:
    """Case and white space evened out, as `pipeline.prompts` compares questions."""
    return " ".join(text.split()).casefold()


def _questions_of_the_other(concept: Concept, split: Split) -> dict[str, str]:
    """Folded question -> prompt id of the split that is there already and stays."""
    other = SPLITS[1 - SPLITS.index(split)]
    if not concept.file(other).is_file():
        return {}
    return {_folded(prompt.question): prompt.id for prompt in read_split(concept, other)}


def _distinct(items: list[Item], of_other: dict[str, str]) -> tuple[list[Item], list[ItemReject]]:
    """Items that are not in the file twice, nor in the concept's other split."""
    kept, rejects = [], []
    seen: dict[tuple[str, ...], Item] = {}
    for item in items:
        answers = dict(zip("AB", item.choices, strict=True))
        content = (_folded(item.question), *sorted(map(_folded, item.choices)))
        first = seen.setdefault(content, item)
        if (other := of_other.get(_folded(item.question))) is not None:
            rejects.append(_reject(item, f"is also the question of {other} in the concept's other split"))
        elif first is not item:
            same = _folded(answers[item.matching]) == _folded(first.choices["AB".index(first.matching)])
            but = "" if same else ", with the other answer as the matching one"
            rejects.append(_reject(item, f"is a repeat of item {first.number}{but}"))
        else:
            kept.append(item)
    return kept, rejects


def _reject(item: Item, reason: str) -> ItemReject:
    return ItemReject(item.number, "question", item.question[:500], reason)


def _divided(items: list[Item], share: float, seed: int) -> dict[Split, list[Item]]:
    """`share` of the items to train, drawn for each letter apart; the same question stays on one side."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(_folded(item.question), []).append(item)
    draw = random.Random(seed)
    train: set[int] = set()
    for letter in "AB":
        mine = [group for group in groups.values() if group[0].matching == letter]
        draw.shuffle(mine)
        train |= {item.number for group in mine[: round(share * len(mine))] for item in group}
    return {
        "train": [item for item in items if item.number in train],
        "test": [item for item in items if item.number not in train],
    }


def _rows(items: list[Item], concept: str, split: str) -> tuple[list[str], list[ItemReject]]:
    """Prompt rows as JSON; an item whose row would not pass is rejected with that fault."""
    rows, rejects = [], []
    for item in items:
        row = {
            "id": f"{concept}-{split}-{item.number:04d}",
            "question": item.question,
            "choices": list(item.choices),
            "matching": item.matching,
        }
        line = json.dumps(row, ensure_ascii=False)
        faults = parse_row(line, concept, split, "", item.number).faults
        if faults:
            field = "" if faults[0].field == "question" else f"{faults[0].field} "
            rejects.append(_reject(item, f"{field}{faults[0].message}"))
        else:
            rows.append(line)
    return rows, rejects


def _check(files: dict[str, bytes], concept: Concept, rejects: list[ItemReject], path: Path) -> None:
    """Read the files as a study would, together with the split that is there already."""
    with tempfile.TemporaryDirectory() as scratch:
        trial = Concept(concept.name, Path(scratch) / concept.name)
        trial.folder.mkdir()
        present = [split for split in SPLITS if f"{split}.jsonl" not in files and concept.file(split).is_file()]
        for split in present:
            trial.file(split).write_bytes(concept.file(split).read_bytes())
        for name, content in files.items():
            (trial.folder / name).write_bytes(content)
        try:
            if all(trial.file(split).is_file() for split in SPLITS):
                read_concept(trial)
            else:
                read_split(trial, next(iter(files)).removesuffix(".jsonl"))
        except PromptError as error:
            first = (
                f"; first of {len(rejects)} rejects: item {rejects[0].number}, {rejects[0].reason}" if rejects else ""
            )
            message = str(error).replace(str(trial.folder), str(concept.folder))
            raise PromptError(f"{path}: no sound prompt file comes of it: {message}{first}") from error


def _write(files: dict[str, bytes], folder: Path, replace: bool) -> bool:
    """Write the files; an empty one is not there. Returns whether anything changed."""
    found = {name: (folder / name).read_bytes() if (folder / name).is_file() else b"" for name in files}
    changed = [name for name in files if found[name] != files[name]]
    if not changed:
        return False
    taken = [name for name in changed if found[name] and not name.endswith(".rejects.jsonl")]
    if taken and not replace:
        raise UserError(
            f"{folder / taken[0]} is there with other content; give --replace to overwrite it, or another --out"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in changed:
            if not files[name]:
                (folder / name).unlink()
                continue
            temporary = folder / f".{name}.{os.getpid()}.tmp"
            temporary.write_bytes(files[name])
            os.replace(temporary, folder / name)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}; check the folder and its space") from error
    return True


def summary_lines(summary: PromptSummary) -> Iterator[str]:
    """What the command prints."""
    rows = ", ".join(f"{count:,} {split}" for split, count in summary.num_rows.items())
    there = " (there already, nothing changed)" if summary.unchanged else ""
    yield f"{summary.folder}: {summary.num_items:,} items: {rows}, {len(summary.rejects):,} rejected{there}"
    if summary.num_respelt:
        yield (
            f"{summary.num_respelt:,} items read otherwise than in the file, for one form of all prompts: "
            "white space at line ends, the heading of the choices, a closing 'Answer:'"
        )
    if summary.rejects:
        kinds = Counter(reject.reason.split(":")[0].split(" of item")[0] for reject in summary.rejects)
        for kind, count in kinds.most_common(5):
            yield f"  {count:,} rejected: {kind}"
        yield f"every reject with its reason: {summary.rejects_file}"
    yield f"look at it with: steer data check {summary.folder}"
