"""Quality against size, the history of the search, and predictions against measurements."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nas.report.compare import pair_reference, ratio
from nas.report.record import Report, at, number
from nas.report.svg import BASELINE_MARKERS, ROUNDS, frame, paint, ticks, write
from nas.report.words import baseline_name

Floats = NDArray[np.float64]

SEARCH = "search"
GAP = 15.0
"""Pixels between the middles of neighbouring labels."""


def pair_points(report: Report) -> tuple[Floats, Floats, list[str]]:
    """Of every finite pair, in order: fraction kept, perplexity over the parent's, origin."""
    reference = pair_reference(report)
    found = [
        (kept, over, str(at(pair, "origin", "")))
        for pair in at(report, "pairs") or []
        if (kept := number(pair, "kept")) is not None
        and (score := number(pair, "score")) is not None
        and (over := ratio(-score, reference)) is not None
    ]
    return np.array([k for k, _, _ in found]), np.array([r for _, r, _ in found]), [o for _, _, o in found]


def origins(names: Sequence[str]) -> dict[str, str]:
    """The paint of each origin in order of appearance: that of the start, then the rounds' spread evenly; a
    baseline has its own."""
    order = list(dict.fromkeys(names))
    later = [name for name in order if name != "start" and name not in BASELINE_MARKERS]
    steps = np.linspace(1, min(ROUNDS, max(len(later), 1)), len(later)).round().astype(int)
    rounds = {name: f"round{step}" for name, step in zip(later, steps, strict=True)}
    return {name: rounds.get(name, name if name in BASELINE_MARKERS else "start") for name in order}


def compared(report: Report) -> list[tuple[str, float, float]]:
    """Key, fraction kept and validation perplexity over the parent's, of the subnet and of each baseline."""
    models = {"subnet": at(report, "subnet"), **(at(report, "baselines") or {})}
    reference = number(report, "parent_scores.validation.nll")
    return [
        (key, kept, over)
        for key, model in models.items()
        if (kept := number(model, "block_parameters_kept")) is not None
        and (over := ratio(number(model, "scores.validation.nll"), reference)) is not None
    ]


def budget_kept(report: Report) -> float | None:
    """The limit on block parameters as a fraction of the parent's."""
    limit, whole = number(report, "budget.limits.block_parameters"), number(report, "parent.block_parameters")
    return limit / whole if limit and whole else None


def quality_ceiling(report: Report) -> float:
    """The largest ratio that the picture of quality and size shows."""
    _, over, _ = pair_points(report)
    usual = [float(np.percentile(over, 88))] if len(over) else []
    # One baseline that fails badly must not press all others together: it is drawn at the upper edge.
    models = [y * 1.04 for key, _, y in compared(report) if key == "subnet" or not usual or y <= 2 * usual[0]]
    return max([1.2, *usual, *models])


def quality(report: Report, width: float) -> Figure:
    """Perplexity over the parent's (log scale) against the fraction of block parameters kept."""
    kept, over, _ = pair_points(report)
    models = compared(report)
    height = 0.5 * width if width > 500 else 320.0
    left, bottom = 46.0, 44.0
    figure, axes = frame(width, height, left=left, bottom=bottom, right=14, top=16)
    high = quality_ceiling(report)
    low = min([1.0, *over[over <= high], *(y for _, _, y in models)])
    smallest = min([0.9, *kept, *(x for _, x, _ in models)])
    ratio_axis(axes, low, high, height - bottom - 16, pad=0.09)
    axes.set_xlim(smallest - 0.05 * (1 - smallest), 1.0 + 0.015 * (1 - smallest))
    step = next(s for s in (0.02, 0.05, 0.1, 0.2) if (1 - smallest) / s <= (width - 60) / 55)
    marks = [x for x in np.arange(1.0, 0.0, -step) if x >= axes.get_xlim()[0]][::-1]
    ticks(axes, "x", marks, [f"{100 * x:.0f} %" for x in marks], rules=False)
    axes.set_xlabel("block parameters kept", fontsize=11, color=paint("muted"), labelpad=6)
    if (limit := budget_kept(report)) is not None and limit < 1:
        axes.axvline(limit, color=paint("muted"), linewidth=1, linestyle=(0, (3, 3)))
        write(axes, limit, axes.get_ylim()[1], " budget", va="top", colour="muted")
    shown = over <= high
    axes.plot(
        kept[shown], over[shown], "o", color=paint("dot"), alpha=0.55, markersize=4.5, markeredgewidth=0
    )
    axes.plot([1.0], [1.0], "o", color=paint("ink"), markersize=8, markeredgewidth=0, clip_on=False)
    _label(axes, models, high, width - left - 14, height - bottom - 16)
    return figure


def _label(
    axes: Axes, models: list[tuple[str, float, float]], high: float, width: float, height: float
) -> None:
    """Markers of the compared models, with their names beside them in one column, kept apart from each other
    and from the parent's, which stands under its mark."""
    down = _pixels(axes, height)
    under = np.exp(-15 / down)
    if not models:
        write(axes, 1.0, under, "parent", ha="right")
        return
    x_low, x_high = axes.get_xlim()
    top, bottom = np.log(axes.get_ylim()[1]) - 20 / down, np.log(axes.get_ylim()[0]) + 8 / down
    models = sorted(models, key=lambda model: model[2])
    wanted = [min(y, high) for _, _, y in models]
    last = int(np.searchsorted(wanted, under))
    places = np.exp(_apart(np.log(np.insert(wanted, last, under)), GAP / down, bottom, top))
    write(axes, 1.0, places[last], "parent", ha="right")
    column = max(x for _, x, _ in models) + 22 / width * (x_high - x_low)
    for (key, x, y), place in zip(models, np.delete(places, last), strict=True):
        name = "subnet" if key == "subnet" else baseline_name(key)[:24].encode("ascii", "replace").decode()
        colour = key if key in ("subnet", *BASELINE_MARKERS) else "other"
        edge = column - 4 / width * (x_high - x_low)
        mark = min(y, high)
        axes.plot([x, edge], [mark, place], color=paint(colour), linewidth=1, alpha=0.6)
        marker, size = ("o", 11) if key == "subnet" else BASELINE_MARKERS.get(key, ("X", 8))
        axes.plot(
            [x], [mark], marker, color=paint(colour), markersize=size, markeredgecolor=paint("paper"),
            markeredgewidth=1.5,
        )  # fmt: skip
        text = f"{name}  {y:,.3f} ×" if y <= high else f"{name}  {y:,.3g} ×, above"
        write(axes, column, place, text, colour=colour, bold=key == "subnet")


def history(report: Report, width: float) -> Figure:
    """Every evaluation in order, and the best within the budget that each method has so far; lower is
    better."""
    kept, over, names = pair_points(report)
    colours = origins(names)
    height = 0.38 * width if width > 500 else 280.0
    figure, axes = frame(width, height, left=46, bottom=44, right=14, top=12)
    low, high = float(over.min()), history_ceiling(report)
    ratio_axis(axes, low, high, height - 56, pad=0.07)
    axes.set_xlim(-0.012 * len(over), len(over) * 1.012)
    axes.set_xlabel("real evaluations", fontsize=11, color=paint("muted"), labelpad=6)
    step = next(
        s * 10**p for p in range(9) for s in (1, 2, 5) if len(over) / (s * 10**p) <= (width - 60) / 60
    )
    marks = range(0, len(over) + 1, step)
    ticks(axes, "x", marks, [f"{mark:,}" for mark in marks], rules=False)
    place = np.arange(1, len(over) + 1)
    for name, colour in colours.items():
        mine = np.array([other == name for other in names]) & (over <= high)
        axes.plot(
            place[mine], over[mine], "o", color=paint(colour), alpha=0.65, markersize=4, markeredgewidth=0
        )
    methods = np.array([method_of(name) for name in names])
    for method, line in best_so_far(report).items():
        # An evaluation is a step of width 1 that ends at its number; stretches of one origin are one line.
        where = np.flatnonzero(methods == method)
        for name, stretch in groupby(range(len(where)), key=[names[i] for i in where].__getitem__):
            part = list(stretch)
            axes.plot(
                np.r_[where[part], where[part[-1]] + 1], np.r_[line[max(part[0] - 1, 0)], line[part]],
                color=paint(colours[name]), linewidth=2.5, drawstyle="steps-pre", solid_capstyle="round",
            )  # fmt: skip
    return figure


def method_of(origin: str) -> str:
    """What an evaluation counts for: a baseline of this name, or else the search."""
    return origin if origin in BASELINE_MARKERS else SEARCH


def best_so_far(report: Report) -> dict[str, Floats]:
    """Of each method (`method_of`), after each of its pairs the smallest ratio of those within the budget
    until then; nan before the first."""
    kept, over, names = pair_points(report)
    limit = budget_kept(report)
    allowed = over if limit is None else np.where(kept <= limit * (1 + 1e-6), over, np.nan)
    methods = [method_of(name) for name in names]
    return {
        method: np.fmin.accumulate(allowed[np.array(methods) == method]) for method in dict.fromkeys(methods)
    }


def history_ceiling(report: Report) -> float:
    """The largest ratio that the picture of the history shows."""
    _, over, _ = pair_points(report)
    return float(np.percentile(over, 80))


def held_out(report: Report) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Measured and predicted perplexity over the parent's of the held-out pairs, and which of them are in the
    size band around the budget."""
    reference = pair_reference(report)
    found = [
        (x, y, at(pair, "inside") is True)
        for pair in at(report, "predictor.held_out") or []
        if (measured := number(pair, "measured")) is not None
        and (predicted := number(pair, "predicted")) is not None
        and (x := ratio(-measured, reference)) is not None
        and (y := ratio(-predicted, reference)) is not None
    ]
    points = np.array([(x, y) for x, y, _ in found]).reshape(-1, 2)
    return points[:, 0], points[:, 1], np.array([inside for _, _, inside in found], dtype=bool)


def predictor(report: Report, width: float) -> Figure:
    """Predicted against measured, both as perplexity over the parent's on log scales."""
    measured, predicted, inside = held_out(report)
    figure, axes = frame(width, width, left=52, bottom=48, right=12, top=12)
    both = np.concatenate([measured, predicted])
    low, high = float(both.min()), float(np.percentile(both, 99))
    for which in ("x", "y"):
        ratio_axis(axes, low, high, width - 64, pad=0.04, which=which, spacing=48 if which == "x" else 32)
    axes.plot(axes.get_xlim(), axes.get_ylim(), color=paint("muted"), linewidth=1, linestyle=(0, (3, 3)))
    for chosen, colour, alpha in ((~inside, "dot", 0.55), (inside, "subnet", 0.75)):
        x, y = measured[chosen], predicted[chosen]
        axes.plot(x, y, "o", color=paint(colour), alpha=alpha, markersize=4.5, markeredgewidth=0)
    axes.set_xlabel("measured", fontsize=11, color=paint("muted"), labelpad=6)
    axes.set_ylabel("predicted", fontsize=11, color=paint("muted"), labelpad=6)
    return figure


def ratio_axis(
    axes: Axes, low: float, high: float, pixels: float, *, pad: float, which: str = "y", spacing: float = 34.0
) -> None:
    """A log axis over these ratios, `pad` of its length to spare at both ends, ticks `spacing` px apart."""
    high = max(high, low * 1.01)
    spare = pad / (1 - 2 * pad) * np.log(high / low)
    limits = (low * np.exp(-spare), high * np.exp(spare))
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(*limits)
    marks = _ratio_ticks(*limits, least=spacing / pixels)
    ticks(axes, which, marks, [f"{mark:.4g} ×" for mark in marks])


def _ratio_ticks(low: float, high: float, least: float) -> list[float]:
    """Round ratios between the limits, at least this fraction of the log axis apart, the roundest first."""
    marks: list[float] = []
    levels = [[nice * 10.0**p for p in range(-2, 300)] for nice in (1, 2, 5, 3, 1.5, 7)]
    steps = (0.5, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
    # Near 1 finer steps are round too: 1.05 is a tick to read, 2.35 is not.
    levels += [[round(1 + i * step, 3) for i in range(-6, 7)] for step in steps]
    for mark in (mark for level in levels for mark in level if low <= mark <= high):
        if all(abs(np.log(mark / other)) >= least * np.log(high / low) for other in marks):
            marks.append(mark)
    return sorted(marks)


def _pixels(axes: Axes, height: float) -> float:
    """Pixels per unit of log ratio on the y axis."""
    low, high = axes.get_ylim()
    return float(height / np.log(high / low))


def _apart(places: Floats, gap: float, low: float, high: float) -> Floats:
    """Ascending places moved as little as needed to be `gap` apart and within the limits, if they can be."""
    moved = np.clip(places, low, high)
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap)
    moved[-1] = min(moved[-1], max(high, low + gap * (len(moved) - 1)))
    for i in range(len(moved) - 2, -1, -1):
        moved[i] = min(moved[i], moved[i + 1] - gap)
    return moved
