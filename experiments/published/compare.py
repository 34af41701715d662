"""Which way of making a model smaller keeps most of it? Systems and baselines at equal size, data and tests.

Each system runs at every fraction asked for, with its own default settings and the common ones given here;
what is already there under `--out` is not run again, so that a comparison can grow. The table goes to the
terminal, `compare.json` and `compare.png`.

    python -m experiments.published.compare --parent FOLDER --corpus FOLDER --keep 0.8 0.6 0.5
    python -m experiments.published.compare --systems flap output_approximation uniform
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from data.errors import InputError
from experiments.command_line import option, run
from experiments.published import (
    accuracy_predictor,
    estimation_fusion,
    output_approximation,
    supernet,
)
from experiments.published.baselines import BASELINES
from experiments.published.case import Case, Common, open_case, produce, table
from experiments.stages import say
from nas.report import write_json

SYSTEMS: dict[str, tuple[type[Common], Callable[..., Any]]] = {
    "accuracy_predictor": (accuracy_predictor.Settings, accuracy_predictor.prune),
    "estimation_fusion": (estimation_fusion.Settings, estimation_fusion.prune),
    "output_approximation": (output_approximation.Settings, output_approximation.prune),
    "supernet": (supernet.Settings, supernet.prune),
    **{name: (Common, baseline) for name, baseline in BASELINES.items()},
}
"""Settings and pruning function by name."""


@dataclass(frozen=True)
class Settings(Common):
    """What is compared."""

    systems: tuple[str, ...] = option(
        (), f"which of {', '.join(SYSTEMS)}; all by default", group="systems", metavar="NAME"
    )


def main(settings: Settings) -> None:
    """Run what is missing, then print, plot and write all."""
    unknown = [name for name in settings.systems if name not in SYSTEMS]
    if unknown:
        raise InputError(f"there is no system {unknown[0]!r}; choose from {', '.join(SYSTEMS)}")
    case = open_case(settings)
    results = []
    for name in settings.systems or tuple(SYSTEMS):
        for keep in settings.keep:
            try:
                results.append(one(case, name, keep, settings))
            except InputError as error:  # what this system cannot do, others can
                say(f"{name} at {keep:g} is left out: {error}")
        write_json(results, settings.out / "compare.json")
    if not results:
        raise InputError("no system could be run; the lines above say why, give other --systems or --keep")
    print(table(results))
    plot(results, settings.out / "compare.png")


def one(case: Case, name: str, keep: float, settings: Settings) -> dict[str, Any]:
    """The record of one system at one fraction."""
    kind, prune = SYSTEMS[name]
    shared = {each.name: getattr(settings, each.name) for each in fields(Common)}
    return produce(case, name, keep, prune, kind(**shared))


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Perplexity over the parent's against the fraction kept, a line a system."""
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    styles = ["-", "--", ":", "-."]
    for index, name in enumerate(dict.fromkeys(result["system"] for result in results)):
        points = sorted(
            {(result["kept"], result["over_parent"]) for result in results if result["system"] == name}
        )
        axes.plot(*zip(*points, strict=True), marker="o", linestyle=styles[index // 10 % 4], label=name)
    axes.set(
        xlabel="fraction of the blocks' parameters kept", ylabel="test perplexity, times the parent's",
        yscale="log", title=f"one parent, one text, one evaluation: {results[0]['asked']['parent']}",
    )  # fmt: skip
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small", loc="upper right")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(run(Settings, main))
