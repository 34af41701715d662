"""Questions from local files, brought into the fields of the Hub's data sets.

Every function takes the path of a file (MMLU: of a folder) and raises InputError, which names the line, where
it does not have the format that its docstring gives.
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data.errors import InputError, first_line
from data.files import json_lines, read_text
from data.tasks.item import Row
from data.tasks.prompts import hellaswag_fields

NO_QUESTION = (KeyError, ValueError, TypeError, AttributeError, IndexError)
"""What reading a row that is no question of its task raises."""


def arc(path: Path) -> list[Row]:
    """JSON lines of `question` (`stem`, `choices` of `text` and `label`) and `answerKey`."""
    return converted(
        json_lines(path),
        lambda raw: {
            "question": raw["question"]["stem"],
            "choices": _columns(raw["question"]["choices"]),
            "answerKey": raw["answerKey"],
        },
    )


def openbookqa(path: Path) -> list[Row]:
    """JSON lines as ARC's."""
    return [
        {"question_stem": row["question"], "choices": row["choices"], "answerKey": row["answerKey"]}
        for row in arc(path)
    ]


def boolq(path: Path) -> list[Row]:
    """JSON lines of `question`, `passage` and `label`: the word true or false, or the value itself."""
    labels = {"false": 0, "true": 1}
    return converted(
        json_lines(path),
        lambda raw: {
            "question": raw["question"],
            "passage": raw["passage"],
            "label": labels[str(raw["label"]).lower()],
        },
    )


def copa(path: Path) -> list[Row]:
    """JSON lines of `premise`, `choice1`, `choice2`, `question` (cause or effect) and `label` (0 or 1)."""
    fields = ("premise", "choice1", "choice2", "question", "label")
    return converted(json_lines(path), lambda raw: {field: raw[field] for field in fields})


def hellaswag(path: Path) -> list[Row]:
    """JSON lines as released (`activity_label`, `ctx_a`, `ctx_b`, `endings`, `label`), or cleaned already,
    with `query_lmeval_approx`, `endings` and `label`."""

    def convert(raw: dict[str, Any]) -> Row:
        if "ctx_a" in raw:
            return hellaswag_fields(raw)
        fields = {"query": raw["query_lmeval_approx"], "choices": raw["endings"], "label": raw["label"]}
        return {**fields, "variant": "cleaned before, capitals restored approximately"}

    return converted(json_lines(path), convert)


def piqa(path: Path) -> list[Row]:
    """JSON lines of `goal`, `sol1` and `sol2`, and beside them `…-labels.lst`, a line of 0 or 1 for each."""
    beside = path.with_name(f"{path.stem}-labels.lst")
    labels = read_text(beside).split()
    questions = list(json_lines(path))
    if len(labels) != len(questions):
        raise InputError(
            f"{beside} has {len(labels):,} labels for the {len(questions):,} questions of {path.name}: "
            "download both again"
        )
    numbered = (
        (where, {**raw, "label": label}) for (where, raw), label in zip(questions, labels, strict=True)
    )
    fields = ("goal", "sol1", "sol2")
    return converted(
        numbered,
        lambda raw: {**{field: raw[field] for field in fields}, "label": {"0": 0, "1": 1}[raw["label"]]},
    )


def winogrande(path: Path) -> list[Row]:
    """JSON lines of `sentence` with a gap `_`, `option1`, `option2` and `answer`, 1 or 2 as text."""
    fields = ("sentence", "option1", "option2", "answer")
    return converted(json_lines(path), lambda raw: {field: raw[field] for field in fields})


def mmlu(folder: Path) -> list[Row]:
    """A folder of `SUBJECT_….csv`, subject by subject: question, A, B, C, D and the letter of the right one,
    without a header."""
    files = sorted(folder.glob("*.csv")) if folder.is_dir() else []
    if not files:
        raise InputError(f"{folder} holds 0 csv files: a file for each subject is needed")
    return [row for path in files for row in _mmlu_subject(path)]


def _mmlu_subject(path: Path) -> list[Row]:
    subject = path.stem.rpartition("_")[0]
    # As text, all of it: what reads tables takes the choices "None" and "1.0" for something else.
    table = csv.reader(io.StringIO(read_text(path), newline=""))
    try:
        numbered = [(f"row {number:,} of {path}", raw) for number, raw in enumerate(table, start=1) if raw]
    except csv.Error as error:
        raise InputError(f"{path} is no csv table ({error}): download it again") from error

    def convert(raw: list[str]) -> Row:
        question, *choices, letter = raw
        if len(choices) != 4:
            raise ValueError(f"{len(raw)} columns, not 6")
        return {
            "question": question,
            "subject": subject,
            "choices": choices,
            "answer": {"A": 0, "B": 1, "C": 2, "D": 3}[letter.strip()],
        }

    return converted(numbered, convert)


def converted(rows: Iterable[tuple[str, Any]], convert: Callable[[Any], Row]) -> list[Row]:
    """Rows, which come with the words that say where they are from, in the fields of the Hub's data set."""

    def each() -> Iterator[Row]:
        for where, raw in rows:
            try:
                yield convert(raw)
            except NO_QUESTION as error:
                raise InputError(
                    f"{where} is no question of this task ({type(error).__name__}: "
                    f"{first_line(error)}): download the file again, or give one in the format that "
                    "data/tasks/local.py describes"
                ) from error

    return list(each())


def _columns(choices: list[dict[str, str]]) -> dict[str, list[str]]:
    return {name: [choice[name] for choice in choices] for name in ("text", "label")}
