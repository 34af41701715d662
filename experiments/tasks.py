"""What do models get right on multiple-choice tasks?

Accuracies with their standard errors and protocol, for any number of checkpoints, by the built-in scorer or
by lm-evaluation-harness itself (`pip install 'secateur[eval]'`), which give the same numbers:

    python -m experiments.tasks --models runs/demo/checkpoint --tasks arc_easy,piqa --trust-remote-code
    python -m experiments.tasks --models runs/a/checkpoint runs/b/checkpoint --folder FOLDER --limit 0
    python -m experiments.tasks --models ORGANISATION/MODEL --tasks arc_easy,sciq --engine harness

Tasks have the harness's names and are read from the Hub by the ids that it uses, or from files below
`--folder`, in the formats that `data/tasks/local.py` describes. With `--engine harness` and without a folder,
any task that the harness reports an accuracy for can be named.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from data.errors import InputError
from data.tasks import TASKS, Task, canonical, read_task
from experiments.command_line import option, required, run
from experiments.results import versions
from experiments.score import load
from nas.harness import harness_names, harness_task, harness_version
from nas.parent import DEMO, DTYPES, choose_device, choose_dtype
from nas.report import write_json
from nas.tasks import TaskScores, score_items

FILE = "tasks.json"


@dataclass(frozen=True)
class Settings:
    """Which models on which tasks."""

    models: tuple[str, ...] = required("checkpoints to score: Hub ids, folders or demo", group="input")
    trust_remote_code: bool = option(
        False, "run the modelling files that checkpoints bring with them", group="input"
    )
    tasks: tuple[str, ...] = option(tuple(TASKS), "tasks, parted by commas or spaces", group="input")
    folder: Path | None = option(None, "folder of the tasks' files; without it the Hub", group="input")
    split: str = option(
        "reported", "the split that published numbers are of, or that to choose models on",
        group="input", choices=("reported", "validation"),
    )  # fmt: skip
    limit: int = option(
        200, "items of a task, the first ones (of MMLU of every subject); 0 all", group="input"
    )

    engine: str = option(
        "built-in", "who scores: built-in, or harness for lm-evaluation-harness",
        group="run", choices=("built-in", "harness"),
    )  # fmt: skip
    device: str = option("auto", "auto, cpu, cuda or cuda:N", group="run")
    dtype: str = option("auto", "what all models are computed in", group="run", choices=DTYPES)
    batch_size: int = option(16, "choices in a forward pass", group="run")
    out: Path = option(Path("runs/tasks"), f"folder that {FILE} is written to", group="run")


@dataclass(frozen=True)
class Line:
    """One task of one model."""

    model: str
    task: str
    shots: int | None
    scores: TaskScores
    seconds: float
    source: str
    digest: str | None

    def record(self) -> dict[str, Any]:
        """As plain values; what a single item leaves undefined is None."""
        scores = {name: None if value != value else value for name, value in self.scores.record().items()}
        return {**vars(self), "scores": scores}


def main(settings: Settings) -> None:
    """Read the tasks, score every model on each, print and write."""
    names = [canonical(name) for word in settings.tasks for name in word.split(",") if name]
    if not settings.models or not names:
        raise InputError(
            f"{len(settings.models)} models and {len(names)} tasks were given: give at least one of each"
        )
    if settings.batch_size < 1:
        raise InputError(f"--batch-size is {settings.batch_size}; give at least 1")
    harness = harness_version() if settings.engine == "harness" else None
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    ours = [name for name in dict.fromkeys(names) if name in TASKS or not harness or settings.folder]
    theirs = [name for name in dict.fromkeys(names) if name not in ours]
    tasks = [read_task(name, settings.folder, split=settings.split, limit=settings.limit) for name in ours]
    if theirs and settings.split != "reported":
        raise InputError(f"{', '.join(theirs)} can be scored on the split that the harness reports on only")
    record: dict[str, Any] = {
        "engine": settings.engine,
        "harness": harness,
        "split": settings.split,
        "dtype": str(dtype),
        "device": str(device),
        "batch_size": settings.batch_size,
        "versions": versions(),
        "results": [],
    }
    try:
        write_json(record, settings.out / FILE)
    except OSError as error:
        raise InputError(f"the folder {settings.out} cannot be used ({error}); give another --out") from error
    who = "built-in scorer" if harness is None else f"lm-evaluation-harness {harness}"
    print(f"{who}, log-likelihood of each choice, {dtype}, no chat template; chance is that of guessing")
    wide = max(map(len, settings.models))
    print(f"{'':{wide}}  task            shots   items  chance            acc       acc_norm  seconds")
    for name in settings.models:
        model, tokenizer = load_both(name, settings.trust_remote_code)
        model = model.to(device, dtype)
        for line in lines(name, model, tokenizer, tasks, theirs, settings):
            record["results"].append(line.record())
            write_json(record, settings.out / FILE)
            chance = next((f"{task.chance:.4f}" for task in tasks if task.name == line.task), "")
            print(
                f"{name:{wide}}  {line.task:15} {'' if line.shots is None else line.shots:5}  "
                f"{line.scores.n:6,}  {chance:>6}  "
                f"{shown(line.scores.acc, line.scores.acc_stderr)}  "
                f"{shown(line.scores.acc_norm, line.scores.acc_norm_stderr)}  {line.seconds:7.1f}",
                flush=True,
            )
    print(f"\n{settings.out / FILE}")


def lines(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    theirs: Sequence[str],
    settings: Settings,
) -> Iterator[Line]:
    """One model's tasks as they are done, `theirs` last: what only the harness knows."""
    size = settings.batch_size
    for task in tasks:
        start = perf_counter()
        if settings.engine == "harness":
            scores, _ = harness_task(model, tokenizer, task, batch_size=size)
        else:
            choices = sum(len(item.continuations) for item in task.items)
            with tqdm(total=choices, desc=task.name, unit="choice", leave=False) as bar:
                scores = score_items(model, tokenizer, task.items, batch_size=size, progress=bar.update)
        yield Line(name, task.name, task.shots, scores, perf_counter() - start, task.source, task.digest)
    if theirs:
        start = perf_counter()
        found = harness_names(model, tokenizer, theirs, limit=settings.limit, batch_size=size)
        spent = (perf_counter() - start) / len(found)
        for task_name, scores in found.items():
            yield Line(name, task_name, None, scores, spent, "as the harness fetches it", None)


def load_both(name: str, trust: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A checkpoint and its tokenizer; `InputError` if they cannot be loaded."""
    location = str(DEMO) if name == "demo" else name
    model = load(location, trust)
    try:
        return model, AutoTokenizer.from_pretrained(location, trust_remote_code=trust)
    except Exception as error:  # whatever a broken folder or a missing network makes the library raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{name} has no tokenizer that can be loaded ({reason})") from error


def shown(mean: float | None, error: float | None) -> str:
    """A mean and its standard error, fourteen characters wide."""
    return f"{'–':>14}" if mean is None or error is None else f"{mean:.4f} ±{error:7.4f}"


if __name__ == "__main__":
    sys.exit(run(Settings, main))
