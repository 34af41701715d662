"""What do subnets of this parent score? A table of pairs, for predictors to be developed and judged on.

Three kinds of tables, each row of which is really measured on validation text:

- `uniform`: every knob drawn at random, then fitted to a size: a third of the rows within 6 % of the smallest
  of `--keep`, a third within 6 % of the largest, the others in between
- `mutated`: subnets near the optimum; a search with `--search-pairs` evaluations at each of `--keep`, and
  mutations of the best that it found, within 5 % of the budget
- `replaced`: the parent with one attention or one MLP at another choice, every choice once

    python -m experiments.build_pairs --kind uniform --rows 1200 --out runs/pairs/demo.parquet
    python -m experiments.build_pairs --kind mutated --rows 300 --out runs/pairs/demo-mutated.parquet
    python -m experiments.build_pairs --kind replaced --out runs/pairs/demo-replaced.parquet

The same command again goes on where it stopped.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError, short
from data.json_text import from_json
from experiments.command_line import check_least, option, run
from experiments.results import WHEREABOUTS, seeded, usable
from experiments.stages import Stages, say
from experiments.subject import OfSubject, Subject, open_subject
from experiments.workers import OfWorkers, launch
from nas.building import build_pairs, in_full
from nas.cost import Budget, budget_of
from nas.exploration import explore
from nas.pair_table import read_pairs, write_pairs
from nas.pairs import Pair, Pairs
from nas.prefix import PrefixMeter
from nas.proposals import apart, check_reachable, fit, mutate
from nas.replacement import replacements
from nas.report import write_json
from nas.report.record import plain
from nas.sampling import SAMPLERS
from nas.shape import Widths, widths_of
from predictors import PREDICTORS

KINDS = ("uniform", "mutated", "replaced")
AROUND, NEAR = 0.06, 0.05
"""How far sizes scatter about a budget, in parts of it: uniform rows both ways, mutated ones downwards."""


@dataclass(frozen=True)
class Settings(OfSubject, OfWorkers):
    """All that a table depends on."""

    kind: str = option("uniform", "which subnets", group="pairs", choices=KINDS)
    keep: tuple[float, ...] = option(
        (0.3, 0.5), "fractions of the blocks' parameters, one or the ends of a range",
        group="pairs",
    )  # fmt: skip
    rows: int = option(1200, "subnets to measure; `replaced` takes all there are", group="pairs", least=1)
    search_pairs: int = option(
        150,
        "evaluations of the search at each budget whose best are mutated, 40 or more",
        group="pairs",
        least=40,
    )
    reuse_prefixes: bool = option(
        True,
        "measure `replaced` subnets from the block on where each differs from the one before; keeps the "
        "stream of all windows, up to 4 GiB of it, on the device",
        group="pairs",
    )
    parents: int = option(12, "of the best that are mutated", group="pairs", least=1)
    predictor: str = option(
        "xgboost", f"of that search: one of {', '.join(PREDICTORS)}, or an import path", group="pairs"
    )
    out: Path = option(
        Path("runs/pairs/pairs.parquet"), "the table; the pairs are stored beside it as they are measured",
        group="run",
    )  # fmt: skip


def main(settings: Settings) -> int:
    """Choose subnets, measure them, alone or as one of several workers, write the table."""
    check(settings)
    usable(settings.out.parent, "--out")
    asked = settings.out.with_suffix(".settings.json")
    refuse_other(asked, settings)
    if settings.workers > 1:
        return launch(settings, "experiments.build_pairs", settings.out.parent)
    stages = Stages()
    subject = open_subject(settings, stages)
    meter = subject.meter
    if settings.kind == "replaced" and settings.reuse_prefixes and settings.parent_on == "device":
        meter = PrefixMeter(**vars(meter))
    whole = Budget(subject.cost, subject.cost(subject.shape.parent))
    for keep in settings.keep:
        check_reachable(subject.space, budget_of(subject.cost, keep))
    write_json(mine(settings), asked)
    pairs = Pairs(settings.storage or str(settings.out.with_suffix(".journal")), subject.setting)
    rng = np.random.default_rng([settings.seed, KINDS.index(settings.kind)])

    def measured(rows: Widths, origin: str) -> list[Pair]:
        return build_pairs(pairs, meter, subject.shape, whole, rows, origin)

    with stages("pairs"):
        if settings.kind == "uniform":
            found = measured(uniform_rows(subject, settings.keep, settings.rows, rng), "uniform")
        elif settings.kind == "replaced":
            found = measured(replacements(subject.space), "replaced")
        else:
            found = []
            for keep in settings.keep:
                best = best_found(subject, keep, settings, pairs)
                rows = near(subject, keep, best, settings.rows // len(settings.keep), rng)
                found += [*best, *measured(rows, f"mutated {keep}")]
    found = list({pair.architecture: pair for pair in found}.values())  # a mutation may be one of the best
    table = subject.table(found, (1.0,) if settings.kind == "replaced" else settings.keep)
    write_pairs(table, settings.out)
    low, high = np.exp(-table.scores.max()), np.exp(-table.scores.min())
    print(
        f"{settings.out}: {len(table.pairs)} pairs, kept {table.kept().min():.3f} to "
        f"{table.kept().max():.3f}, perplexity {low:.2f} to {high:.2f} (parent "
        f"{np.exp(-table.reference):.2f}), {settings.out.stat().st_size / 1024:.0f} KB"
    )
    return 0


def mine(settings: Settings) -> dict[str, Any]:
    """The settings that a table depends on; of `--rows` it may have more later."""
    left_out = (*WHEREABOUTS, "rows", "reuse_prefixes")
    return {name: value for name, value in plain(asdict(settings)).items() if name not in left_out}


def refuse_other(path: Path, settings: Settings) -> None:
    """Raise `InputError` where other settings made the table that is there, or it has more rows."""
    if not path.is_file():
        return
    try:
        theirs = dict(from_json(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}); move it away, or give another --out") from error
    other = sorted(name for name, value in mine(settings).items() if theirs.get(name) != value)
    if other:
        said = ", ".join(
            f"{name} is {short(theirs.get(name))} and {mine(settings)[name]}" for name in other[:3]
        )
        raise InputError(f"{settings.out} was built with other settings ({said}); give another --out")
    rows = len(read_pairs(settings.out).pairs) if settings.out.is_file() else 0
    if settings.kind == "uniform" and rows > settings.rows:
        raise InputError(f"{settings.out} holds {rows} pairs; give --rows {rows} or more, or another --out")


def check(settings: Settings) -> None:
    """Refuse numbers that cannot mean anything, before any work."""
    check_least(settings)
    if not settings.keep:
        raise InputError("--keep is empty; give one fraction or more")
    for keep in settings.keep:
        if not 0 < keep <= 0.94:
            raise InputError(f"--keep is {keep}; give fractions above 0 and at most 0.94")
    if settings.out.suffix != ".parquet":
        raise InputError(f"--out is {settings.out}; give a name that ends in .parquet")


def uniform_rows(subject: Subject, keep: tuple[float, ...], count: int, rng: np.random.Generator) -> Widths:
    """Every knob uniform over its choices, then fitted to a size that is drawn: (count, blocks, 3)."""
    space, (least, *_, most) = subject.space, (min(keep), *keep, max(keep))
    rows = np.empty((count, len(space.depths)), dtype=np.int64)
    for i in range(count):
        low, high = (
            (least * (1 - AROUND), least * (1 + AROUND)),
            (most * (1 - AROUND), most * (1 + AROUND)),
            (least, most),
        )[i % 3]
        budget = budget_of(subject.cost, rng.uniform(low, high))
        rows[i] = fit(space, budget, rng.integers(0, space.depths)[None], rng)[0]
    return space.widths(rows)


def best_found(subject: Subject, keep: float, settings: Settings, pairs: Pairs) -> list[Pair]:
    """The best subnets of a search at this budget that differ from each other."""
    budget, make = budget_of(subject.cost, keep), seeded(settings.seed)
    first = SAMPLERS["seeded"](
        subject.space, budget, 40, np.random.default_rng([settings.seed, 7]), subject.hints
    )
    say(f"search at {keep}")
    explored = explore(
        subject.space, budget, subject.encoding, lambda: make(settings.predictor),
        in_full(pairs, subject.meter, subject.shape, budget), first, reference=subject.reference,
        total=settings.search_pairs, rounds=6, trials=240, seed=settings.seed,
    )  # fmt: skip
    ranked = sorted(explored.pairs, key=lambda pair: -pair.score)
    rows = subject.space.indices(np.stack([widths_of(each.architecture, subject.shape) for each in ranked]))
    return [ranked[number] for number in apart(rows, settings.parents, distance=2)]


def near(subject: Subject, keep: float, best: list[Pair], count: int, rng: np.random.Generator) -> Widths:
    """Mutations of the best, each fitted to a size up to 5 % below the budget: (at most count, blocks, 3)."""
    space = subject.space
    rows = space.indices(np.stack([widths_of(each.architecture, subject.shape) for each in best]))
    mutated = mutate(space, rows[np.arange(count) % len(rows)], rng)
    for i in range(count):
        budget = budget_of(subject.cost, keep * rng.uniform(1 - NEAR, 1.0))
        mutated[i] = fit(space, budget, mutated[i : i + 1], rng)[0]
    return space.widths(np.unique(mutated, axis=0))


if __name__ == "__main__":
    sys.exit(run(Settings, main))
