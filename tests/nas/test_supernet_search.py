"""The space, its grids and the search for the front keep their bounds, where all can be enumerated."""

import numpy as np
import pytest

from data.errors import InputError
from nas.architecture import Architecture
from nas.cost import CostModel
from nas.families import shape_of
from nas.supernet.front import Point, front_of, search_front
from nas.supernet.grids import GRIDS, Grid
from nas.supernet.space import KNOBS, UniformSpace, uniform_space
from tests.nas.tiny_models import tiny_parent

SHAPE = shape_of(tiny_parent("llama"))
COST = CostModel(SHAPE, 12, 4)
SPACE = uniform_space(SHAPE, (2, 0, 1), floor=0.5)

every_grid = pytest.mark.parametrize("name", GRIDS)


def size(architecture: Architecture) -> float:
    return COST(architecture)["parameters"]


def score(architecture: Architecture) -> float:
    """Any exact preference that is not the size: hidden channels count most."""
    return architecture.hidden + 0.1 * architecture.blocks[0].ffn + 2.0 * len(architecture.blocks)


def grid(name: str, seed: int = 0, bins: int = 6, space: UniformSpace = SPACE) -> Grid:
    return GRIDS[name](space, size, score, bins, 3, np.random.default_rng(seed))


def measured(architecture: Architecture) -> Point:
    return Point(architecture, -score(architecture), size(architecture))


def test_the_space_counts_what_it_holds_and_names_each_once() -> None:
    everything = list(SPACE.all())
    assert len(everything) == len(set(everything)) == SPACE.size == 5 * 2 * 7 * 2
    assert SPACE.largest == SHAPE.parent
    for architecture in everything:
        assert architecture.is_uniform
        assert SPACE.build(SPACE.choice_of(architecture)) == architecture
        assert size(SPACE.smallest) <= size(architecture) <= size(SPACE.largest)


def test_blocks_stay_by_the_order_and_stand_in_the_parents() -> None:
    two = SPACE.build({"hidden": 32, "kv_groups": 2, "ffn": 24, "depth": 2})
    assert [block.source for block in two.blocks] == [0, 2]


def test_steps_are_powers_of_two_and_the_floor_holds() -> None:
    assert SPACE.knobs == {
        "hidden": (16, 20, 24, 28, 32),
        "kv_groups": (1, 2),
        "ffn": (12, 14, 16, 18, 20, 22, 24),
        "depth": (2, 3),
    }
    fixed = uniform_space(SHAPE, (0, 1, 2), floor=1.0, fixed_hidden=True)
    assert fixed.size == 1 and fixed.smallest == fixed.largest == SHAPE.parent
    with pytest.raises(InputError, match="smallest share"):
        uniform_space(SHAPE, (0, 1, 2), floor=0.0)
    with pytest.raises(InputError, match="name each once"):
        UniformSpace(SHAPE, (0, 0, 1), SPACE.knobs)


@every_grid
def test_a_grid_has_both_ends_ascends_and_is_the_same_again(name: str) -> None:
    found = grid(name)
    assert found.architectures[0] == SPACE.smallest and found.architectures[-1] == SPACE.largest
    sizes = [size(each) for each in found.architectures]
    assert sizes == sorted(sizes) and len(set(found.architectures)) == len(sizes)
    assert set(found.architectures) <= set(SPACE.all())
    assert grid(name) == found


def test_a_calibrated_grid_has_the_best_of_every_bin() -> None:
    """With so many draws that every subnet is drawn, the best of a bin is its best of all."""
    found = GRIDS["calibrated"](SPACE, size, score, 5, SPACE.size, np.random.default_rng(0))
    edges = np.linspace(size(SPACE.smallest), size(SPACE.largest), 6)[1:-1]
    best: dict[int, float] = {}
    for each in SPACE.all():
        bin = int(np.searchsorted(edges, size(each), side="right"))
        best[bin] = max(score(each), best.get(bin, -np.inf))
    chosen: dict[int, list[float]] = {}
    for each in found.architectures:
        chosen.setdefault(int(np.searchsorted(edges, size(each), side="right")), []).append(score(each))
    assert {bin: max(scores) for bin, scores in chosen.items()} == best
    assert len(found.architectures) <= len(best) + 2


@pytest.mark.parametrize("name", ["calibrated", "params"])
def test_a_bin_that_nothing_falls_into_is_named_and_ends(name: str) -> None:
    ends = UniformSpace(SHAPE, (0, 1, 2), {"hidden": (8, 32), "kv_groups": (2,), "ffn": (24,), "depth": (3,)})
    found = grid(name, bins=4, space=ends)
    assert found.architectures == (ends.smallest, ends.largest)
    assert len(found.unreached) == 2
    assert all(low < high for low, high in found.unreached)
    with pytest.raises(InputError, match="0 bins"):
        grid(name, bins=0)


def test_the_search_of_a_small_space_finds_its_front() -> None:
    limit = 0.8 * size(SPACE.largest)
    seen: list[Architecture] = []

    def measure(architecture: Architecture) -> Point:
        seen.append(architecture)
        return measured(architecture)

    found = search_front(SPACE, lambda each: size(each) / limit - 1, measure, measurements=SPACE.size)
    assert len(seen) == len(set(seen))
    assert all(size(each) <= limit for each in seen), "nothing over the budget is measured"
    allowed = [measured(each) for each in SPACE.all() if size(each) <= limit]
    values = {(point.cost, point.loss) for point in allowed}
    beaten = {
        (cost, loss)
        for cost, loss in values
        for c, k in values
        if c <= cost and k <= loss
        if (c, k) != (cost, loss)
    }
    assert {(point.cost, point.loss) for point in front_of(allowed)} == values - beaten
    best = min(allowed, key=lambda point: point.loss)
    assert min(found, key=lambda point: point.loss).loss == best.loss
    front = {(point.cost, point.loss) for point in front_of(found)}
    assert len(front & (values - beaten)) >= 0.8 * len(values - beaten)


def test_a_search_starts_where_it_is_told_and_is_the_same_again() -> None:
    starts = [SPACE.largest, SPACE.at(0.5), SPACE.smallest]

    def run() -> list[Point]:
        limit = size(SPACE.at(0.5))
        return search_front(
            SPACE, lambda each: size(each) / limit - 1, measured, starts=starts, measurements=12, population=4
        )

    found = run()
    assert [point.architecture for point in found[:2]] == starts[1:]
    assert len(found) == 12 and run() == found


def test_a_budget_that_nothing_fits_ends_the_search() -> None:
    assert search_front(SPACE, lambda each: 1.0, measured, measurements=3) == []


def test_knobs_are_in_order() -> None:
    assert tuple(SPACE.knobs) == KNOBS
