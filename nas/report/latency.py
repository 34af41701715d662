"""Latencies: sums of modules against whole subnets, and against what the compared models really took."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nas.report.record import Report, at, number
from nas.report.svg import frame, paint, ticks
from nas.report.words import baseline_name

PHASES = {"prefill": "prefill_ms", "decode": "decode_ms_per_token"}


def facts(report: Report) -> dict[str, Any] | None:
    """What the section says: the errors of each phase, and of each compared model the share of the parent's
    time as predicted and as measured. None without a table in the report."""
    if not at(report, "latency_table.prefill"):
        return None
    models = {"subnet": at(report, "subnet"), **(at(report, "baselines") or {})}
    return {
        "errors": [
            (phase, *(number(report, f"latency_table.{phase}.{kind}") for kind in ("raw_error", "error")))
            for phase in PHASES
        ],
        "rows": [
            (
                "subnet" if key == "subnet" else baseline_name(key),
                [(_share(report, model, phase, "predicted_latency"), _share(report, model, phase, "latency"))
                 for phase in PHASES],
            )
            for key, model in models.items() if model
        ],
    }  # fmt: skip


def measured_request(report: Report) -> tuple[float, float] | None:
    """Milliseconds that a request of the table's kind took the parent and the subnet at the end of the run:
    prefill and the tokens that follow."""
    tokens = number(report, "latency_table.request.tokens")
    if tokens is None:
        return None
    found = []
    for who in ("parent_scores", "subnet"):
        parts = [number(report, f"{who}.latency.{name}") for name in PHASES.values()]
        if parts[0] is None or parts[1] is None:
            return None
        found.append(parts[0] + tokens * parts[1])
    return found[0], found[1]


def _share(report: Report, model: Any, phase: str, kind: str) -> float | None:
    """Of the parent's time in one phase, as measured or as predicted, what a model takes."""
    own = number(model, f"{kind}.{PHASES[phase]}")
    if kind == "latency":
        whole = number(report, f"parent_scores.latency.{PHASES[phase]}")
    else:
        whole = number(report, f"latency_table.{phase}.parent")
    return own / whole if own is not None and whole else None


def picture(report: Report, width: float) -> Figure:
    """Predicted against measured, as shares of the parent's time: whole subnets of all sizes, prefill and
    decode, and the compared models' prefill."""
    figure, axes = frame(width, width, left=52, bottom=48, right=12, top=12)
    high, low = 1.0, 1.0
    for phase, colour in (("prefill", "dot"), ("decode", "ffn")):
        # Each over the parent by the same means: measured over measured, predicted over predicted.
        wholes = [number(report, f"latency_table.{phase}.{name}") or 1.0 for name in ("whole", "parent")]
        lists = [at(report, f"latency_table.{phase}.{name}") or [] for name in ("measured", "predicted")]
        points = np.array(lists, dtype=float) / np.array(wholes)[:, None]
        if points.size:
            high, low = max(high, float(points.max())), min(low, float(points.min()))
        axes.plot(*points, "o", color=paint(colour), alpha=0.75, markersize=5, markeredgewidth=0)
    for _, shares in (facts(report) or {"rows": []})["rows"]:
        predicted, measured = shares[0]
        if predicted is not None and measured is not None:
            high, low = max(high, predicted, measured), min(low, predicted, measured)
            axes.plot(
                [measured], [predicted], "o", color=paint("subnet"), markersize=8,
                markeredgecolor=paint("paper"), markeredgewidth=1.5,
            )  # fmt: skip
    spare = 0.06 * (high - low + 0.01)
    # Times of a busy machine scatter over decades: at most eight marks, however far.
    step = next(s * 10.0**p for p in range(-1, 9) for s in (1, 2, 5) if high - low <= 8 * s * 10.0**p)
    marks = [mark for mark in np.arange(0.0, high + spare, step) if low - spare <= mark]
    for which in ("x", "y"):
        (axes.set_xlim if which == "x" else axes.set_ylim)(low - spare, high + spare)
        ticks(axes, which, marks, [f"{100 * mark:.0f} %" for mark in marks])
    axes.plot(axes.get_xlim(), axes.get_ylim(), color=paint("muted"), linewidth=1, linestyle=(0, (3, 3)))
    axes.set_xlabel("measured", fontsize=11, color=paint("muted"), labelpad=6)
    axes.set_ylabel("predicted", fontsize=11, color=paint("muted"), labelpad=6)
    return figure
