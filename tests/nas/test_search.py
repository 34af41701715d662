"""Search, pruning, proposals, samplers, baselines: nothing over budget, and the optimum where it is known."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data.errors import InputError
from nas.baselines import dropped_layers, random_cuts, uniform_cuts
from nas.cost import FLAGS, Budget
from nas.generations import Found
from nas.proposals import Indices, apart, check_reachable, fit, mutate
from nas.pruning import prune
from nas.sampling import SAMPLERS, starts
from nas.search import SEARCHERS, search, spread_out
from nas.shape import Widths
from nas.space import SearchSpace
from tests.nas.small_spaces import (
    budgets,
    damage,
    everything,
    hints_of,
    part_of,
    score,
    small_space,
    spaces,
    usable,
)

Rng = np.random.Generator


def anywhere(space: SearchSpace, count: int, rng: Rng) -> Indices:
    return rng.integers(0, space.depths, size=(count, len(space.depths)))


def flat_search(space: SearchSpace, budget: Budget, rng: Rng) -> Indices:
    found = search(
        space,
        budget,
        lambda w: w.sum((1, 2)).astype(float),
        starts=anywhere(space, 3, rng),
        seed=3,
        trials=40,
    )
    return found.indices


Proposer = Callable[[SearchSpace, Budget, Rng], Indices]
PROPOSERS: dict[str, Proposer] = {
    "fit": lambda space, budget, rng: fit(space, budget, anywhere(space, 9, rng), rng),
    "fit without filling": lambda space, budget, rng: fit(
        space, budget, anywhere(space, 9, rng), rng, fill=False
    ),
    "fitted mutations": lambda space, budget, rng: fit(
        space, budget, mutate(space, anywhere(space, 9, rng), rng), rng
    ),
    "starts": lambda space, budget, rng: starts(space, budget, rng, hints_of(space.shape)),
    "dropped layers": lambda space, budget, rng: dropped_layers(space, budget, hints_of(space.shape)),
    "random cuts": lambda space, budget, rng: random_cuts(space, budget, 9, rng),
    "search": flat_search,
    **{
        f"sampler {name}": lambda space, budget, rng, sampler=sampler: sampler(
            space, budget, 21, rng, hints_of(space.shape)
        )
        for name, sampler in SAMPLERS.items()
    },
}


def reachable(space: SearchSpace, budget: Budget) -> bool:
    """Whether one of the smallest usable architectures fits: attention in one block, as little as can be."""
    rows = np.zeros((space.shape.blocks, len(space.depths)), dtype=np.int64)
    block = np.arange(space.shape.blocks)
    least = [0 if space.choices[3 * b][0] else min(1, int(space.depths[3 * b]) - 1) for b in block]
    rows[block, 3 * block] = least
    widths = space.widths(rows)
    return bool((budget.allows(widths) & usable(widths)).any())


@pytest.mark.parametrize("name", PROPOSERS)
@given(st.data(), spaces(), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_nothing_that_is_proposed_is_over_budget(
    name: str, data: st.DataObject, space: SearchSpace, seed: int
) -> None:
    budget = data.draw(budgets(space))
    if not reachable(space, budget):
        if name != "dropped layers":
            with pytest.raises(InputError, match="is too small: give "):
                PROPOSERS[name](space, budget, np.random.default_rng(seed))
        return
    check_reachable(space, budget)
    rows = PROPOSERS[name](space, budget, np.random.default_rng(seed))
    assert ((rows >= 0) & (rows < space.depths)).all()
    widths = space.widths(rows)
    assert len(widths)
    assert budget.allows(widths).all()
    assert usable(widths).all()
    if name.startswith("sampler"):
        assert len(rows) == 21
    again = PROPOSERS[name](space, budget, np.random.default_rng(seed))
    assert (rows == again).all()


@given(st.data(), spaces())
@settings(max_examples=40)
def test_uniform_cuts_are_uniform_and_within_budget(data: st.DataObject, space: SearchSpace) -> None:
    whole = small_space(
        space.shape.blocks,
        kv_groups=space.shape.kv_groups,
        queries=space.shape.queries_per_group,
        ffn=space.shape.ffn,
    )
    budget = data.draw(budgets(whole))
    smallest = np.tile([1, whole.choices[1][-1], whole.choices[2][1]], (1, space.shape.blocks, 1))
    widths = whole.widths(uniform_cuts(whole, budget))
    assert len(widths) > 0 or not budget.allows(smallest)[0]
    assert budget.allows(widths).all()
    assert (widths == widths[:, :1]).all()
    assert (widths > 0).all()


@given(st.data(), spaces(), st.integers(0, 2**32 - 1))
def test_what_fits_already_is_kept(data: st.DataObject, space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = anywhere(space, 6, rng)
    rows = rows[usable(space.widths(rows))]
    loose = part_of(space, 1.0)
    assert (fit(space, loose, rows, rng, fill=False) == rows).all()
    largest = np.tile(space.depths - 1, (3, 1))
    assert (fit(space, loose, largest, rng) == largest).all()


@given(st.data(), spaces(most_blocks=3), st.integers(0, 2**32 - 1))
def test_what_is_filled_has_no_room_left(data: st.DataObject, space: SearchSpace, seed: int) -> None:
    budget = data.draw(budgets(space))
    if not reachable(space, budget):
        return
    rng = np.random.default_rng(seed)
    for row in fit(space, budget, anywhere(space, 6, rng), rng):
        kept = space.widths(row[None]).ravel()
        for knob in np.flatnonzero((kept > 0) & (row + 1 < space.depths)):  # what is skipped stays skipped
            grown = row.copy()
            grown[knob] += 1
            assert not budget.allows(space.widths(grown[None]))[0]


def test_what_is_held_stays_while_the_rest_is_fitted() -> None:
    space, rng = small_space(3), np.random.default_rng(0)
    rows = anywhere(space, 200, rng)
    held = rng.random(rows.shape) < 0.1
    fitted = fit(space, part_of(space, 0.6), rows, rng, held=held)
    assert (fitted == rows)[held].mean() > 0.99  # but where the budget cannot be met so
    assert (fitted != rows).any(1).mean() > 0.9


def test_a_hopeless_budget_is_refused_with_the_numbers() -> None:
    space = small_space(3)
    whole = part_of(space, 1.0)
    smallest = Budget(whole.cost, {"block_parameters": 16 * (8 + 8 + 1)})
    check_reachable(space, smallest)
    with pytest.raises(InputError, match=r"^--keep 0\.\d+ is too small: give (.+) or more$") as error:
        check_reachable(space, Budget(whole.cost, {"block_parameters": 16 * (8 + 8 + 1) - 1}))
    enough = float(str(error.value).split()[-3])
    check_reachable(space, part_of(space, enough))
    with pytest.raises(InputError, match="too small"):
        check_reachable(space, part_of(space, enough - 2e-4))


def test_every_limit_that_is_too_small_is_named_with_what_suffices() -> None:
    space = small_space(3)
    cost = part_of(space, 1.0).cost
    small = {"block_parameters": 1, "parameters": 2, "flops": 3, "kv_cache_bytes": 4}
    with pytest.raises(InputError) as error:
        check_reachable(space, Budget(cost, small))
    sentences = str(error.value).split("; ")
    assert len(sentences) == len(small)
    for (name, asked), sentence in list(zip(small.items(), sentences, strict=True))[
        1:
    ]:  # see above for --keep
        flag = FLAGS[name]
        assert sentence.startswith(f"{flag} {asked} is too small: give ")
        enough = int(sentence.split()[-3])
        check_reachable(space, Budget(cost, {name: enough}))
        with pytest.raises(InputError, match=f"^{flag} {enough - 1} is too small: give {enough} or more$"):
            check_reachable(space, Budget(cost, {name: enough - 1}))


def test_mutations_stay_in_the_space_and_change_something() -> None:
    space = small_space(3)
    rng = np.random.default_rng(0)
    rows = anywhere(space, 200, rng)
    before = rows.copy()
    young = mutate(space, rows, rng)
    assert (rows == before).all()
    assert ((young >= 0) & (young < space.depths)).all()
    assert usable(space.widths(young)).all()
    assert ((young != rows).any(1)).mean() > 0.7


@pytest.mark.parametrize(
    ("searcher", "share", "cost"),
    [(name, 0.5, "block_parameters") for name in SEARCHERS]
    + [("nsga2", share, cost) for share in (0.25, 0.75) for cost in ("flops", "kv_cache_bytes")],
)
def test_an_exact_predictor_finds_the_optimum(searcher: str, share: float, cost: str) -> None:
    space = small_space(3)
    budget = part_of(space, share, cost)
    best = score(everything(space, budget)).max()
    rng = np.random.default_rng(1)
    trials = 80 if searcher == "gp" else 240  # a trial of it takes a tenth of a second
    found = search(
        space, budget, score, starts=anywhere(space, 10, rng), seed=5, trials=trials, searcher=searcher
    )
    assert found.predicted[0] == pytest.approx(best, abs=1e-12)
    assert score(space.widths(found.indices[:1]))[0] == found.predicted[0]


def test_a_search_returns_each_architecture_once_best_first() -> None:
    space, calls = small_space(3), []

    def predict(widths: Widths) -> NDArray[np.float64]:
        calls.append(len(widths))
        return score(widths)

    budget = part_of(space, 0.5)
    rows = anywhere(space, 10, np.random.default_rng(1))
    found = search(space, budget, predict, starts=rows, seed=5, trials=80, generation=20)
    widths = space.widths(found.indices)
    assert budget.allows(widths).all()
    assert len(np.unique(widths, axis=0)) == len(widths)
    assert (score(widths) == found.predicted).all()
    assert (np.diff(found.predicted) <= 0).all()
    assert found.proposals == sum(calls)
    assert len(found.best) == 4
    assert list(found.best) == sorted(found.best)
    assert found.best[-1] == found.predicted[0]
    again = search(space, budget, score, starts=rows, seed=5, trials=80, generation=20)
    assert (again.indices == found.indices).all()
    assert (again.predicted == found.predicted).all()


def test_a_search_starts_from_what_it_is_given() -> None:
    space = small_space(3)
    budget = part_of(space, 0.5)
    allowed = everything(space, budget)
    best = space.indices(allowed[np.argsort(-score(allowed))[:1]])
    found = search(space, budget, score, starts=best, seed=0, trials=2, generation=2, climbs=0)
    assert found.predicted[0] == score(allowed).max()


def test_a_space_of_one_architecture_can_be_searched() -> None:
    whole = small_space(2)
    one = whole.restrict({name: choices[-1:] for name, choices in whole.knobs.items()})
    nothing = np.zeros((1, len(one.knobs)), dtype=np.int64)
    found = search(one, part_of(one, 1.0), score, starts=nothing, seed=0, trials=10)
    assert found.indices.tolist() == nothing.tolist()


def test_those_that_are_chosen_are_the_best_that_differ() -> None:
    space = small_space(2)
    rows = np.array([[2, 1, 4, 2, 1, 4], [2, 1, 4, 2, 1, 3], [2, 1, 3, 2, 1, 3], [1, 1, 1, 1, 1, 1]])
    found = Found(rows, score(space.widths(rows)), len(rows), ())
    assert spread_out(space, found, 9, set()).tolist() == rows[[0, 2, 3]].tolist()
    assert spread_out(space, found, 2, set()).tolist() == rows[[0, 2]].tolist()
    assert spread_out(space, found, 9, set(), distance=1).tolist() == rows.tolist()
    taken = {space.widths(rows[:1])[0].tobytes()}
    assert spread_out(space, found, 9, taken).tolist() == rows[[1, 3]].tolist()
    everyone = {widths.tobytes() for widths in space.widths(rows)}
    assert spread_out(space, found, 9, everyone).shape == (0, 6)


@given(st.integers(1, 12), st.integers(0, 6), st.integers(0, 2**32))
def test_rows_apart_are_the_first_that_differ_enough(count: int, distance: int, seed: int) -> None:
    rows = np.random.default_rng(seed).integers(0, 3, (20, 5))
    chosen = apart(rows, count, distance).tolist()
    differ = (rows[:, None] != rows[None]).sum(2)
    for number in range(chosen[-1] + 1):
        before = [other for other in chosen if other < number]
        assert (number in chosen) == all(differ[number, other] >= distance for other in before)
    assert len(chosen) == count or not any(
        (differ[number, chosen] >= distance).all() for number in range(chosen[-1] + 1, 20)
    )


@pytest.mark.parametrize("margin", [0.0, 0.05])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_pruning_keeps_the_optimum_that_it_was_shown(share: float, margin: float) -> None:
    space = small_space(3)
    budget = part_of(space, share)
    allowed = everything(space, budget)
    ranked = allowed[np.argsort(-score(allowed), kind="stable")]
    good = space.indices(ranked[[0, 40, 400]])
    pruned, dropped = prune(space, budget, score, good, margin, np.random.default_rng(0))
    assert pruned.contains(ranked[:1]).all()
    assert pruned.size < space.size
    assert sum(len(choices) for choices in space.knobs.values()) == pruned.depths.sum() + len(dropped)
    for item in dropped:
        assert item.choice not in pruned.knobs[item.knob]
        assert item.best_with is None or item.best_with < item.best - margin
        assert item.best == pytest.approx(score(ranked[:1])[0])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_pruning_from_the_best_of_a_sample_keeps_the_optimum(share: float, seed: int) -> None:
    space = small_space(3)
    budget = part_of(space, share)
    rng = np.random.default_rng(seed)
    sample = SAMPLERS["seeded"](space, budget, 40, rng, hints_of(space.shape))
    good = sample[np.argsort(-score(space.widths(sample)), kind="stable")[:12]]
    margin = 0.5 * float(damage(space.widths(good[:1]))[0])  # what exploration allows
    pruned, dropped = prune(space, budget, score, good, margin, rng)
    allowed = everything(space, budget)
    assert pruned.contains(allowed[score(allowed).argmax()][None]).all()


def test_pruning_drops_what_is_plainly_bad_and_says_why() -> None:
    space = small_space(3)
    budget = part_of(space, 0.6)

    def cursed(widths: Widths) -> NDArray[np.float64]:
        return score(widths) - 100.0 * (widths[:, 1, 2] == 3)

    good = fit(space, budget, anywhere(space, 12, np.random.default_rng(0)), np.random.default_rng(1))
    pruned, dropped = prune(space, budget, cursed, good, 5.0, np.random.default_rng(2))
    assert pruned.knobs["1.ffn"] == (0, 1, 2, 4)
    evidence = [item for item in dropped if (item.knob, item.choice) == ("1.ffn", 3)]
    assert len(evidence) == 1
    assert evidence[0].best_with is not None
    assert evidence[0].best_with < evidence[0].best - 90


def test_pruning_drops_what_no_subnet_within_budget_can_have() -> None:
    space = small_space(2)
    budget = part_of(space, 0.25, "kv_cache_bytes")
    good = fit(space, budget, anywhere(space, 6, np.random.default_rng(0)), np.random.default_rng(1))
    pruned, dropped = prune(space, budget, score, good, 100.0, np.random.default_rng(2))
    impossible = {(item.knob, item.choice) for item in dropped}
    assert impossible == {("0.kv_groups", 2), ("1.kv_groups", 2)}
    assert all(item.best_with is None for item in dropped)
    assert pruned.contains(everything(space, budget)).all()
