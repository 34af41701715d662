"""TASKS: multiple-choice tasks, one line each, from the Hub or from local files; read_task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from data.errors import InputError, first_line
from data.hub import read_rows
from data.tasks import local, prompts
from data.tasks.item import Item, Row, Task, after
from data.tasks.names import canonical, unknown

__all__ = ["TASKS", "Item", "Task", "canonical", "read_task"]


@dataclass(frozen=True)
class Part:
    """A split: its file below the folder of tasks (MMLU: its folder) and how many questions were released."""

    file: str
    count: int


@dataclass(frozen=True)
class Form:
    """A task: `item` makes a question's prompt, `hub` is `owner/name[:config]`, `local` reads its files.

    The first of `parts` is the split that lm-evaluation-harness reports on; `clean` brings the Hub's fields
    into those that `item` wants. With `shots`, so many questions of the same subject of `examples` (a split,
    and a part of the folder) come first, with their answers.
    """

    item: Callable[[Row], Item]
    hub: str
    local: Callable[[Path], list[Row]]
    parts: Mapping[str, Part]
    clean: Callable[[Row], Row] = lambda row: row
    shots: int = 0
    examples: Part | None = None


def _arc(name: str, test: int, validation: int) -> Form:
    files = {"test": Part(f"arc/ARC-{name}-Test.jsonl", test)}
    files["validation"] = Part(f"arc/ARC-{name}-Dev.jsonl", validation)
    return Form(prompts.arc, f"allenai/ai2_arc:ARC-{name}", local.arc, files)


def _one(file: str, count: int) -> Mapping[str, Part]:
    return {"validation": Part(file, count)}


TASKS: dict[str, Form] = {
    "arc_easy": _arc("Easy", 2376, 570),
    "arc_challenge": _arc("Challenge", 1172, 299),
    "boolq": Form(prompts.boolq, "aps/super_glue:boolq", local.boolq, _one("boolq/val.jsonl", 3270)),
    "copa": Form(prompts.copa, "aps/super_glue:copa", local.copa, _one("copa/val.jsonl", 100)),
    "hellaswag": Form(
        prompts.hellaswag, "Rowan/hellaswag", local.hellaswag, _one("hellaswag/validation.jsonl", 10042),
        clean=prompts.hellaswag_fields,
    ),
    "mmlu": Form(
        prompts.mmlu, "cais/mmlu:all", local.mmlu,
        {"test": Part("mmlu/test", 14042), "validation": Part("mmlu/val", 1531)},
        shots=5, examples=Part("mmlu/dev", 285),
    ),
    "openbookqa": Form(
        prompts.openbookqa, "allenai/openbookqa:main", local.openbookqa,
        {"test": Part("openbookqa/test.jsonl", 500), "validation": Part("openbookqa/dev.jsonl", 500)},
    ),
    "piqa": Form(prompts.piqa, "baber/piqa", local.piqa, _one("piqa/dev.jsonl", 1838)),
    "winogrande": Form(
        prompts.winogrande, "allenai/winogrande:winogrande_xl", local.winogrande,
        _one("winogrande/dev.jsonl", 1267),
    ),
}  # fmt: skip
"""By the names of lm-evaluation-harness. A task is added by a prompt, a reader and a line here."""


def read_task(name: str, folder: Path | None = None, *, split: str = "reported", limit: int = 0) -> Task:
    """A task's items, from the files below `folder` or, without one, from the Hub.

    `name` is one of TASKS or what else people call it (`data.tasks.names`), `ybisk/piqa` for one.

    `split` is `reported`, the one that lm-evaluation-harness reports on, or `validation`, which ARC,
    OpenBookQA and MMLU have beside it and which is all that is labelled of the others: choose models on that.
    `limit` takes the first so many questions (of MMLU the first ones of every subject), 0 all of them.
    Raises InputError for another name, files that are missing, of another format or of another length than
    the released ones, and a Hub that cannot be read.
    """
    name = canonical(name)
    if name not in TASKS:
        raise InputError(unknown(name, TASKS))
    if limit < 0:
        raise InputError(f"a limit of {limit} items was asked for: give 1 or more, or 0 for all")
    form = TASKS[name]
    if split not in ("reported", "validation"):
        raise InputError(f"{split!r} is no split to score on: give reported or validation")
    chosen = next(iter(form.parts)) if split == "reported" else split
    rows, where = _rows(name, form, form.parts[chosen], chosen, folder)
    kept = _first(rows, limit)
    examples: list[Row] = []
    shown_in = ""
    if form.examples is not None:
        examples, shown_in = _rows(name, form, form.examples, "dev", folder)
    preambles = _preambles(form, examples, _items(name, form, examples, shown_in))
    items = _items(name, form, kept, where, preambles)
    variants = dict.fromkeys(f" ({row['variant']})" for row in kept if "variant" in row)
    source = f"{where}, {chosen}, {len(items):,} of {len(rows):,} items{''.join(variants)}"
    return Task(name, source, form.shots, tuple(items), tuple(kept), tuple(examples))


def _rows(name: str, form: Form, part: Part, split: str, folder: Path | None) -> tuple[list[Row], str]:
    """All questions of a part, and where they are from."""
    if folder is None:
        where = f"Hub {form.hub}"
        found = enumerate(read_rows(form.hub, split), start=1)
        rows = local.converted(((f"row {number:,} of {where}", row) for number, row in found), form.clean)
    else:
        rows, where = form.local(folder / part.file), str(folder / part.file)
    if len(rows) != part.count:
        raise InputError(
            f"{where} holds {len(rows):,} questions, and {name} was released with {part.count:,} in {split}: "
            "it is cut or another set; download it again"
        )
    return rows, where


def _first(rows: Sequence[Row], limit: int) -> list[Row]:
    """The first questions; where they have subjects, the first of each, as evenly as the limit allows."""
    if not 0 < limit < len(rows):
        return list(rows)
    by_subject = [list(group) for _, group in groupby(rows, key=lambda row: row.get("subject"))]
    places = sorted((place, which) for which, group in enumerate(by_subject) for place in range(len(group)))
    taken = [which for _, which in places[:limit]]
    return [row for which, group in enumerate(by_subject) for row in group[: taken.count(which)]]


def _items(
    name: str, form: Form, rows: Sequence[Row], where: str, preambles: Mapping[str, str] | None = None
) -> list[Item]:
    """Of each row its item, after the preamble of its subject where there are such."""
    items = []
    for number, row in enumerate(rows, start=1):
        try:
            item = form.item(row)
            items.append(after(preambles[str(row["subject"])], item) if preambles else item)
        except local.NO_QUESTION as error:
            raise InputError(
                f"item {number:,} of {where} is no question of {name} ({type(error).__name__}: "
                f"{first_line(error)}): download it again"
            ) from error
    return items


def _preambles(form: Form, examples: Sequence[Row], items: Sequence[Item]) -> dict[str, str]:
    """By subject, what stands before its questions."""
    by_subject: dict[str, list[Item]] = {}
    for row, item in zip(examples, items, strict=True):
        by_subject.setdefault(str(row.get("subject")), []).append(item)
    return {
        subject: prompts.mmlu_preamble(subject, shots[: form.shots]) for subject, shots in by_subject.items()
    }
