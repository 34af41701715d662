"""What sharing a pair store costs, and what it gives: milliseconds a pair, and pairs a second by workers.

The store: claims, pairs and what is read between them, without any measurement, by one worker, into a new
store and into one that holds many pairs. The workers: one, two, four … processes of one thread each share the
same subnets, and the time is taken from the first claim to the last pair. On the CPU, in forked processes
of a parent that is loaded once.

    python -m benchmarks.workers
    python -m benchmarks.workers --parent ../shared/models/wiki-llama-8m --corpus FOLDER --processes 1 2 4
    python -m benchmarks.workers --storages journal sqlite postgresql+psycopg://USER@HOST/DATABASE
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import numpy as np
import torch

from benchmarks._setup import Common, make_ready, show
from experiments.command_line import option, run
from nas.architecture import Architecture
from nas.baselines import random_cuts
from nas.building import SubnetMeter, measure_each
from nas.pairs import Pairs, Setting
from nas.shape import architecture_of, widths_of


@dataclass(frozen=True)
class Settings(Common):
    """What is measured."""

    keep: float = option(0.5, "kept fraction of the blocks' parameters", group="input")
    processes: tuple[int, ...] = option((1, 2, 4), "numbers of workers", group="run")
    pairs: int = option(96, "pairs that they share", group="run")
    turns: int = option(3, "times that all numbers are tried, one after the other", group="run")
    held: int = option(200, "pairs that are there already in the fuller store", group="run")
    storages: tuple[str, ...] = option(("journal", "sqlite"), "journal, sqlite or a URL", group="run")


def main(settings: Settings) -> None:
    """Measure and print."""
    ready = make_ready(settings)
    torch.set_num_threads(1)
    budget = ready.budget("block_parameters", settings.keep)
    rng = np.random.default_rng(settings.seed)
    rows = ready.space.widths(random_cuts(ready.space, budget, settings.pairs + settings.held, rng))
    architectures = list(dict.fromkeys(architecture_of(row, ready.shape) for row in rows))
    lines = [["store", "pairs there", "ms a pair", "wanted"]]
    for storage in settings.storages:
        spent = of_store(storage, architectures, settings)
        lines.append([storage.split("://")[0], "0", f"{spent[0]:.1f}", "<= 20"])
        lines.append([storage.split("://")[0], str(settings.held), f"{spent[1]:.1f}", "<= 20"])
    show("The store alone, one worker", lines)
    meter = SubnetMeter(
        ready.parent, ready.shape, ready.prepared.bank, ready.eval_windows, settings.batch_size
    )
    scaling(settings, meter, architectures[: settings.pairs])


def of_store(storage: str, architectures: Sequence[Architecture], settings: Settings) -> tuple[float, float]:
    """Milliseconds a pair, measurement apart, of an empty store and of one that holds many pairs."""

    def spent(some: Sequence[Architecture]) -> float:
        start = perf_counter()
        measure_each(pairs, some, lambda _: (-1.0, {"accuracy": 0.5}), "benchmark", quiet=True)
        return 1000 * (perf_counter() - start) / len(some)

    with tempfile.TemporaryDirectory() as folder:
        location = {"journal": f"{folder}/pairs.journal", "sqlite": f"sqlite:///{folder}/pairs.db"}
        pairs = Pairs(location.get(storage, storage), new_setting())
        first, last = architectures[: settings.pairs], architectures[-settings.pairs :]
        empty = spent(first)
        spent(architectures[settings.pairs : -settings.pairs])
        return empty, spent(last)


def scaling(settings: Settings, meter: SubnetMeter, architectures: Sequence[Architecture]) -> None:
    """Pairs a second by number of workers, as many times as there are turns, and the ratios side by side."""
    rates: dict[int, list[float]] = {count: [] for count in settings.processes}
    for _ in range(settings.turns):
        for count in settings.processes:
            with tempfile.TemporaryDirectory() as folder:
                rates[count].append(len(architectures) / together(count, folder, meter, architectures))
    base = settings.processes[0]
    lines = [["workers", "pairs/s", f"over {base}", "least", "most"]]
    for count, each in rates.items():
        ratios = [one / other for one, other in zip(each, rates[base], strict=True)]
        lines.append([str(count), f"{median(each):.2f}", *(f"{f(ratios):.2f}" for f in (median, min, max))])
    show(
        f"{len(architectures)} subnets of {settings.parent}, {len(meter.windows)} windows of "
        f"{settings.seq_len} tokens, one thread each, {os.cpu_count()} cores (wanted: 4 over 1 >= 1.70)",
        lines,
    )


def together(count: int, folder: str, meter: SubnetMeter, architectures: Sequence[Architecture]) -> float:
    """Seconds until so many workers have measured all."""
    fork = multiprocessing.get_context("fork")
    setting = new_setting()
    workers = [
        fork.Process(target=work, args=(f"{folder}/pairs.journal", setting, meter, architectures))
        for _ in range(count)
    ]
    start = perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return perf_counter() - start


def work(location: str, setting: Setting, meter: SubnetMeter, architectures: Sequence[Architecture]) -> None:
    """What one worker does."""
    torch.set_num_threads(1)

    def measured(architecture: Architecture) -> tuple[float, dict[str, float]]:
        scores = meter(widths_of(architecture, meter.shape))
        return scores.score, {"accuracy": scores.accuracy}

    measure_each(Pairs(location, setting), architectures, measured, "benchmark", quiet=True)


def new_setting() -> Setting:
    """One that no store has pairs of."""
    return Setting({"benchmark": "workers", "run": uuid.uuid4().hex})


if __name__ == "__main__":
    sys.exit(run(Settings, main))
