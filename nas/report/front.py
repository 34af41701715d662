"""What other budgets would give: the best predicted subnet of each, beside the pairs it is learned from."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nas.report.compare import pair_reference, ratio
from nas.report.plots import pair_points, ratio_axis
from nas.report.record import Report, at, number
from nas.report.svg import frame, paint, ticks

COSTS = ("parameters", "flops", "kv_cache_bytes", "latency_ms")


def facts(report: Report) -> list[dict[str, Any]]:
    """A row for every budget: what it keeps, the shares of the parent's costs, the predicted perplexity over
    the parent's and whether pairs of that size were measured."""
    reference = pair_reference(report)
    rows = []
    for one in at(report, "front") or []:
        kept, score = number(one, "kept"), number(one, "predicted_score")
        over = None if score is None else ratio(-score, reference)
        if kept is None or over is None:
            continue
        shares = {}
        for name in COSTS:
            own, whole = number(one, f"costs.{name}"), number(report, f"budget.parent_costs.{name}")
            if own is not None and whole:
                shares[name] = own / whole
        rows.append(
            {"kept": kept, "over": over, "shares": shares, "known": at(one, "among_pairs") is True,
             "digest": str(at(one, "digest", ""))}
        )  # fmt: skip
    return rows


def picture(report: Report, width: float) -> Figure:
    """Predicted perplexity over the parent's (log scale) against the fraction of block parameters kept;
    hollow where no pair is of that size."""
    rows = facts(report)
    height = 0.38 * width if width > 500 else 280.0
    figure, axes = frame(width, height, left=46, bottom=44, right=14, top=12)
    x, y = np.array([row["kept"] for row in rows]), np.array([row["over"] for row in rows])
    kept, over, _ = pair_points(report)
    high = max(float(y.max()) * 1.05, 1.05)
    ratio_axis(axes, min(1.0, float(y.min())), high, height - 56, pad=0.07)
    axes.set_xlim(float(x.min()) - 0.03, min(1.02, float(x.max()) + 0.03))
    marks = [mark for mark in np.arange(0.0, 1.01, 0.1) if axes.get_xlim()[0] <= mark <= axes.get_xlim()[1]]
    ticks(axes, "x", marks, [f"{100 * mark:.0f} %" for mark in marks], rules=False)
    axes.set_xlabel("block parameters kept", fontsize=11, color=paint("muted"), labelpad=6)
    shown = over <= high
    axes.plot(kept[shown], over[shown], "o", color=paint("dot"), alpha=0.4, markersize=4, markeredgewidth=0)
    axes.plot(x, y, color=paint("subnet"), linewidth=2)
    known = np.array([row["known"] for row in rows])
    for where, face in ((known, "subnet"), (~known, "paper")):
        axes.plot(
            x[where], y[where], "o", color=paint("subnet"), markerfacecolor=paint(face), markersize=7,
            markeredgewidth=1.5,
        )  # fmt: skip
    return figure
