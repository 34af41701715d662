"""What benchmarks share: a prepared parent, timing in turn, a clock of forward passes, a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from data.corpus import load_corpus
from data.windows import draw, encode, spread, windows
from experiments.command_line import option
from nas.cost import Budget, CostModel
from nas.families import shape_of
from nas.parent import choose_device, choose_dtype, digest_of, load_parent
from nas.prepare import Prepared, prepare
from nas.sampling import Hints
from nas.shape import Shape
from nas.space import SearchSpace, default_space


@dataclass(frozen=True)
class Common:
    """Settings of every benchmark that needs a parent."""

    parent: str = option("demo", "model to measure on: a Hub id, a local folder or demo", group="input")
    corpus: str = option("demo", "text to calibrate and evaluate on, named as in compress", group="input")
    seq_len: int = option(256, "tokens in a window", group="input")
    calibration_windows: int = option(32, "training windows that ranking and repair see", group="input")
    eval_windows: int = option(16, "validation windows in one evaluation", group="input")
    batch_size: int = option(8, "windows in a forward pass", group="input")

    repeats: int = option(5, "times each thing is measured, in turn with the others", group="run")
    threads: int = option(1, "threads of torch; one is steadiest where other work runs too", group="run")
    device: str = option("auto", "auto, cpu or cuda", group="run")
    seed: int = option(0, "of all that is drawn", group="run")
    cache: Path = option(Path("runs/cache"), "folder of tokens, orders and repairs", group="run")


@dataclass(frozen=True)
class Ready:
    """A prepared parent with everything that the main job has at hand when it starts to build pairs."""

    prepared: Prepared
    shape: Shape
    space: SearchSpace
    cost: CostModel
    hints: Hints
    eval_windows: Tensor
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase

    @property
    def parent(self) -> PreTrainedModel:
        """The permuted parent."""
        return self.prepared.parent

    def budget(self, cost: str, kept: float) -> Budget:
        """The limit of one cost at a fraction of the parent's."""
        return Budget(self.cost, {cost: int(kept * self.cost(self.shape.parent)[cost])})


def make_ready(settings: Common) -> Ready:
    """Load and prepare as `experiments.compress` does, and let the unpermuted parent go."""
    torch.set_num_threads(settings.threads)
    device = choose_device(settings.device)
    dtype = choose_dtype("auto", device)
    parent, tokenizer = load_parent(settings.parent, device, dtype)
    shape = shape_of(parent)
    space = default_space(shape)
    corpus = load_corpus(settings.corpus, tokenizer)
    train, valid = (
        windows(encode(tokenizer, corpus.split(name), settings.cache), settings.seq_len)
        for name in ("train", "validation")
    )
    calibration = draw(
        train, min(settings.calibration_windows, len(train)), np.random.default_rng(settings.seed)
    )
    inputs = {
        "parent": digest_of(parent), "corpus": corpus.name, "seq_len": settings.seq_len,
        "benchmark windows": len(calibration), "seed": settings.seed, "dtype": str(dtype),
    }  # fmt: skip
    prepared = prepare(
        parent, shape, space, calibration, "elimination", settings.cache, inputs,
        batch_size=settings.batch_size,
    )  # fmt: skip
    return Ready(
        prepared=prepared,
        shape=shape,
        space=space,
        cost=CostModel(shape, settings.seq_len, parent.dtype.itemsize),
        hints=prepared.hints,
        eval_windows=spread(valid, min(settings.eval_windows, len(valid))),
        config=parent.config,
        tokenizer=tokenizer,
    )


def now() -> float:
    """Seconds, after all that was asked of an accelerator is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter()


def in_turn(actions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each action by name: A B C A B C …, so that a drift of the machine meets all alike.

    The first round warms up and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(repeats + 1):
        for name, action in actions.items():
            start = now()
            action()
            if turn:
                seconds[name].append(now() - start)
    return seconds


@dataclass
class ForwardClock:
    """Seconds spent in forward passes: in calls of modules, of which only the outermost is timed."""

    seconds: float = 0.0
    depth: int = 0


@contextmanager
def forward_clock() -> Iterator[ForwardClock]:
    """Time every forward pass that runs inside, of whatever model; losses and metrics are not among them."""
    clock, call = ForwardClock(), nn.Module.__call__

    def timed(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if clock.depth:
            return call(module, *args, **kwargs)
        clock.depth = 1
        start = now()
        try:
            return call(module, *args, **kwargs)
        finally:
            clock.seconds += now() - start
            clock.depth = 0

    nn.Module.__call__ = timed
    try:
        yield clock
    finally:
        nn.Module.__call__ = call


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """The median of the ratios of what was measured side by side."""
    return median(a / b for a, b in zip(over, under, strict=True))


def show(title: str, rows: Sequence[Sequence[str]], file: Path | None = None) -> None:
    """Print a table with its first row as the head; the first column to the left, the others to the right.
    Appended to the Markdown `file`, if there is one."""
    if file is not None:
        lines = ["| " + " | ".join(row) + " |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as to:
            to.write("\n".join(["", f"### {title}", "", *lines, ""]))
    sizes = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print(f"\n{title}")
    for row in rows:
        cells = [
            row[0].ljust(sizes[0]),
            *(cell.rjust(size) for cell, size in zip(row[1:], sizes[1:], strict=True)),
        ]
        print("  " + "  ".join(cells).rstrip(), flush=True)
