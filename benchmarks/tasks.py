"""What it gives to score choices by length, and those that begin alike together, instead of as they come.

The same log-likelihoods of the same items: in the order of the task, every choice a row of its own, batches
padded to their longest; sorted by length; and sorted with shared rows, as `nas.tasks` does. All must agree to
1e-4, or the comparison is refused.

    python -m benchmarks.tasks --folder FOLDER --tasks arc_easy hellaswag winogrande
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from benchmarks._setup import in_turn, ratio, show
from data.tasks import read_task
from experiments.command_line import option, required, run
from nas.parent import choose_device, choose_dtype, load_parent
from nas.tasks import Request, batch_sums, encode_pairs, log_likelihoods


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    folder: Path = required("folder of the tasks' files, as in experiments.tasks", group="input")
    parent: str = option("demo", "model to measure on: a Hub id, a local folder or demo", group="input")
    tasks: tuple[str, ...] = option(("arc_easy", "hellaswag", "winogrande"), "which", group="input")
    limit: int = option(100, "items of each", group="input")
    batch_size: int = option(16, "rows in a forward pass", group="run")
    repeats: int = option(3, "times each way is measured, in turn", group="run")
    threads: int = option(1, "threads of torch", group="run")
    device: str = option("auto", "auto, cpu or cuda", group="run")
    table: Path | None = option(None, "Markdown file that the table is appended to", group="run")


def main(settings: Settings) -> None:
    """Measure and print."""
    torch.set_num_threads(settings.threads)
    device = choose_device(settings.device)
    model, tokenizer = load_parent(settings.parent, device, choose_dtype("auto", device))
    lines = [["", "choices", "as they come, s", "by length", "and shared rows", "choices/s"]]
    for name in settings.tasks:
        items = read_task(name, settings.folder, limit=settings.limit).items
        pairs = [each for item in items for each in zip(item.contexts, item.continuations, strict=True)]
        requests = [*encode_pairs(tokenizer, pairs, int(model.config.max_position_embeddings))]
        ways: dict[str, Callable[[], NDArray[np.float64]]] = {
            "as they come": partial(alone, model, requests, range(len(requests)), settings.batch_size),
            "by length": partial(
                alone, model, requests, sorted(range(len(requests)), key=lambda n: -len(requests[n].tokens)),
                settings.batch_size,
            ),
            "shared": partial(log_likelihoods, model, tokenizer, pairs, batch_size=settings.batch_size),
        }  # fmt: skip
        found = [way() for way in ways.values()]
        if max(float(np.abs(found[0] - each).max()) for each in found) > 1e-4 * float(np.abs(found[0]).max()):
            raise AssertionError(f"{name}: the log-likelihoods differ")
        seconds = in_turn(ways, settings.repeats)
        first = seconds["as they come"]
        lines.append(
            [
                name, str(len(pairs)), f"{median(first):.2f}", f"{ratio(first, seconds['by length']):.2f} x",
                f"{ratio(first, seconds['shared']):.2f} x", f"{len(pairs) / median(seconds['shared']):.0f}",
            ]
        )  # fmt: skip
    show(f"Scoring tasks, {settings.parent}, batches of {settings.batch_size}", lines, settings.table)


@torch.no_grad()
def alone(
    model: PreTrainedModel, requests: Sequence[Request], order: Sequence[int], batch_size: int
) -> NDArray[np.float64]:
    """Log-likelihoods (n,), each request a row of its own, in batches of this order."""
    found = np.empty(len(requests))
    for at in range(0, len(order), batch_size):
        some = list(order[at : at + batch_size])
        # The row's first request is its input, and others may begin it: here there are none.
        some.sort(key=lambda index: -len(requests[index].tokens))
        found[some] = batch_sums(model, [[requests[index]] for index in some])
    return found


if __name__ == "__main__":
    sys.exit(run(Settings, main))
