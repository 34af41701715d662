"""What earns the default predictor its parts: a base, its share, a bag, columns, trees; on measured pairs.

    python -m benchmarks.predictors [--seeds 5] [--pairs 50 100 300 700] [--tables demo wiki-llama-8m]

Every variant learns from uniform pairs of `data/pairs`, as the main job lets it (to correct a line),
and is judged on others in the bands of the two sizes, and on the pairs mutated near the optimum.
A cell is Kendall's tau in the bands / among the mutated; then seconds of a fit at the most pairs, and of
predictions over those of the default.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import numpy as np

from experiments.tables import DEMO, open_table, sibling
from nas.damage import DamagePredictor
from predictors.gbdt import BoostedTrees
from predictors.learning import Judged, Rows, learning_curve
from predictors.ridge import StandardisedRidge

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no base": {"base_share": 0.0},
    "base 0.2": {"base_share": 0.2},
    "base 0.7": {"base_share": 0.7},
    "whole base": {"base_share": 1.0},
    "half a line": {"base": StandardisedRidge, "base_share": 0.5},
    "one model": {"bag": 1},
    "bag of 12": {"bag": 12},
    "a third of the columns": {"columns_per_tree": 0.3},
    "half of the rows": {"rows_per_tree": 0.5},
    "depth 2": {"depth": 2, "trees": 220},
    "depth 4": {"depth": 4, "trees": 100},
    "300 slower trees": {"trees": 300, "learning_rate": 0.05},
    "80 trees": {"trees": 80},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare variants of the default predictor on measured pairs."
    )
    parser.add_argument("--seeds", type=int, default=5, help="draws of pairs and trees")
    parser.add_argument(
        "--pairs", type=int, nargs="+", default=[50, 100, 300, 700], help="pairs to learn from"
    )
    parser.add_argument("--tables", nargs="+", default=["demo", "wiki-llama-8m"], help="of data/pairs")
    settings = parser.parse_args()

    found: dict[str, dict[int, list[Judged]]] = {name: {} for name in VARIANTS}
    for name in settings.tables:
        path = DEMO.with_name(f"{name}.parquet")
        table, mutated = open_table(path), sibling(path, "mutated")
        rows = Rows(table.features, table.scores, table.kept())
        near = None if mutated is None else Rows(mutated.features, mutated.scores, mutated.kept())

        def damage(options: dict[str, Any], seed: int, table: Any = table) -> DamagePredictor:
            trees = BoostedTrees(seed=seed, **options)
            return DamagePredictor(trees, table.reference, table.encoding.errors)

        for variant, options in VARIANTS.items():
            for seed in range(settings.seeds):
                curve = learning_curve(
                    partial(damage, options, seed), rows, settings.pairs, seed, centres=table.centres,
                    mutated=near, queries=10_000,
                )  # fmt: skip
                for judged in curve:
                    found[variant].setdefault(judged.pairs, []).append(judged)

    most = max(settings.pairs)
    usual = np.median([each.predict_seconds for each in found["default"][most]])
    print(f"{'':24}" + "".join(f"{pairs:>14}" for pairs in settings.pairs) + "   fit s  predict")
    for variant, by in found.items():
        cells = [
            f"{np.mean([j.kendall_tau_in_band for j in by[pairs]]):.3f} / "
            f"{np.nanmean([j.kendall_tau_mutated for j in by[pairs]]):.3f}"
            for pairs in settings.pairs
        ]
        fit, predict = (
            np.median([getattr(each, name) for each in by[most]])
            for name in ("fit_seconds", "predict_seconds")
        )
        print(f"{variant:24}" + "".join(f"{c:>14}" for c in cells) + f"{fit:8.2f}{predict / usual:8.2f}×")
    print(f"\nthe default makes 100,000 predictions in {10 * usual:.2f} s on one thread")


if __name__ == "__main__":
    main()
