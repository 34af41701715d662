"""How good predictions are for a search: order first, and order among rows of about the same cost.

Everywhere y (n,) are measured scores and p (n,) predicted ones, larger is better, and ties in p are broken
against the predictor: whoever predicts one value for all rows has found nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import kendalltau

from predictors.protocol import Scores

FEWEST_IN_BAND = 5


def kendall_tau(y: ArrayLike, p: ArrayLike) -> float:
    """Kendall's tau-b: (concordant - discordant pairs) / sqrt(pairs untied in y * pairs untied in p).

    From -1 to 1 (Kendall 1945, The treatment of ties in ranking problems). 0 when p is constant; nan when y
    is constant or has fewer than two rows, for then there is no order to find.
    """
    y, p = _pair(y, p)
    if len(y) < 2 or np.all(y == y[0]):
        return float("nan")
    if np.all(p == p[0]):
        return 0.0
    return float(kendalltau(y, p).statistic)


def in_band(cost: ArrayLike, centre: float, width: float) -> NDArray[np.bool_]:
    """Which rows (n,) cost within `width * centre` of `centre`; ValueError unless centre is positive."""
    return _distance(cost, centre) <= width


def widened(cost: ArrayLike, centre: float, width: float, rows: int) -> float:
    """The least width, from `width` upwards, at which the band holds `rows` rows, or all there are."""
    distance = np.sort(_distance(cost, centre))
    return max(width, float(distance[min(rows, len(distance)) - 1]))


def kendall_tau_in_band(
    y: ArrayLike, p: ArrayLike, cost: ArrayLike, centre: float, width: float = 0.05
) -> float:
    """`kendall_tau` among the rows whose cost (n,) is within `width * centre` of `centre`.

    What a search at a budget needs: over all costs, that larger is better already gives a tau near 0.9.
    nan when fewer than 5 rows are in the band; ValueError unless centre is positive.
    """
    y, p = _pair(y, p)
    band = in_band(cost, centre, width)
    if len(band) != len(y):
        raise ValueError(f"{len(band)} costs for {len(y)} scores")
    return kendall_tau(y[band], p[band]) if band.sum() >= FEWEST_IN_BAND else float("nan")


def precision_at_k(y: ArrayLike, p: ArrayLike, k: int) -> float:
    """The fraction, 0 to 1, of the k rows with the largest p that are among the k best by y.

    Rows that tie with the k-th best all count as best. ValueError unless 1 <= k <= n.
    """
    y, p = _pair(y, p)
    chosen = _chosen(y, p, k)
    return float(np.mean(y[chosen] >= np.sort(y)[-k]))


def regret(y: ArrayLike, p: ArrayLike, k: int = 1) -> float:
    """Best score of all minus best score among the k rows with the largest p: what trusting p costs.

    In units of y, at least 0, and 0 is best (simple regret). ValueError unless 1 <= k <= n.
    """
    y, p = _pair(y, p)
    return float(y.max() - y[_chosen(y, p, k)].max())


def r2(y: ArrayLike, p: ArrayLike) -> float:
    """1 - sum (y - p)^2 / sum (y - mean y)^2: 1 is exact, 0 is as good as the mean; nan for constant y.

    To be read beside the others, never alone: cost explains most of the variance of any score.
    """
    y, p = _pair(y, p)
    around = float(np.sum((y - y.mean()) ** 2))
    return 1.0 - float(np.sum((y - p) ** 2)) / around if around > 0 else float("nan")


def _chosen(y: Scores, p: Scores, k: int) -> NDArray[np.intp]:
    """The k rows with the largest p, among equal p those with the smallest y."""
    if not 1 <= k <= len(y):
        raise ValueError(f"k must be between 1 and the {len(y)} rows, got {k}")
    return np.lexsort((y, -p))[:k]


def _distance(cost: ArrayLike, centre: float) -> Scores:
    if not centre > 0:
        raise ValueError(f"the centre of a band must be a positive cost, got {centre}")
    distance: Scores = np.abs(np.asarray(cost, dtype=np.float64) - centre) / centre
    return distance


def _pair(y: ArrayLike, p: ArrayLike) -> tuple[Scores, Scores]:
    y, p = np.asarray(y, dtype=np.float64), np.asarray(p, dtype=np.float64)
    if y.ndim != 1 or y.shape != p.shape:
        raise ValueError(f"scores and predictions must be vectors of one length, got {y.shape} and {p.shape}")
    if not (np.isfinite(y).all() and np.isfinite(p).all()):
        raise ValueError(
            f"{int((~np.isfinite(y)).sum())} scores and {int((~np.isfinite(p)).sum())} predictions "
            f"of {len(y)} are not finite"
        )
    return y, p
