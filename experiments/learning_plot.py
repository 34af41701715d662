"""Learning curves as a picture: what each predictor is worth after so many pairs, with its spread."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import pandas as pd
from matplotlib import pyplot
from matplotlib.axes import Axes

PANELS = {
    "kendall_tau_in_band": "Kendall's τ in the band",
    "kendall_tau_mutated": "Kendall's τ near the optimum",
    "regret": "regret of a search, nats",
}
COLOURS, SHADED = 10, 3
"""Before a colour comes again, dashed; and how many of the best show their spread."""


def draw(frame: pd.DataFrame, path: Path, title: str) -> None:
    """A panel a measure, a line a predictor: the mean over seeds, and one standard deviation shaded."""
    panels = {column: words for column, words in PANELS.items() if frame[column].notna().any()}
    figure, grid = pyplot.subplots(
        1, len(panels), figsize=(5.4 * len(panels) + 2.2, 5), layout="constrained", squeeze=False
    )
    last = frame[frame.pairs == frame.pairs.max()].groupby("predictor").kendall_tau_in_band.mean()
    order = list(last.sort_values(ascending=False).index)
    for axes, (column, words) in zip(grid[0], panels.items(), strict=True):
        _panel(axes, frame, column, order)
        axes.set(xlabel="pairs learned from", ylabel=words, xscale="log")
        ticks = sorted(frame.pairs.unique())
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    # The worst few would squeeze all others into a corner.
    for axes, (column, _) in zip(grid[0], panels.items(), strict=True):
        means = frame.groupby(["predictor", "pairs"])[column].mean()
        low, high = means.quantile(0.08), means.max()
        axes.set_ylim(
            *((0.0, 1.1 * high + 1e-4) if column == "regret" else (low - 0.05, min(1.0, high + 0.03)))
        )
    grid[0][-1].legend(
        fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0), title="by τ in the band"
    )
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _panel(axes: Axes, frame: pd.DataFrame, column: str, order: list[str]) -> None:
    styles = ["-", "--", ":"]
    for rank, name in enumerate(order):
        by = frame[frame.predictor == name].groupby("pairs")[column]
        mean, spread = by.mean(), by.std().fillna(0.0)
        colour, style = f"C{rank % COLOURS}", styles[rank // COLOURS % len(styles)]
        axes.plot(mean.index, mean, style, color=colour, marker="o", markersize=3, label=name)
        if rank < SHADED:
            axes.fill_between(mean.index, mean - spread, mean + spread, color=colour, alpha=0.12, linewidth=0)
