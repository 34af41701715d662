"""How costs grow: with a parent's blocks and width, with pairs that are known, and with knobs of the space.

Random LLaMAs, in which one thing at a time is doubled; medians, and under each column the power of what grows
that its first and its last value say (1: doubled for twice as much).

- blocks and width: one cut, one evaluation, the same per FLOP of its forward passes, and ranking and repair
  with the bank of a block
- pairs: fitting the predictor, and choosing by it (one round of search), store and claim of one more pair
- knobs: the same round of search, of spaces with more blocks; proposals fitted to a budget

    python -m benchmarks.growth
    python -m benchmarks.growth --parts pairs --known 250 1000 4000 10000
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import log
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks._random_parent import Size, random_parent
from benchmarks._setup import in_turn, show
from experiments.command_line import option, run
from nas.architecture import Architecture
from nas.baselines import random_cuts
from nas.building import SubnetMeter, measure_each
from nas.cost import CostModel, budget_of
from nas.encoding import Encoding
from nas.exploration import fit_predictor
from nas.families import shape_of
from nas.pairs import Pair, Pairs, Setting
from nas.parent import choose_device
from nas.prepare import prepare
from nas.proposals import Indices, fit, mutate
from nas.search import search
from nas.shape import Shape, architecture_of
from nas.space import SearchSpace, default_space
from nas.subnet import cut
from predictors import make_predictor

SMALL = Size(hidden=128, blocks=4, heads=8, kv_heads=4, ffn=384, vocab=1000)
"""What is doubled."""
KEEP = 0.5


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    parts: tuple[str, ...] = option(
        ("blocks", "width", "pairs", "knobs"), "what grows", group="run",
        choices=("blocks", "width", "pairs", "knobs"),
    )  # fmt: skip
    doublings: int = option(3, "times that blocks, width and knobs are doubled", group="run")
    known: tuple[int, ...] = option((125, 250, 500, 1000, 2000), "numbers of known pairs", group="run")
    windows: int = option(8, "windows of 128 tokens in an evaluation", group="run")
    repeats: int = option(5, "times each thing is measured", group="run")
    threads: int = option(1, "threads of torch", group="run")
    device: str = option("auto", "auto, cpu or cuda", group="run")
    table: Path | None = option(None, "Markdown file that the tables are appended to", group="run")


def main(settings: Settings) -> None:
    """Measure and print."""
    torch.set_num_threads(settings.threads)
    twice = [2**power for power in range(settings.doublings + 1)]
    if "blocks" in settings.parts:
        parents(settings, "blocks", [replace(SMALL, blocks=SMALL.blocks * by) for by in twice])
    if "width" in settings.parts:
        wider = [
            replace(
                SMALL, hidden=SMALL.hidden * by, ffn=SMALL.ffn * by, heads=SMALL.heads * by,
                kv_heads=SMALL.kv_heads * by,
            )
            for by in twice
        ]  # fmt: skip
        parents(settings, "width", wider)
    if "pairs" in settings.parts:
        of_pairs(settings)
    if "knobs" in settings.parts:
        of_knobs(settings, [replace(SMALL, blocks=SMALL.blocks * by) for by in twice])


def parents(settings: Settings, what: str, sizes: Sequence[Size]) -> None:
    """Cuts, evaluations, rankings and repairs of ever larger parents."""
    device, rows = choose_device(settings.device), []
    for size in sizes:
        parent = random_parent(size, device, torch.float32)
        shape = shape_of(parent)
        space, cost = default_space(shape, 16), CostModel(shape, 128, 4)
        ids = torch.randint(size.vocab, (settings.windows, 128))
        few = random_cuts(space, budget_of(cost, KEEP), 1, np.random.default_rng(0))
        widths = space.widths(few)[0]
        subnet = architecture_of(widths, shape)
        meter = SubnetMeter(parent, shape, None, ids, 8)
        with tempfile.TemporaryDirectory() as folder:
            seconds = in_turn(
                {
                    "cut": partial(cut, parent, shape, subnet),
                    "evaluation": partial(meter, widths),
                    "prepare": partial(prepared_anew, parent, shape, space, ids, folder),
                },
                settings.repeats,
            )
        spent = {name: median(each) for name, each in seconds.items()}
        work = settings.windows * cost(subnet)["flops"]
        grown = size.blocks if what == "blocks" else size.hidden
        rows.append(
            [grown, 1e3 * spent["cut"], 1e3 * spent["evaluation"], 1e12 * spent["evaluation"] / work,
             1e3 * spent["prepare"] / size.blocks]
        )  # fmt: skip
    heads = [what, "one cut, ms", "one evaluation, ms", "ps a FLOP", "rank and repair, ms a block"]
    table(settings, f"More {what}", heads, rows)


def prepared_anew(
    parent: PreTrainedModel, shape: Shape, space: SearchSpace, ids: Tensor, folder: str
) -> object:
    """Rank and repair; nothing is there from before."""
    where = Path(tempfile.mkdtemp(dir=folder))
    return prepare(parent, shape, space, ids, "elimination", where, {}, quiet=True)


@dataclass(frozen=True)
class Known:
    """A space with made-up pairs."""

    shape: Shape
    space: SearchSpace
    cost: CostModel
    encoding: Encoding
    rows: Indices
    pairs: list[Pair]


def known(size: Size, count: int) -> Known:
    """So many pairs of a parent of this size, whose damage adds up over its modules, with noise."""
    shape = shape_of(random_parent(replace(size, vocab=8), torch.device("cpu"), torch.float32))
    space, cost = default_space(shape), CostModel(shape, 128, 4)
    rng = np.random.default_rng(0)
    attention = np.full((shape.blocks, shape.kv_groups + 1, shape.queries_per_group + 1), 0.5)
    mlp = np.tile(np.linspace(1, 0, shape.ffn + 1) ** 2, (shape.blocks, 1))
    encoding = Encoding(cost, attention, mlp)
    drawn = np.unique(random_cuts(space, budget_of(cost, KEEP), 2 * count, rng), axis=0)
    rows = rng.permutation(drawn)[:count]
    features = encoding(space.widths(rows))[:, list(encoding.errors)].astype(np.float64)
    damage = features @ rng.gamma(2.0, 0.05, features.shape[1]) * np.exp(rng.normal(0, 0.03, len(rows)))
    made = [
        Pair(architecture_of(row, shape), -3.0 - float(lost), "made up")
        for row, lost in zip(space.widths(rows), damage, strict=True)
    ]
    return Known(shape, space, cost, encoding, rows, made)


def a_round(it: Known) -> tuple[Callable[[], object], Callable[[], object]]:
    """Fitting the predictor, and a search with it of 100 trials."""
    fitted = lambda: fit_predictor(make_predictor("xgboost", 0), it.encoding, it.pairs, -3.0)  # noqa: E731
    predict, budget = fitted(), budget_of(it.cost, KEEP)
    return fitted, partial(search, it.space, budget, predict, starts=it.rows[:30], seed=0, trials=100)


def of_pairs(settings: Settings) -> None:
    """What one more round and one more pair cost, by the pairs that there are."""
    rows = []
    for count in settings.known:
        it = known(SMALL, count)
        fitting, searching = a_round(it)
        seconds = in_turn({"fit": fitting, "search": searching}, settings.repeats)
        more = random_cuts(it.space, budget_of(it.cost, KEEP), count + 20, np.random.default_rng(1))
        every = list(dict.fromkeys(architecture_of(row, it.shape) for row in it.space.widths(more)))
        stored = store_milliseconds(every[:-20], every[-20:])
        rows.append([len(it.pairs), 1e3 * median(seconds["fit"]), 1e3 * median(seconds["search"]), stored])
    table(settings, "More pairs", ["pairs", "fit, ms", "search, ms", "store and claim one, ms"], rows)


def store_milliseconds(held: Sequence[Architecture], more: Sequence[Architecture]) -> float:
    """Milliseconds for each further pair of a journal that holds some, measurement apart."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = Pairs(f"{folder}/pairs.journal", Setting({"benchmark": "growth"}))
        for some in (held, more):
            start = perf_counter()
            measure_each(pairs, some, lambda _: (-1.0, {"accuracy": 0.5}), "benchmark", quiet=True)
        return 1000 * (perf_counter() - start) / len(more)


def of_knobs(settings: Settings, sizes: Sequence[Size]) -> None:
    """What a round costs, by the knobs of the space."""
    rows = []
    for size in sizes:
        it = known(size, 200)
        fitting, searching = a_round(it)
        rng, budget = np.random.default_rng(2), budget_of(it.cost, KEEP)
        many = np.tile(it.rows, (5, 1))
        proposing = lambda it=it, rng=rng, budget=budget, many=many: fit(  # type: ignore[misc] # noqa: E731
            it.space, budget, mutate(it.space, many, rng), rng
        )
        seconds = in_turn({"fit": fitting, "search": searching, "fitted": proposing}, settings.repeats)
        spent = {name: 1e3 * median(each) for name, each in seconds.items()}
        rows.append([len(it.space.depths), spent["fit"], spent["search"], spent["fitted"]])
    heads = ["knobs", "fit on 200 pairs, ms", "search, ms", "1,000 proposals to a budget, ms"]
    table(settings, "More knobs", heads, rows)


def table(settings: Settings, title: str, heads: list[str], rows: Sequence[Sequence[float]]) -> None:
    """Print the numbers, and by what power of the first column the others grow."""
    first, last = rows[0], rows[-1]
    grown = log(last[0] / first[0]) if len(rows) > 1 else 0.0
    powers = ["power", *(f"{log(b / a) / grown:.2f}" for a, b in zip(first[1:], last[1:], strict=True))]
    lines = [[f"{row[0]:.0f}", *(f"{value:.3g}" for value in row[1:])] for row in rows]
    show(title, [heads, *lines, *([powers] if grown else [])], settings.table)


if __name__ == "__main__":
    sys.exit(run(Settings, main))
