"""Exploration: everything that was paid for is kept, and killing it changes nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.errors import InputError
from nas.architecture import Architecture
from nas.building import in_full, table
from nas.cost import Budget
from nas.encoding import Encoding
from nas.evaluate import Scores
from nas.exploration import Explored, explore
from nas.pairs import Pair, Pairs, Setting
from nas.sampling import SAMPLERS
from nas.shape import Shape, Widths, architecture_of
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
        in_full(Pairs(location, SETTING), measure, space.shape, budget, quiet=True),
        first,
        reference=-2.0,
        **{"total": TOTAL, "rounds": 3, "trials": 80, "seed": 1, **options},
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


def explore_from(rows: Widths, space: SearchSpace, budget: Budget, location: str, total: int) -> Explored:
    """A short exploration that starts from these architectures."""
    hints = hints_of(space.shape)
    return explore(
        space,
        budget,
        Encoding(budget.cost, hints.attention_error, hints.mlp_error),
        lambda: make_predictor("ridge"),
        in_full(Pairs(location, SETTING), Meter(space.shape), space.shape, budget, quiet=True),
        space.indices(rows),
        **dict(reference=-2.0, total=total, rounds=2, trials=20, seed=0),
    )


def test_exploration_ends_early_where_everything_is_known(tmp_path: Path) -> None:
    space = small_space(1)
    rows = everything(space)
    explored = explore_from(rows, space, part_of(space, 1.0), str(tmp_path / "p"), len(rows) + 9)
    assert len(explored.pairs) == len(rows) == 20


def test_a_budget_that_leaves_no_choice_is_refused(tmp_path: Path) -> None:
    space, budget = small_problem()
    alone = np.repeat(everything(space, budget)[:1], 3, axis=0)
    with pytest.raises(InputError, match="there is 1 architecture to begin with"):
        explore_from(alone, space, budget, str(tmp_path / "p"), TOTAL)


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
