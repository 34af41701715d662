"""Searches over a whole range of budgets find what brute force finds, and keep every limit."""

import numpy as np
import pytest

from nas.cost import Budget
from nas.pair_table import PairTable
from nas.pareto import best_within, pareto_search
from nas.search import search
from nas.shape import Widths
from nas.what_if import what_if
from tests.nas.small_spaces import everything, part_of, score, small_space
from tests.nas.test_pair_table import small_table


def test_the_front_is_brute_force() -> None:
    space = small_space(2)
    model = part_of(space, 1.0).cost
    rows = everything(space)
    costs = model.of_widths(rows, ["parameters"])["parameters"]
    found, found_costs = pareto_search(
        space, model, "parameters", score, starts=np.zeros((1, len(space.depths)), dtype=np.int64), seed=0,
        trials=1500,
    )  # fmt: skip
    limits = np.quantile(costs, [0.1, 0.3, 0.5, 0.8, 1.0]).tolist()
    for limit, number in zip(limits, best_within(found, found_costs, limits), strict=True):
        assert number is not None
        assert found_costs[number] <= limit
        assert found.predicted[number] == pytest.approx(score(rows[costs <= limit]).max())
    assert best_within(found, found_costs, [0.0]) == [None]


def test_a_score_of_its_own_is_what_each_row_has() -> None:
    space = small_space(2)
    found, costs = pareto_search(
        space, part_of(space, 1.0).cost, "flops", score, starts=np.zeros((0, 6), dtype=np.int64), seed=1,
        trials=100,
    )  # fmt: skip
    widths = space.widths(found.indices)
    assert np.array_equal(found.predicted, score(widths))
    assert np.array_equal(costs, part_of(space, 1.0).cost.of_widths(widths, ["flops"])["flops"])
    assert len(np.unique(widths, axis=0)) == len(widths)


def test_other_budgets_are_kept_and_met_as_brute_force_would() -> None:
    table: PairTable = small_table(60)
    rows = everything(table.space)
    costs = table.cost.of_widths(rows, ["block_parameters"])["block_parameters"]
    limits = [1.0, *np.quantile(costs, [0.2, 0.5, 0.9]).tolist()]
    found = what_if(table, score, "block_parameters", limits, seed=0)
    assert [each.limit for each in found] == limits[1:]  # nothing fits into a single parameter
    for each in found:
        budget = Budget(table.cost, {"block_parameters": each.limit})
        assert budget.allows(each.widths)
        assert each.predicted == pytest.approx(score(rows[costs <= each.limit]).max())


def test_a_search_ends_when_its_time_is_up() -> None:
    space, budget = small_space(3), part_of(small_space(3), 0.5)
    calls = []

    def predict(widths: Widths) -> np.ndarray:
        calls.append(len(widths))
        return score(widths)

    starts = np.zeros((1, len(space.depths)), dtype=np.int64)
    found = search(space, budget, predict, starts=starts, seed=0, trials=10**9, seconds=0.0)
    assert 0 < len(found.indices) <= sum(calls) < 200  # one trial with its climbs
