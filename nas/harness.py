"""Task accuracy by lm-evaluation-harness itself, on a model object: the extra `eval`."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.errors import InputError
from data.tasks import Task
from nas.tasks import TaskScores, standard_error

FOLDERS = {
    "arc_easy": "arc",
    "arc_challenge": "arc",
    "boolq": "super_glue/boolq",
    "copa": "super_glue/copa",
    "mmlu": "mmlu/default",
}
"""Where the harness keeps the tasks whose folder is not called as they are."""


def harness_version() -> str:
    """Raises `InputError`, which says how to install it, where there is none."""
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise InputError(
            "lm-evaluation-harness is not installed: pip install 'secateur[eval]', or use the built-in scorer"
        ) from error
    return version("lm_eval")


def harness_task(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, *, batch_size: int = 16
) -> tuple[TaskScores, NDArray[np.float64]]:
    """The harness's scores on a task's questions, and log-likelihoods of all choices, one after another.

    The harness's own definition of the task makes the prompts; only the questions are given to it. It
    normalises logits in float32 here, where it would by itself take the model's own type.
    """
    harness_version()
    import lm_eval.tasks

    folder = Path(lm_eval.tasks.__file__).parent / FOLDERS.get(task.name, task.name)
    manager = lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)
    # Only inside a group does the harness lay settings over a task of its own.
    group = {"group": "questions", "task": list(_definitions(task))}
    with _quiet():
        found = _samples(model, tokenizer, manager.load([group]), batch_size)
    samples = [sample for each in found.values() for sample in each]
    scores = _scores(samples)
    if scores is None:
        raise InputError(f"the harness reports no accuracy for {task.name}")
    return scores, np.array([value for sample in samples for value, _ in sample["filtered_resps"]])


def harness_names(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
    *,
    limit: int = 0,
    batch_size: int = 16,
) -> dict[str, TaskScores]:
    """The harness's scores on any tasks that it knows, by their names, which it fetches from the Hub itself.

    Groups and tags come out task by task. `limit` takes the first so many questions of each, 0 all. Raises
    `InputError` for a task that it does not know, cannot fetch or does not report the accuracy of.
    """
    harness_version()
    import lm_eval.tasks

    manager = lm_eval.tasks.TaskManager()
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise InputError(f"lm-evaluation-harness {harness_version()} has no task {unknown[0]!r}")
    try:
        with _quiet():
            loaded = manager.load(list(names))
    except Exception as error:  # whatever a missing network makes the libraries raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{', '.join(names)} cannot be read from the Hub ({reason})") from error
    with _quiet():
        found = _samples(model, tokenizer, loaded, batch_size, limit)
    scores = {name: _scores(samples) for name, samples in found.items()}
    without = [name for name, each in scores.items() if each is None]
    if without:
        raise InputError(f"the harness reports no accuracy for {', '.join(without)}: leave it out")
    return {name: each for name, each in scores.items() if each is not None}


def _definitions(task: Task) -> Iterator[Mapping[str, Any]]:
    """The harness's definitions of a task, by name, with our questions in place of the Hub's."""
    if not task.examples:
        # Where the harness would clean the questions, ours are clean already.
        yield {"task": task.name, "process_docs": None, "custom_dataset": _Questions(task.rows)}
        return
    for subject in dict.fromkeys(row["subject"] for row in task.rows):
        rows, examples = (
            [row for row in part if row["subject"] == subject] for part in (task.rows, task.examples)
        )
        yield {
            "task": f"{task.name}_{subject}",
            "num_fewshot": task.shots,
            "custom_dataset": _Questions(rows, examples),
        }


class _Questions:
    """What the harness calls for a data set: the same questions, whichever split it asks for."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], examples: Sequence[Mapping[str, Any]] = ()) -> None:
        self.rows, self.examples = rows, examples

    def __call__(self, **_: Any) -> Any:
        from datasets import Dataset, DatasetDict

        rows = Dataset.from_list([dict(row) for row in self.rows])
        splits = dict.fromkeys(("train", "validation", "test"), rows)
        if self.examples:
            splits["dev"] = Dataset.from_list([dict(row) for row in self.examples])
        return DatasetDict(splits)


def _samples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, loaded: Any, batch_size: int, limit: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """By task, what the harness notes of every question, in order."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise InputError(
            "the harness wants a tokenizer with a beginning or an end of text: use the built-in scorer"
        )
    lm = HFLM(
        pretrained=model,
        backend="causal",
        tokenizer=copy.deepcopy(tokenizer),  # it may be given a padding token
        max_length=model.config.max_position_embeddings,
        batch_size=batch_size,
        softmax_dtype="float32",
    )
    found = evaluate(lm=lm, task_dict=loaded, limit=limit or None, bootstrap_iters=0, log_samples=True)
    return {
        name: sorted(found["samples"][name], key=lambda sample: sample["doc_id"]) for name in loaded["tasks"]
    }


def _scores(samples: Sequence[Mapping[str, Any]]) -> TaskScores | None:
    """From what the harness counts right, None where it counts nothing."""
    acc, norm = ([float(each[name]) for each in samples if name in each] for name in ("acc", "acc_norm"))
    if not acc:
        return None
    return TaskScores(
        n=len(acc),
        acc=float(np.mean(acc)),
        acc_stderr=standard_error(acc),
        acc_norm=float(np.mean(norm)) if norm else None,
        acc_norm_stderr=standard_error(norm) if norm else None,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness warns of every use of a model object: only its errors are let through."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
