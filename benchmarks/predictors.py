"""What earns the default predictor its parts: a share of a ridge line, a bag, both, or neither.

    python -m benchmarks.predictors [--draws 4] [--pairs 50 150 400]

Three synthetic truths over knobs of transformer blocks, none of them the model of any predictor here:

- floor    saturating gain of every width + the least of each group of four blocks; widths about one budget
- cliff    softplus of the losses, those of neighbouring blocks compounding; widths from very small to full
- uniform  as floor, but every width drawn on its own, so that all rows cost nearly the same

Labels carry an error of 5 % of their standard deviation. Columns are the knobs and aggregates of them. The
number is Kendall's tau on fresh rows within 3 % of the median cost, mean over the draws; spread is Spearman's
correlation of the reported standard deviation with the error made, and err/std the ratio of their root mean
squares (1 is calibrated), both over all settings. Fit and predict (batches of 1000) are timed at the most
pairs, on one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from predictors import Predictor, UncertainPredictor
from predictors.gbdt import BoostedTrees
from predictors.metrics import kendall_tau_in_band
from predictors.ridge import StandardisedRidge

Array = NDArray[np.float64]
BLOCKS = 24
FRESH = 3000

VARIANTS: dict[str, Callable[[], Predictor]] = {
    "ridge": StandardisedRidge,
    "plain trees": lambda: BoostedTrees(ridge_share=0, bag=1),
    "bag of 8": lambda: BoostedTrees(ridge_share=0),
    "ridge, then trees": lambda: BoostedTrees(ridge_share=1, bag=1),
    "ridge, then bag": lambda: BoostedTrees(ridge_share=1),
    "half ridge, trees": lambda: BoostedTrees(bag=1),
    "default: half, bag": BoostedTrees,
    "default, depth 2": lambda: BoostedTrees(depth=2, trees=500),
    "default, bag of 5": lambda: BoostedTrees(bag=5),
}


def draw(truth: str, rows: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """FFN and attention widths, (rows, BLOCKS) each, as fractions of the full ones."""
    if truth == "uniform":
        return rng.integers(1, 9, (rows, BLOCKS)) / 8, rng.integers(0, 5, (rows, BLOCKS)) / 4
    low, high = (0.55, 0.75) if truth == "floor" else (0.35, 0.95)
    middle = rng.uniform(low, high, (rows, 1)) + rng.normal(0, 0.15, (rows, 1)) * np.linspace(-1, 1, BLOCKS)
    ffn = np.clip(np.round((middle + rng.normal(0, 0.2, (rows, BLOCKS))) * 8), 1, 8) / 8
    attention = np.clip(np.round((middle + rng.normal(0, 0.2, (rows, BLOCKS))) * 4), 0, 4) / 4
    return ffn, attention


def table(ffn: Array, attention: Array) -> tuple[Array, Array]:
    """Columns (rows, 2 * BLOCKS + 15) and costs (rows,)."""
    cost = (2 * ffn + attention).sum(1) / (3 * BLOCKS)
    both = (ffn + attention).reshape(len(ffn), 3, -1)
    parts = [cost, both.mean(2), both.min(2)]
    for width in (ffn, attention):
        parts += [width.mean(1), width.min(1), width.std(1), (width == 1).mean(1)]
    return np.column_stack([ffn, attention, *parts]), cost


def score(truth: str, ffn: Array, attention: Array, rng: np.random.Generator) -> Array:
    """Exact scores (rows,); the generator, freshly seeded, draws how much each block matters."""
    ends = 0.5 + np.abs(np.linspace(-1, 1, BLOCKS))
    of_ffn, of_attention = rng.gamma(2, 0.5, BLOCKS) * ends, rng.gamma(2, 0.3, BLOCKS) * ends
    gain, gain_attention = 1 - np.exp(-3 * ffn), 1 - np.exp(-3 * attention)
    if truth == "cliff":
        lost = of_ffn * (1 - gain) + of_attention * (1 - gain_attention)
        return -np.logaddexp(0, lost.sum(1) / 2 + 2 * (lost[:, 1:] * lost[:, :-1]).sum(1) - 2)
    least = (gain + gain_attention).reshape(len(ffn), -1, 4).min(2).sum(1)
    return gain @ of_ffn + gain_attention @ of_attention + least


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare variants of the default predictor.")
    parser.add_argument("--draws", type=int, default=4, help="truths and tables drawn per setting")
    parser.add_argument("--pairs", type=int, nargs="+", default=[50, 150, 400], help="sizes of the tables")
    settings = parser.parse_args()

    truths = ("floor", "cliff", "uniform")
    found: dict[str, dict[tuple[str, int], list[float]]] = {name: {} for name in VARIANTS}
    spread: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    for truth in truths:
        for pairs in settings.pairs:
            for seed in range(settings.draws):
                rng = np.random.default_rng([seed, pairs])
                known, fresh = draw(truth, pairs, rng), draw(truth, FRESH, rng)
                (X, _), (Q, cost) = table(*known), table(*fresh)
                exact, z = (score(truth, *w, np.random.default_rng(seed)) for w in (known, fresh))
                y = exact + rng.normal(0, 0.05 * exact.std(), pairs)
                for name, make in VARIANTS.items():
                    start = time.perf_counter()
                    predictor = make().fit(X, y)
                    middle = time.perf_counter()
                    p = np.concatenate([predictor.predict(Q[i : i + 1000]) for i in range(0, FRESH, 1000)])
                    if pairs == max(settings.pairs):
                        seconds[name].append((middle - start, time.perf_counter() - middle))
                    tau = kendall_tau_in_band(z, p, cost, float(np.median(cost)), 0.03)
                    found[name].setdefault((truth, pairs), []).append(tau)
                    if isinstance(predictor, UncertainPredictor) and len(predictor.boosters_) > 1:
                        std = predictor.predict_with_std(Q)[1]
                        ratio = np.sqrt(np.mean((p - z) ** 2) / np.mean(std**2))
                        spread[name].append((spearmanr(std, np.abs(p - z)).statistic, ratio))

    columns = [f"{truth} {pairs}" for truth in truths for pairs in settings.pairs]
    print(" " * 20, *(f"{column:>11}" for column in columns), "  mean  fit s  predict/s  spread  err/std")
    for name in VARIANTS:
        taus = [float(np.mean(values)) for values in found[name].values()]
        fit, predict = np.median(seconds[name], axis=0)
        known_std = "{:7.2f} {:8.2f}".format(*np.mean(spread[name], axis=0)) if spread[name] else ""
        print(
            f"{name:20}",
            *(f"{tau:11.3f}" for tau in taus),
            f"{np.mean(taus):6.3f} {fit:6.2f} {FRESH / predict:10,.0f} {known_std}",
        )


if __name__ == "__main__":
    main()
