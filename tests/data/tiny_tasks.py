"""A folder of tasks in the formats of the released files, a few questions each, with what trips a reader."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from data.tasks import TASKS, Form

SUBJECTS = ("high_school_physics", "virology")


def lettered(texts: list[str], labels: str = "ABCDE") -> list[dict[str, str]]:
    return [{"text": text, "label": label} for text, label in zip(texts, labels, strict=False)]


def science(stem: str, choices: list[dict[str, str]], key: str) -> dict[str, object]:
    return {"id": stem[:4], "question": {"stem": stem, "choices": choices}, "answerKey": key}


ARC = [
    science("Which is a gas?", lettered(["ice", "steam", "rock", "sand"]), "B"),
    science("Which {{falls}} first?", lettered(["a feather", "ein Stück Blei", "dust"]), "C"),
    science("Who is warm?", lettered(["frog", "cat", "fish", "newt"], "1234"), "2"),
    science("How many?", lettered(["one", "two", "three", "four", "five"]), "E"),
]
OPENBOOKQA = [
    science("A stove is used to ", lettered(["cook", "sleep", "fly", "swim"]), "A"),
    science("Plants need", lettered(["light", "paint", "a ticket", "naïveté"]), " A"),
    science("The moon is", lettered(["near", "nearer still", "far", "blue"]), "C"),
]
BOOLQ = [
    {"question": "is water wet", "passage": "Water -- It is wet.", "idx": 0, "label": "true"},
    {"question": "is ice hot", "passage": "Ice -- It is cold.", "idx": 1, "label": "false"},
    {"question": "is it", "passage": "Ice -- It is cold.", "idx": 2, "label": "false"},
]
EVENTS = [
    {"premise": "It rained.", "choice1": "He got wet.", "choice2": "I slept.", "question": "effect"},
    {"premise": "She ran. ", "choice1": "Bob sat.", "choice2": "It was late.", "question": "cause"},
    {"premise": "He fell.", "choice1": "He slipped.", "choice2": "He rose.", "question": "cause"},
]
COPA = [{**event, "label": label} for event, label in zip(EVENTS, (0, 1, 0), strict=True)]
HELLASWAG = [
    {
        "query": "Baking: A man. he", "query_lmeval_approx": "Baking: A man. He", "label": 2,
        "endings": ["eats.", "runs off.", "bakes  bread.", "sits on it."],
    },
    {
        "query": "Skating: on ice", "query_lmeval_approx": "Skating: on ice", "label": 0,
        "endings": ["she falls.", "Müll.", "a dog.", "they go home."],
    },
    {
        "query": "Cooking: the", "query_lmeval_approx": "Cooking: the", "label": 1,
        "endings": ["pot", "cook", "cat", "car"],
    },
]  # fmt: skip
PIQA = [
    {"id": "a", "goal": "To dry up", "sol1": "use a towel ", "sol2": "use  sand"},
    {"id": "b", "goal": "drawer", "sol1": "pull", "sol2": "push it"},
    {"id": "c", "goal": "Cut an onion", "sol1": "Weep first", "sol2": "Use a knife, then weep"},
]
PIQA_LABELS = "0\n0\n1\n"
WINOGRANDE = [
    {"sentence": "Ann met Sue so _ left early.", "option1": "Ann", "option2": "Sue", "answer": "2"},
    {"sentence": "_ was not in the box.", "option1": "A pen", "option2": "It", "answer": "1"},
    {"sentence": "The cup hit the pot: _.", "option1": "it", "option2": "so", "answer": "2"},
]
MMLU = [
    ["What is g? ", "None", "1.0", "9.8", "nan", "C"],
    ['Is it "so",\nor not?', "yes, it is", "no", "", "both", "D"],
    ["Which one?", "x", "y", "z", "w", "A"],
]
LINES = {
    "arc/ARC-Easy-Test.jsonl": ARC,
    "arc/ARC-Easy-Dev.jsonl": ARC[:2],
    "arc/ARC-Challenge-Test.jsonl": ARC[::-1],
    "arc/ARC-Challenge-Dev.jsonl": ARC[1:],
    "boolq/val.jsonl": BOOLQ,
    "copa/val.jsonl": COPA,
    "hellaswag/validation.jsonl": HELLASWAG,
    "openbookqa/test.jsonl": OPENBOOKQA,
    "openbookqa/dev.jsonl": OPENBOOKQA[1:],
    "piqa/dev.jsonl": PIQA,
    "winogrande/dev.jsonl": WINOGRANDE,
}
TABLES = {"test": MMLU, "val": MMLU[1:], "dev": MMLU[::-1] * 2}


def write_tasks(folder: Path) -> Path:
    """All formats; the tables of MMLU for two subjects."""
    for name, rows in LINES.items():
        write_lines(folder / name, rows)
    (folder / "piqa" / "dev-labels.lst").write_text(PIQA_LABELS)
    for split, table in TABLES.items():
        for subject in SUBJECTS:
            path = folder / "mmlu" / split / f"{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(table)
    return folder


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def tiny_forms() -> dict[str, Form]:
    """The tasks with the counts of the files above."""
    counts = {name: len(rows) for name, rows in LINES.items()}
    counts |= {f"mmlu/{split}": len(SUBJECTS) * len(table) for split, table in TABLES.items()}
    forms = {}
    for name, form in TASKS.items():
        parts = {split: replace(part, count=counts[part.file]) for split, part in form.parts.items()}
        examples = form.examples and replace(form.examples, count=counts[form.examples.file])
        forms[name] = replace(form, parts=parts, examples=examples)
    return forms


def expect_tiny(patch: pytest.MonkeyPatch) -> None:
    """The counts that loaders check are those of the files above."""
    for name, form in tiny_forms().items():
        patch.setitem(TASKS, name, form)
