"""Which way of making a model smaller keeps most of it? Systems and baselines at equal size, data and tests.

Each system runs at every fraction asked for, with its own default settings and the common ones given here;
what is already there under `--out` is not run again, so that a comparison can grow. The table goes to the
terminal, `compare.json` and `compare.png`.

    python -m experiments.published.compare --parent FOLDER --corpus FOLDER --keep 0.8 0.6 0.5
    python -m experiments.published.compare --systems flap output_approximation uniform --tasks piqa arc_easy
    python -m experiments.published.compare --recovery lora --recovery-steps 200

SLEB and ShortGPT drop whole blocks, as many as come nearest to the fraction: look at what is really kept.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FormatStrFormatter

from data.errors import InputError
from experiments.command_line import option, run
from experiments.published import (
    accuracy_predictor,
    efficient_search,
    estimation_fusion,
    main_job,
    output_approximation,
    supernet,
)
from experiments.published.baselines import BASELINES
from experiments.published.case import Case, Common, open_case
from experiments.published.outcome import Outcome, produce, read_results
from experiments.published.table import table
from experiments.stages import say
from nas.report import write_json

SYSTEMS: dict[str, tuple[type[Common], Callable[..., Outcome], dict[str, Any]]] = {
    "secateur": (Common, main_job.prune, {}),
    "efficient_search": (efficient_search.Settings, efficient_search.prune, {}),
    "accuracy_predictor": (accuracy_predictor.Settings, accuracy_predictor.prune, {}),
    "output_approximation": (output_approximation.Settings, output_approximation.prune, {}),
    "output_approximation_compensated": (
        output_approximation.Settings,
        output_approximation.prune,
        {"compensate": True},
    ),
    "estimation_fusion": (estimation_fusion.Settings, estimation_fusion.prune, {}),
    "supernet": (supernet.Settings, supernet.prune, {}),
    "supernet_rotation": (supernet.Settings, supernet.prune, {"hidden_order": "rotation"}),
    **{name: (Common, baseline, {}) for name, baseline in BASELINES.items()},
}
"""Settings, pruning function and what differs from the settings' defaults, by name."""

COUNTS = {
    "efficient_search": ("epochs", "population"),
    "accuracy_predictor": ("tied", "free", "draws"),
    "estimation_fusion": ("trials",),
}
"""Settings that say how much a system's search measures."""


@dataclass(frozen=True)
class Settings(Common):
    """What is compared."""

    systems: tuple[str, ...] = option(
        (), f"which of {', '.join(SYSTEMS)}; all by default", group="systems", metavar="NAME"
    )
    effort: float = option(
        1.0,
        "share of the papers' numbers of pairs, generations and candidates, for systems that have them (the "
        "main job keeps its defaults, and so does the super-network)",
        group="systems",
    )


def main(settings: Settings) -> None:
    """Run what is missing, then print, plot and write all."""
    unknown = [name for name in settings.systems if name not in SYSTEMS]
    if unknown:
        raise InputError(f"there is no system {unknown[0]!r}; choose from {', '.join(SYSTEMS)}")
    if settings.effort <= 0:
        raise InputError(f"--effort is {settings.effort}; give a positive share")
    case = open_case(settings)
    results = []
    for name in dict.fromkeys(settings.systems or SYSTEMS):
        for keep in dict.fromkeys(settings.keep):
            try:
                for result in one(case, name, keep, settings):
                    results.append(result)
            except InputError as error:  # what this system cannot do, others can
                say(f"{name} at {keep:g} is left out: {error}")
    if not results:
        raise InputError("no system could be run; the lines above say why, give other --systems or --keep")
    results = with_others(results[0]["measured"], settings.out)
    write_json(results, settings.out / "compare.json")
    print(table(results))
    plot(results, settings.out / "compare.png")
    say(f"{settings.out / 'compare.json'}, {settings.out / 'compare.png'}; checkpoints beside them")


def with_others(measured: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """All results under `out` that were measured so, in the order of `SYSTEMS`, trained ones last."""
    alike = [each for each in read_results(out) if each["measured"] == measured]
    names = list(SYSTEMS)

    def place(result: dict[str, Any]) -> tuple[bool, int, float]:
        system = result["system"].partition("+")[0]
        rank = names.index(system) if system in names else len(names)
        return result["recovery"] is not None, rank, -result["keep"]

    return sorted(alike, key=place)


def one(case: Case, name: str, keep: float, settings: Settings) -> Iterator[dict[str, Any]]:
    """The records of one system at one fraction: as cut and, if asked for, as trained afterwards."""
    kind, prune, differs = SYSTEMS[name]
    own = kind(**{each.name: getattr(settings, each.name) for each in fields(Common)})
    counts = {count: max(5, round(getattr(own, count) * settings.effort)) for count in COUNTS.get(name, ())}
    return produce(case, name, keep, prune, replace(own, **counts, **differs))


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Perplexity over the parent's against the fraction kept, a line a system; trained subnets beside."""
    panels = {
        "as cut": [result for result in results if result["recovery"] is None],
        "after recovery": [result for result in results if result["recovery"] is not None],
    }
    panels = {name: each for name, each in panels.items() if each}
    figure, grid = pyplot.subplots(
        1,
        len(panels),
        figsize=(10 * len(panels), 6),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for axes, (title, each) in zip(grid[0], panels.items(), strict=True):
        axes.set(xlabel="fraction of the blocks' parameters kept", yscale="log", title=title)
        _lines(axes, each)
    grid[0][0].set_ylabel("test perplexity, times the parent's")
    figure.suptitle(f"one parent, one text, one evaluation: {Path(results[0]['asked']['parent']).name}")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _lines(axes: Axes, results: list[dict[str, Any]]) -> None:
    styles = ["-", "--", ":", "-."]
    worst = {result["system"]: result["over_parent"] for result in sorted(results, key=lambda r: -r["keep"])}
    for index, name in enumerate(sorted(worst, key=lambda system: -worst[system])):  # as the lines lie
        points = sorted(
            {(result["kept"], result["over_parent"]) for result in results if result["system"] == name}
        )
        label = f"{name} (a trained super-network)" if name.startswith("supernet") else name
        axes.plot(*zip(*points, strict=True), marker="o", linestyle=styles[index // 10 % 4], label=label)
    for kind in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        kind(FormatStrFormatter("%.2f"))
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))


if __name__ == "__main__":
    sys.exit(run(Settings, main))
