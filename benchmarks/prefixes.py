"""What it gives to measure subnets from the first block that differs, by where the subnets come from.

Single replacements of the parent's modules, mutations of good subnets (one to three knobs each), and random
ones, in the order in which they share the most with their neighbours. The scores must be the same to the
last bit, or the comparison is refused.

    python -m benchmarks.prefixes
    python -m benchmarks.prefixes --parent ORGANISATION/MODEL --corpus Salesforce/wikitext:wikitext-2-raw-v1
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks._setup import Common, in_turn, make_ready, ratio, show
from experiments.command_line import option, run
from nas.baselines import random_cuts
from nas.building import SubnetMeter
from nas.prefix import PrefixMeter
from nas.proposals import fit, mutate
from nas.replacement import replacements
from nas.sampling import starts
from nas.shape import Widths


@dataclass(frozen=True)
class Settings(Common):
    """What is measured."""

    keep: float = option(0.5, "kept fraction of the blocks' parameters", group="input")
    subnets: int = option(40, "of each kind", group="run")
    repeats: int = option(3, "times each way is measured, in turn", group="run")
    table: Path | None = option(None, "Markdown file that the table is appended to", group="run")


def main(settings: Settings) -> None:
    """Measure and print."""
    ready, rng = make_ready(settings), np.random.default_rng(settings.seed)
    budget, space = ready.budget("block_parameters", settings.keep), ready.space
    good = starts(space, budget, rng, ready.hints)[: max(1, settings.subnets // 10)]
    mutated = fit(space, budget, mutate(space, np.repeat(good, 10, axis=0), rng), rng)
    every = replacements(space)
    kinds = {
        "one module replaced": every[:: max(1, len(every) // settings.subnets)],
        "mutations": in_order(space.widths(mutated)),
        "random": in_order(space.widths(random_cuts(space, budget, settings.subnets, rng))),
    }
    lines = [["", "subnets", "blocks run", "whole, pairs/s", "from what differs, pairs/s", "ratio"]]
    for name, rows in kinds.items():
        meters = [
            kind(ready.parent, ready.shape, ready.prepared.bank, ready.eval_windows, settings.batch_size)
            for kind in (SubnetMeter, PrefixMeter)
        ]
        whole, sharing = ([meter(row) for row in rows] for meter in meters)
        if whole != sharing:
            raise AssertionError(f"{name}: the scores are not the same")
        assert isinstance(meters[1], PrefixMeter)
        run_blocks = meters[1].passed / sum(int((row > 0).any(1).sum()) for row in rows)
        seconds = in_turn(
            {str(n): partial(each, meter, rows) for n, meter in enumerate(meters)}, settings.repeats
        )
        lines.append(
            [
                name, str(len(rows)), f"{run_blocks:.0%}",
                *(f"{len(rows) / median(seconds[n]):.2f}" for n in ("0", "1")),
                f"{ratio(seconds['0'], seconds['1']):.2f}",
            ]
        )  # fmt: skip
    show(
        f"{settings.parent}: {len(ready.eval_windows)} windows of {settings.seq_len} tokens, "
        f"{settings.threads} thread(s)",
        lines,
        settings.table,
    )


def in_order(rows: Widths) -> Widths:
    """Sorted by their blocks, the first one first (n, blocks, 3)."""
    return rows[np.lexsort(rows.reshape(len(rows), -1)[:, ::-1].T)]


def each(meter: SubnetMeter, rows: Widths) -> None:
    """Measure them one after the other."""
    for row in rows:
        meter(row)


if __name__ == "__main__":
    sys.exit(run(Settings, main))
