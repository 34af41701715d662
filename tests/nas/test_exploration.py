"""Exploration and refinement: everything that was paid for is kept, and killing them changes nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nas.architecture import Architecture
from nas.building import table
from nas.cost import Budget
from nas.encoding import Encoding
from nas.evaluate import Scores
from nas.exploration import Explored, explore
from nas.pairs import Pair, Pairs, Setting
from nas.proposals import Indices, apart
from nas.refinement import refine
from nas.sampling import SAMPLERS
from nas.shape import Shape, Widths, architecture_of, widths_of
from nas.space import SearchSpace
from predictors import make_predictor
from tests.nas.small_spaces import damage, everything, hints_of, part_of, score, small_space

ROOT = Path(__file__).resolve().parents[2]
SETTING = Setting({"parent": "toy", "seed": 0})
FIRST, TOTAL = 14, 40


class Meter:
    """Measures exactly, remembers what, and is killed before its `dies`-th measurement."""

    def __init__(self, shape: Shape, dies: int | None = None) -> None:
        self.shape, self.dies = shape, dies
        self.measured: list[Architecture] = []

    def __call__(self, widths: Widths) -> Scores:
        if len(self.measured) + 1 == self.dies:
            raise KeyboardInterrupt
        self.measured.append(architecture_of(widths, self.shape))
        return Scores(2.0 + float(damage(widths)), 0.5, 100)


def small_problem() -> tuple[SearchSpace, Budget]:
    space = small_space(3)
    return space, part_of(space, 0.5)


def run_exploration(measure: Callable[[Widths], Scores], location: str, **options: int) -> Explored:
    """A whole exploration of the small problem, always the same."""
    space, budget = small_problem()
    hints = hints_of(space.shape)
    first = SAMPLERS["seeded"](space, budget, FIRST, np.random.default_rng(3), hints)
    return explore(
        space,
        budget,
        Encoding(budget.cost, hints.attention_error, hints.mlp_error),
        lambda: make_predictor("ridge"),
        measure,
        Pairs(location, SETTING),
        first,
        reference=-2.0,
        **{"total": TOTAL, "rounds": 3, "trials": 80, "seed": 1, **options},
        quiet=True,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Explored:
    folder = tmp_path_factory.mktemp("undisturbed")
    return run_exploration(Meter(small_problem()[0].shape), str(folder / "pairs.journal"))


def test_exploration_spends_what_it_was_given_and_finds_the_optimum(tmp_path: Path) -> None:
    space, budget = small_problem()
    meter = Meter(space.shape)
    explored = run_exploration(meter, str(tmp_path / "p"))
    assert meter.measured == [pair.architecture for pair in explored.pairs]
    assert len(set(meter.measured)) == len(meter.measured) == TOTAL
    assert explored.pairs == Pairs(str(tmp_path / "p"), SETTING).all
    widths, scores = table(explored.pairs, space.shape)
    assert budget.allows(widths).all()
    assert scores.max() == pytest.approx(score(everything(space, budget)).max() - 2.0)
    assert [item.round for item in explored.rounds] == [1, 2, 3]
    for item in explored.rounds:
        assert item.best_score == scores[: item.pairs].max()
        assert item.measured_best <= item.best_score
    assert explored.rounds[-1].pairs == TOTAL
    assert np.corrcoef(explored.predict(widths), scores)[0, 1] > 0.95


def test_exploration_ends_early_where_everything_is_known(tmp_path: Path) -> None:
    space = small_space(1)
    budget, hints = part_of(space, 1.0), hints_of(space.shape)
    rows = space.indices(everything(space))
    explored = explore(
        space,
        budget,
        Encoding(budget.cost, hints.attention_error, hints.mlp_error),
        lambda: make_predictor("ridge"),
        Meter(space.shape),
        Pairs(str(tmp_path / "p"), SETTING),
        rows,
        **dict(reference=-2.0, total=len(rows) + 9, rounds=2, trials=20, seed=0, quiet=True),
    )
    assert len(explored.pairs) == len(rows) == 20


@pytest.mark.parametrize("dies", [1, 2, FIRST, FIRST + 1, 27, TOTAL])
def test_an_interrupted_exploration_goes_on_where_it_stopped(
    tmp_path: Path, undisturbed: Explored, dies: int
) -> None:
    shape = small_problem()[0].shape
    first, second = Meter(shape, dies), Meter(shape)
    with pytest.raises(KeyboardInterrupt):
        run_exploration(first, str(tmp_path / "p"))
    stored = Pairs(str(tmp_path / "p"), SETTING).all
    assert [pair.architecture for pair in stored] == first.measured
    resumed = run_exploration(second, str(tmp_path / "p"))
    assert resumed.pairs == undisturbed.pairs
    assert len(set(first.measured + second.measured)) == len(first.measured) + len(second.measured) == TOTAL


LONG = """
import sys, tests.nas.test_exploration as test
test.explore_until_killed(sys.argv[1], int(sys.argv[2]))
"""


def explore_until_killed(folder: str, dies: int) -> None:
    """Explore the small problem in this process; note each measurement; be killed before the `dies`-th."""
    meter, log = Meter(small_problem()[0].shape), Path(folder, "measured")

    def measure(widths: Widths) -> Scores:
        scores = meter(widths)
        if len(meter.measured) == dies:
            os.kill(os.getpid(), signal.SIGKILL)
        with log.open("a") as file:
            file.write(meter.measured[-1].digest + "\n")
        return scores

    run_exploration(measure, f"{folder}/pairs.journal")


@pytest.mark.slow
def test_killed_at_any_moment_no_pair_is_lost_and_none_measured_twice(
    tmp_path: Path, undisturbed: Explored
) -> None:
    stored: list[Pair] = []
    for dies in (9, 12):  # among the first pairs, and in a round
        command = [sys.executable, "-c", LONG, str(tmp_path), str(dies)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == -signal.SIGKILL, done.stderr
        before, stored = stored, Pairs(str(tmp_path / "pairs.journal"), SETTING).all
        assert len(stored) == len(before) + dies - 1
        assert stored[: len(before)] == before
    meter = Meter(small_problem()[0].shape)
    explored = run_exploration(meter, str(tmp_path / "pairs.journal"))
    assert explored.pairs[: len(stored)] == stored
    assert explored.pairs == undisturbed.pairs
    measured = (tmp_path / "measured").read_text().split() + [each.digest for each in meter.measured]
    assert measured == [pair.architecture.digest for pair in explored.pairs]


class Repaired:
    """Scores under another repair: like the one-pass ones, but not quite; killed before the `dies`-th."""

    def __init__(self, shape: Shape, dies: int | None = None) -> None:
        self.shape, self.dies = shape, dies
        self.measured: list[Architecture] = []

    def __call__(self, widths: Widths) -> float:
        if len(self.measured) + 1 == self.dies:
            raise KeyboardInterrupt
        self.measured.append(architecture_of(widths, self.shape))
        return truth(widths)


def truth(widths: Widths) -> float:
    return -0.8 * float(damage(widths)) - 0.05 * float((widths[:, 2] == 1).sum())


def run_refinement(repaired: Repaired, location: str, rows: Indices, evaluations: int = 18) -> list[Pair]:
    space, budget = small_problem()
    return refine(
        space,
        budget,
        repaired,
        score,
        rows,
        Pairs(location, SETTING),
        np.random.default_rng(5),
        evaluations=evaluations,
        quiet=True,
    )


def some_good_rows(count: int = 12) -> tuple[Indices, NDArray[np.float64]]:
    """Rather good architectures, best first by one-pass score, and their scores under the other repair."""
    space, budget = small_problem()
    widths = everything(space, budget)
    widths = widths[np.argsort(-score(widths), kind="stable")][60 : 60 + count]
    return space.indices(widths), np.array([truth(row) for row in widths])


def test_refinement_keeps_the_best_and_betters_it(tmp_path: Path) -> None:
    space, budget = small_problem()
    rows, scores = some_good_rows()
    first = apart(rows, 4, distance=rows.shape[1] // 4)
    repaired = Repaired(space.shape)
    pairs = run_refinement(repaired, str(tmp_path / "p"), rows)
    assert len(set(repaired.measured)) == len(repaired.measured) == len(pairs) == 18
    assert repaired.measured[:4] == [architecture_of(row, space.shape) for row in space.widths(rows[first])]
    assert [pair.score for pair in pairs] == sorted((pair.score for pair in pairs), reverse=True)
    assert pairs[0].score > scores[first].max()
    widths, stored = table(pairs, space.shape)
    assert budget.allows(widths).all()
    assert stored.tolist() == [truth(row) for row in widths]
    assert sorted(Pairs(str(tmp_path / "p"), SETTING).all, key=lambda pair: -pair.score) == pairs


@pytest.mark.parametrize("dies", [1, 4, 7, 18])
def test_an_interrupted_refinement_goes_on_where_it_stopped(tmp_path: Path, dies: int) -> None:
    shape, rows = small_problem()[0].shape, some_good_rows()[0]
    undisturbed = run_refinement(Repaired(shape), str(tmp_path / "undisturbed"), rows)
    first, second = Repaired(shape, dies), Repaired(shape)
    with pytest.raises(KeyboardInterrupt):
        run_refinement(first, str(tmp_path / "p"), rows)
    assert run_refinement(second, str(tmp_path / "p"), rows) == undisturbed
    assert len(set(first.measured + second.measured)) == len(first.measured + second.measured) == 18


def test_refinement_leaves_out_what_is_much_like_one_before(tmp_path: Path) -> None:
    space = small_problem()[0]
    rows = some_good_rows()[0]
    alike = np.repeat(rows[:3], 2, axis=0)
    first = apart(alike, 4, distance=rows.shape[1] // 4)
    assert len(first) < 4
    repaired = Repaired(space.shape)
    run_refinement(repaired, str(tmp_path / "p"), alike)
    expected = [architecture_of(row, space.shape) for row in space.widths(alike[first])]
    assert repaired.measured[: len(first)] == expected


def test_refinement_measures_nothing_twice(tmp_path: Path) -> None:
    rows = some_good_rows()[0]
    repaired = Repaired(small_problem()[0].shape)
    run_refinement(repaired, str(tmp_path / "p"), np.repeat(rows[:4], 3, axis=0))
    assert len(set(repaired.measured)) == len(repaired.measured) == 18


def test_refinement_ends_where_everything_is_known(tmp_path: Path) -> None:
    space = small_space(1)
    widths = everything(space)
    pairs = refine(
        space,
        part_of(space, 1.0),
        truth,
        score,
        space.indices(widths),
        Pairs(str(tmp_path / "p"), SETTING),
        np.random.default_rng(0),
        evaluations=30,
        quiet=True,
    )
    assert len(pairs) == len({pair.architecture for pair in pairs}) <= len(widths)
    assert (table(pairs, space.shape)[0][0] == widths_of(space.shape.parent, space.shape)).all()
