"""What a report says of the predictor: beside it the lines to beat, and nothing where pairs are too few."""

import numpy as np
import pytest

from experiments.results import FEWEST_PAIRS, predictor_record, seeded
from nas.encoding import Encoding
from nas.pairs import Pair
from nas.shape import architecture_of, widths_of
from tests.nas.small_spaces import damage, everything, hints_of, part_of, small_space

METRICS = ("kendall_tau", "kendall_tau_in_band", "precision_at_k", "regret")
SPACE = small_space(3)
BUDGET = part_of(SPACE, 0.6)
HINTS = hints_of(SPACE.shape)
ENCODING = Encoding(BUDGET.cost, HINTS.attention_error, HINTS.mlp_error)


def some_pairs(count: int, seed: int) -> list[Pair]:
    """Distinct architectures within the budget, measured exactly."""
    every = everything(SPACE, BUDGET)
    rows = every[np.random.default_rng(seed).permutation(len(every))[:count]]
    return [Pair(architecture_of(row, SPACE.shape), -2.0 - float(damage(row)), "start") for row in rows]


def test_the_predictor_stands_beside_ridge_and_beside_its_own_line() -> None:
    pairs, others = some_pairs(60, seed=0), some_pairs(60, seed=1)
    record = predictor_record("xgboost", seeded(0), pairs, others, ENCODING, BUDGET, reference=-2.0)
    assert record["name"] == "xgboost"
    for part in (record, record["ridge"], record["additive_line"]):
        assert all(np.isfinite(part[metric]) for metric in METRICS)
        assert 0.3 < part["kendall_tau"] <= 1
    seen = {pair.architecture for pair in pairs}
    unseen = sum(pair.architecture not in seen for pair in others)
    assert record["random_pairs"]["pairs"] == record["ridge"]["random_pairs"]["pairs"] == unseen
    assert (
        len({record[part]["kendall_tau"] for part in ("ridge", "additive_line")} | {record["kendall_tau"]})
        == 3
    )


def test_held_out_pairs_tell_which_lie_at_the_budget() -> None:
    pairs = some_pairs(60, seed=0)
    record = predictor_record("ridge", seeded(0), pairs, [], ENCODING, BUDGET, reference=-2.0)
    load = BUDGET.load(np.stack([widths_of(pair.architecture, SPACE.shape) for pair in pairs]))
    inside = [each["inside"] for each in record["held_out"]]
    assert inside == (np.abs(load - 1) <= record["band"]).tolist()
    assert sum(inside) == record["rows_in_band"] < 60
    assert [each["measured"] for each in record["held_out"]] == [pair.score for pair in pairs]
    assert "random_pairs" not in record


@pytest.mark.parametrize("count", [2, FEWEST_PAIRS - 1])
def test_too_few_pairs_are_no_verdict_and_no_error(count: int) -> None:
    record = predictor_record("ridge", seeded(0), some_pairs(count, seed=0), [], ENCODING, BUDGET, -2.0)
    assert all(record[metric] is None and record["ridge"][metric] is None for metric in METRICS)
