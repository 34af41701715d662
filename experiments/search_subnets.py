"""What would fit in which budget? A whole front of them from pairs that were measured before, in seconds.

A predictor is fitted on a pair table or a finished run, and the best predicted subnet is searched for within
every budget; nothing is evaluated. `--cost` chooses what is limited, for latencies by a table of
experiments.measure_latency. The front goes to the terminal, `search.json` and `search.png`.

    python -m experiments.search_subnets --levels 0.25 0.3 0.4 0.5
    python -m experiments.search_subnets --cost latency_ms --latency-table runs/latency.json
    python -m experiments.search_subnets --compare --seeds 5 --seconds 3 --levels 0.3 0.5

With `--compare` every strategy gets the same seconds for the same budgets: Optuna's samplers alone and with
vectorised climbs, exact integer programming on additive models, and one multi-objective search for the whole
front.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import matplotlib

from data.json_text import from_json

matplotlib.use("Agg")
import numpy as np
import pandas as pd
from matplotlib import pyplot
from matplotlib.ticker import FormatStrFormatter
from tqdm import tqdm

from data.errors import InputError
from experiments.command_line import check_least, option, run
from experiments.results import seeded, usable, versions
from experiments.strategies import SINGLES, STRATEGIES, Problem
from experiments.tables import DEMO, open_table, sibling
from nas.cost import COSTS, Budget
from nas.latency_table import read_latency
from nas.pair_table import PairTable
from nas.pareto import best_within, pareto_search
from nas.proposals import smallest
from nas.replacement import module_damage
from nas.report import write_json
from nas.shape import Widths, architecture_of
from nas.what_if import known_starts
from predictors import PREDICTORS

BOTH = "nsga2 for score and cost at once"
DEFAULT = next(iter(STRATEGIES))


@dataclass(frozen=True)
class Settings:
    """A table, a cost and budgets."""

    pairs_from: Path = option(
        DEMO, "a pair table, or the folder of a finished run", group="pairs", metavar="PATH"
    )
    predictor: str = option(
        "xgboost", f"one of {', '.join(PREDICTORS)}, or an import path package.module:Class", group="pairs"
    )
    cost: str = option("block_parameters", "what is limited", group="budgets", choices=COSTS)
    levels: tuple[float, ...] = option(
        (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6), "limits, as fractions of the parent's cost",
        group="budgets",
    )  # fmt: skip
    latency_table: Path | None = option(None, "for --cost latency_ms", group="budgets")
    strategies: tuple[str, ...] = option(
        (), f"of {', '.join(map(repr, [*STRATEGIES, BOTH]))}, in quotes", group="search", metavar="NAME"
    )
    compare: bool = option(False, "all strategies instead of the main job's alone", group="search")
    seconds: float = option(2.0, "for each budget and strategy", group="search", least=0)
    seeds: int = option(1, "repetitions", group="search", least=1)
    out: Path = option(Path("runs/search"), "folder of the results", group="run")


def main(settings: Settings) -> None:
    """Fit, search, show."""
    names = check(settings)
    table = open_table(settings.pairs_from)
    if settings.latency_table is not None:
        latency = read_latency(settings.latency_table, table.space.shape)
        table = replace(table, cost=replace(table.cost, latency=latency))
    elif settings.cost == "latency_ms":
        raise InputError("--cost latency_ms needs a --latency-table; experiments.measure_latency makes one")
    if len(table.pairs) < 10:
        raise InputError(
            f"{settings.pairs_from} holds {len(table.pairs)} pairs; a predictor needs 10 or more"
        )
    usable(settings.out, "--out")
    whole = table.cost(table.space.shape.parent)[settings.cost]
    budgets = {level: Budget(table.cost, {settings.cost: level * whole}) for level in sorted(settings.levels)}
    least = float(table.cost.of_widths(table.space.widths(smallest(table.space)))[settings.cost][0]) / whole
    if min(budgets) < least:
        raise InputError(
            f"--levels {min(budgets)} of the parent's {settings.cost} is too small: give "
            f"{np.ceil(1e4 * least) / 1e4} or more"
        )
    asked = {"settings": json.loads(json.dumps(asdict(settings), default=str)), "table": table.digest}
    refuse_other(settings.out / "search.json", asked)
    begins = perf_counter()
    rows: list[dict[str, Any]] = []
    for seed in range(settings.seeds):
        problem = fitted(table, settings, names, seed)
        for found in searches(problem, budgets, names, settings, seed):
            rows.append(found)
    record = {
        **asked, "setting": table.setting.digest, "versions": versions(), "reference": table.reference,
        "rows": rows,
    }  # fmt: skip
    write_json(record, settings.out / "search.json")
    if not rows:
        raise InputError("no strategy found a subnet; give looser --levels, or other --strategies")
    frame = pd.DataFrame(rows)
    draw(frame, table, settings)
    print(front(frame, table, settings) if len(names) == 1 else comparison(frame))
    print(f"\n{perf_counter() - begins:.1f} s; {settings.out / 'search.json'}, {settings.out / 'search.png'}")


def refuse_other(path: Path, asked: dict[str, Any]) -> None:
    """Raise `InputError` where other settings, or another table, made what is there."""
    if not path.is_file():
        return
    try:
        theirs = from_json(path.read_text())
        same = {name: theirs[name] for name in asked} == asked
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}); move it away, or give another --out") from error
    if not same:
        raise InputError(f"{path} is the result of other settings or of another table; give another --out")


def check(settings: Settings) -> list[str]:
    """The strategies to run; refuse what cannot mean anything, before any work."""
    check_least(settings)
    if not settings.levels or not all(0 < level <= 1 for level in settings.levels):
        raise InputError(f"--levels is {settings.levels}; give fractions above 0 and at most 1")
    if not settings.seconds > 0:
        raise InputError(f"--seconds is {settings.seconds}; give more than 0")
    known = [*STRATEGIES, BOTH]
    for name in settings.strategies:
        if name not in known:
            raise InputError(f"no strategy is called {name!r}; choose from {'; '.join(known)}")
    return list(settings.strategies) or (known if settings.compare else [DEFAULT])


def fitted(table: PairTable, settings: Settings, names: list[str], seed: int) -> Problem:
    """The predictor fitted on all pairs, and the measured single replacements beside the table where a
    strategy asks for them."""
    predictor = table.correcting(seeded(seed)(settings.predictor)).fit(table.features, table.scores)
    singles = sibling(settings.pairs_from, "replaced") if SINGLES in names else None
    if singles is None:
        return Problem(table, predictor, None)
    table.check_alike(singles)
    return Problem(table, predictor, module_damage(singles.pairs, table.space.shape, table.reference))


def searches(
    problem: Problem, budgets: dict[float, Budget], names: list[str], settings: Settings, seed: int
) -> Iterator[dict[str, Any]]:
    """A row for every strategy and budget for which it found something."""
    table, limits = problem.table, {level: budget.limits[settings.cost] for level, budget in budgets.items()}

    def row(
        name: str, level: float, widths: Widths, score: float, seconds: float, proposals: int
    ) -> dict[str, Any]:
        architecture = architecture_of(widths, table.space.shape)
        share = float(table.kept(widths[None])[0])
        return {
            "strategy": name, "seed": seed, "cost": settings.cost, "level": level, "limit": limits[level],
            "predicted_score": score, "predicted_perplexity": float(np.exp(-score)),
            "over_parent": float(np.exp(table.reference - score)), "costs": table.cost(architecture),
            "kept": share, "among_pairs": table.among_pairs(widths), "seconds": seconds,
            "proposals": proposals,
            "architecture": architecture.to_json(), "digest": architecture.digest,
        }  # fmt: skip

    wanted = [(name, level) for name in names if name != BOTH for level in budgets]
    for name, level in tqdm(wanted, desc="search", unit="budget", leave=False):
        begins = perf_counter()
        found = STRATEGIES[name](problem, budgets[level], settings.seconds, seed)
        spent = perf_counter() - begins
        if len(found.indices):
            widths = table.space.widths(found.indices[:1])[0]
            yield row(name, level, widths, float(found.predicted[0]), spent, found.proposals)
    if BOTH in names:
        begins = perf_counter()
        ends = begins + settings.seconds * len(budgets)
        rng = np.random.default_rng([seed, 1])
        first = np.concatenate([known_starts(table, budget, rng) for budget in budgets.values()])
        found, costs = pareto_search(
            table.space, table.cost, settings.cost, problem.predict, starts=first, seed=seed,
            trials=10**9, seconds=ends - perf_counter(),
        )  # fmt: skip
        spent = (perf_counter() - begins) / len(budgets)
        for level, number in zip(budgets, best_within(found, costs, list(limits.values())), strict=True):
            if number is not None:
                widths = table.space.widths(found.indices[number : number + 1])[0]
                yield row(
                    BOTH,
                    level,
                    widths,
                    float(found.predicted[number]),
                    spent,
                    found.proposals // len(budgets),
                )


def front(frame: pd.DataFrame, table: PairTable, settings: Settings) -> str:
    """One line a budget: what the best predicted subnet costs and scores; * where no pair is of its size."""
    whole = table.cost(table.space.shape.parent)
    lines = []
    for _, found in frame[frame.seed == 0].iterrows():
        shares = {name: found.costs[name] / whole[name] for name in table.cost.names}
        lines.append(
            {
                settings.cost: f"{found.level:.3g}",
                **{name: f"{share:.3f}" for name, share in shares.items() if name != settings.cost},
                "perplexity": f"{found.predicted_perplexity:.2f}",
                "× parent": f"{found.over_parent:.3f}" + ("" if found.among_pairs else "*"),
                "architecture": found.digest,
                "s": f"{found.seconds:.1f}",
            }
        )
    text = pd.DataFrame(lines).to_string(index=False)
    stars = not frame.among_pairs.all()
    return (
        f"predicted from {len(table.pairs)} pairs, on the windows that these were measured on; costs as "
        f"fractions of the parent's\n{text}"
        + "\n* hardly a pair keeps as many block parameters: an extrapolation"
        * stars
    )


def comparison(frame: pd.DataFrame) -> str:
    """One line a strategy: predicted perplexity over the parent's at every budget, mean over seeds."""
    shown = frame.pivot_table(index="strategy", columns="level", values="over_parent")
    by = frame.groupby("strategy")
    shown["mean"] = shown.mean(axis=1, skipna=False)  # what found nothing somewhere is not compared
    shown["proposals"] = by.proposals.mean()
    shown["s"] = by.seconds.mean()
    return (
        "predicted perplexity over the parent's, by budget, mean over seeds; seconds of each search\n"
        + shown.sort_values("mean", na_position="last")
        .rename_axis(None)
        .to_string(
            formatters={"proposals": "{:,.0f}".format, "s": "{:.2f}".format}, float_format="{:.4f}".format
        )
    )


def draw(frame: pd.DataFrame, table: PairTable, settings: Settings) -> None:
    """The pairs as dots, and what each strategy found as a line."""
    figure, axes = pyplot.subplots(figsize=(11, 5.5), layout="constrained")
    whole = table.cost(table.space.shape.parent)[settings.cost]
    costs = table.cost.of_widths(table.widths, [settings.cost])[settings.cost] / whole
    axes.scatter(costs, np.exp(table.reference - table.scores), s=6, color="0.8", label="pairs, measured")
    for number, (name, rows) in enumerate(frame.groupby("strategy", sort=False)):
        line = rows.groupby("level").over_parent.mean()
        axes.plot(
            line.index,
            line,
            ["-", "--", ":", "-."][number // 10],
            marker="o",
            markersize=4,
            label=f"{name}, predicted",
        )
    axes.set(
        yscale="log",
        xlabel=f"{settings.cost}, fraction of the parent's",
        ylabel="perplexity, times the parent's",
        title=f"{settings.pairs_from.name}: the best predicted within each budget",
        ylim=(0.98, float(frame.over_parent.max()) * 1.6),
    )
    axes.grid(alpha=0.3, which="both")
    for kind in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        kind(FormatStrFormatter("%.1f"))
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(settings.out / "search.png", dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(run(Settings, main))
