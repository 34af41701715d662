"""Successive halving: the best are found with a part of the tokens, and what is measured in full is exact."""

import math
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import PreTrainedModel

from data.errors import InputError
from nas.architecture import Architecture
from nas.building import Estimate, SubnetMeter, build_pairs
from nas.cost import Budget, CostModel
from nas.encoding import Encoding
from nas.evaluate import Scores, evaluate
from nas.exploration import Explored, explore
from nas.halving import Halving, parts_of, rungs_of
from nas.pairs import Pair, Pairs, Setting
from nas.recovery.teacher import stored_teacher
from nas.sampling import SAMPLERS
from nas.shape import Widths, architecture_of, widths_of
from nas.subnet import cut
from predictors import make_predictor
from tests.nas.small_spaces import damage, everything, hints_of, part_of, small_space
from tests.nas.tiny_models import CUTS, architecture_of_cut, permuted_parent, tokens

SETTING = Setting({"parent": "toy", "seed": 0})
SPACE = small_space(3)
BUDGET = part_of(SPACE, 0.5)
WINDOWS = torch.arange(16)[:, None].expand(16, 11)
"""Windows of the toy, which differ in how hard they are; 10 tokens of each are predicted."""


def hardness(windows: torch.Tensor) -> float:
    """What damage is multiplied by on these windows, 1 in the mean over all of them."""
    weights = 1 + 0.5 * np.cos(np.arange(16))
    return float(weights[windows[:, 0]].mean() / weights.mean())


@dataclass
class Toy:
    """Measures exactly, up to how hard windows are; notes what it saw, is killed before its `dies`-th
    measurement, and some architectures break it on all windows but the first part."""

    dies: int | None = None
    poison: frozenset[Architecture] = frozenset()
    seen: list[tuple[Architecture, tuple[int, ...]]] = field(default_factory=list)

    def on(self, windows: torch.Tensor) -> Callable[[Widths], Scores]:
        """Measures subnets on these windows."""

        def measure(widths: Widths) -> Scores:
            if len(self.seen) + 1 == self.dies:
                raise KeyboardInterrupt
            architecture = architecture_of(widths, SPACE.shape)
            self.seen.append((architecture, tuple(windows[:, 0].tolist())))
            if architecture in self.poison and 0 not in windows:
                raise torch.OutOfMemoryError("tried to allocate 20.00 GiB")
            return self.scores(windows, float(damage(widths)))

        return measure

    @staticmethod
    def scores(windows: torch.Tensor, harm: float = 0.0) -> Scores:
        """Of a subnet of this damage; of the parent without any."""
        hard = hardness(windows)
        return Scores(hard * (2.0 + harm), hard / 4, 10 * len(windows))


def halving(toy: Toy, location: str) -> Halving:
    pairs = Pairs(location, SETTING)
    return Halving(
        rungs_of(location, SETTING.fields, pairs, WINDOWS, toy.on, toy.scores),
        SPACE.shape,
        BUDGET,
        quiet=True,
    )


def some(count: int = 40) -> Widths:
    rows = everything(SPACE, BUDGET)
    chosen: Widths = rows[np.random.default_rng(0).choice(len(rows), count, replace=False)]
    return chosen


@given(st.integers(1, 300))
def test_parts_have_nothing_in_common_and_are_spread(count: int) -> None:
    parts = parts_of(count)
    assert sorted(sum(parts, [])) == [*range(count)]
    assert all(parts) and parts == [sorted(part) for part in parts]
    seen: list[int] = []
    for part in parts:
        seen = sorted(seen + part)
        gaps = np.diff([-1, *seen, count])
        assert gaps.max() <= 4 * math.ceil(count / len(seen))


def test_the_parts_of_32_windows() -> None:
    assert parts_of(32)[:2] == [[0, 8, 16, 24], [4, 12, 20, 28]]
    assert [len(part) for part in parts_of(32)] == [4, 4, 8, 16]
    assert parts_of(3) == [[0], [2], [1]]
    assert parts_of(1) == [[0]]


def test_the_promoted_have_full_scores_and_the_rest_estimates(tmp_path: Path) -> None:
    toy, rows = Toy(), some()
    pairs, estimates = halving(toy, str(tmp_path / "p"))(rows, "start")
    harm = damage(rows)
    assert len(pairs) == 5 and len(pairs) + len(estimates) == len(rows)
    by_damage = [architecture_of(row, SPACE.shape) for row in rows[np.argsort(harm, kind="stable")]]
    assert {pair.architecture for pair in pairs} == {*by_damage[:5]}
    for pair in pairs:
        expected = 2.0 + float(damage(widths_of(pair.architecture, SPACE.shape)))
        assert pair.score == pytest.approx(-expected, rel=1e-14)
        assert pair.measured["accuracy"] == pytest.approx(0.25, rel=1e-14)
        assert pair.origin == "start"
    for each in estimates:  # of a damage that only windows scale, they are exact
        assert each.score == pytest.approx(-2.0 - damage(widths_of(each.architecture, SPACE.shape)))
    assert Pairs(str(tmp_path / "p"), SETTING).all == sorted(
        pairs, key=lambda pair: by_damage.index(pair.architecture)
    )


def test_nobody_sees_a_window_twice_and_tokens_are_counted(tmp_path: Path) -> None:
    toy = Toy()
    pairs, estimates = halving(toy, str(tmp_path / "p"))(some(), "start")
    seen: dict[Architecture, list[int]] = {}
    for architecture, windows in toy.seen:
        seen.setdefault(architecture, []).extend(windows)
    assert all(len(set(windows)) == len(windows) for windows in seen.values())
    assert {each.architecture: each.tokens for each in estimates} == {
        each.architecture: 10 * len(seen[each.architecture]) for each in estimates
    }
    assert all(len(seen[pair.architecture]) == 16 for pair in pairs)
    assert sum(map(len, seen.values())) == 2 * 40 + 2 * 20 + 4 * 10 + 8 * 5 <= 0.4 * 16 * 40


def test_whoever_comes_in_whatever_order_promotes_the_same(tmp_path: Path) -> None:
    alone = halving(Toy(), str(tmp_path / "alone"))(some(), "start")
    other = halving(Toy(), str(tmp_path / "other"))(some()[::-1], "start")
    assert (other[0][::-1], other[1][::-1]) == alone
    again = Toy()
    assert halving(again, str(tmp_path / "alone"))(some(), "later") == (
        alone[0], [Estimate(e.architecture, e.score, "later", e.tokens) for e in alone[1]]
    )  # fmt: skip
    assert again.seen == []


def promote(folder: Path, name: str) -> None:
    """As a worker beside another: build in one store, tell the outcome."""
    built = halving(Toy(), str(folder / "p"))(some(16), "start")
    (folder / name).write_text(repr(built))


def test_two_workers_promote_what_one_does(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=promote, args=(tmp_path, name)) for name in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    alone = halving(Toy(), str(tmp_path / "alone"))(some(16), "start")
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == repr(alone)


@pytest.mark.parametrize("dies", [30, 41, 75])
def test_killed_in_the_middle_it_goes_on(tmp_path: Path, dies: int) -> None:
    whole, first, second = Toy(), Toy(dies), Toy()
    undisturbed = halving(whole, str(tmp_path / "whole"))(some(), "start")
    with pytest.raises(KeyboardInterrupt):
        halving(first, str(tmp_path / "p"))(some(), "start")
    assert halving(second, str(tmp_path / "p"))(some(), "start") == undisturbed
    assert first.seen + second.seen == whole.seen


def test_where_the_promoted_break_the_next_are_promoted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = some()
    order = [architecture_of(row, SPACE.shape) for row in rows[np.argsort(damage(rows), kind="stable")]]
    poison = frozenset([*order[:4], order[-1]])  # the last is not promoted: nobody learns that it breaks
    pairs, estimates = halving(Toy(poison=poison), str(tmp_path / "p"))(rows, "start")
    assert {pair.architecture for pair in pairs} == {*order[4:9]}
    assert {each.architecture for each in estimates} == {*order[9:]}
    assert "left out" in capsys.readouterr().err
    with pytest.raises(InputError, match="40 of 40 subnets|20 of 20 subnets"):
        halving(Toy(poison=frozenset(order)), str(tmp_path / "q"))(rows, "start")


def test_what_is_over_budget_is_never_measured(tmp_path: Path) -> None:
    toy, whole = Toy(), widths_of(SPACE.shape.parent, SPACE.shape)
    with pytest.raises(ValueError, match="1 of 41 proposals are over budget"):
        halving(toy, str(tmp_path / "p"))(np.concatenate([some(), whole[None]]), "start")
    assert toy.seen == []


def test_a_promoted_subnet_scores_as_on_all_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent, shape = permuted_parent("llama")
    windows, cost = tokens(batch=16), CostModel(shape, 8, 4)
    budget = Budget(cost, cost(shape.parent))
    rows = np.stack([widths_of(architecture_of_cut(kind, shape), shape) for kind in CUTS])

    def meter(some: torch.Tensor) -> SubnetMeter:
        teacher = stored_teacher(parent, some, 4, tmp_path)
        return SubnetMeter(parent, shape, None, some, 3, teacher.divergence)  # type: ignore[arg-type]

    def build(name: str) -> tuple[list[Pair], list[Estimate]]:
        location = str(tmp_path / name)
        rungs = rungs_of(
            location, SETTING.fields, Pairs(location, SETTING), windows, meter, partial(evaluate, parent)
        )
        return Halving(rungs, shape, budget, quiet=True)(rows, "start")

    pairs, estimates = build("p")
    store = Pairs(str(tmp_path / "full"), SETTING)
    full = build_pairs(store, meter(windows), shape, budget, rows, "start", quiet=True)
    expected = {pair.architecture: pair for pair in full}
    assert pairs
    for pair in pairs:
        assert pair.score == pytest.approx(expected[pair.architecture].score, rel=1e-6)
        assert pair.measured["accuracy"] == pytest.approx(expected[pair.architecture].measured["accuracy"])
    forward, passes = type(parent).forward, []

    def small(self: PreTrainedModel, ids: torch.Tensor, *given: object, **more: object) -> object:
        passes.append(len(ids))
        if len(passes) > 30 and len(ids) > 1:  # in the middle of it a device has less room
            raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")
        return forward(self, ids, *given, **more)

    monkeypatch.setattr(type(parent), "forward", small)
    disturbed, guessed = build("disturbed")
    assert 1 in passes[30:]
    assert [pair.architecture for pair in disturbed] == [pair.architecture for pair in pairs]
    for one, other in zip([*disturbed, *guessed], [*pairs, *estimates], strict=True):
        assert one.score == pytest.approx(other.score, rel=1e-6)


def test_the_stored_divergence_is_that_of_a_second_forward_pass(tmp_path: Path) -> None:
    parent, shape = permuted_parent("llama")
    windows = tokens(batch=3)
    subnet = cut(parent, shape, architecture_of_cut(CUTS[1], shape))
    expected = evaluate(subnet, windows, batch_size=2, parent=parent)
    for top_k, rel in ((shape.vocab, 1e-3), (shape.vocab // 2, 0.5)):
        teacher = stored_teacher(parent, windows, top_k, tmp_path)
        found = evaluate(subnet, windows, batch_size=2, divergence=teacher.divergence)
        assert found.kl is not None and expected.kl is not None
        assert (1 - rel) * expected.kl <= found.kl <= (1 + 1e-3) * expected.kl  # of less cells it is less
        assert (found.nll, found.accuracy) == (expected.nll, expected.accuracy)


def test_the_divergence_says_who_is_promoted_where_it_is_measured(tmp_path: Path) -> None:
    toy, rows = Toy(), some(16)
    harm = dict(zip((architecture_of(row, SPACE.shape) for row in rows), damage(rows).tolist(), strict=True))

    def misled(windows: torch.Tensor) -> Callable[[Widths], Scores]:
        """The loss is upside down on all but the last part, the divergence is not."""

        def measure(widths: Widths) -> Scores:
            scores = toy.on(windows)(widths)
            nll = 10 - scores.nll if len(windows) < 8 else scores.nll
            return replace(scores, nll=nll, kl=harm[architecture_of(widths, SPACE.shape)])

        return measure

    location = str(tmp_path / "p")
    rungs = rungs_of(location, SETTING.fields, Pairs(location, SETTING), WINDOWS, misled, toy.scores)
    pairs, estimates = Halving(rungs, SPACE.shape, BUDGET, quiet=True)(rows, "start")
    assert {pair.architecture for pair in pairs} == {*sorted(harm, key=lambda each: harm[each])[:2]}
    assert len(estimates) == 14
    assert all(pair.measured["kl"] == pytest.approx(harm[pair.architecture]) for pair in pairs)


def explored_with(toy: Toy, location: str) -> Explored:
    hints = hints_of(SPACE.shape)
    first = SAMPLERS["seeded"](SPACE, BUDGET, 16, np.random.default_rng(3), hints)
    return explore(
        SPACE, BUDGET, Encoding(BUDGET.cost, hints.attention_error, hints.mlp_error),
        lambda: make_predictor("ridge"), halving(toy, location), first,
        reference=-2.0, total=48, rounds=3, trials=80, seed=1,
    )  # fmt: skip


def test_a_search_finds_the_optimum_and_calls_no_estimate_a_pair(tmp_path: Path) -> None:
    whole = Toy()
    explored = explored_with(whole, str(tmp_path / "p"))
    scores: NDArray[np.float64] = np.array([pair.score for pair in explored.pairs])
    assert scores.max() == pytest.approx(-2.0 - damage(everything(SPACE, BUDGET)).min())
    assert all(isinstance(pair, Pair) for pair in explored.pairs)
    assert all(isinstance(each, Estimate) for each in explored.estimates)
    assert {pair.architecture for pair in explored.pairs} == {
        pair.architecture for pair in Pairs(str(tmp_path / "p"), SETTING).all
    }
    assert len(explored.pairs) + len(explored.estimates) == 48
    assert sum(len(windows) for _, windows in whole.seen) <= 0.4 * 16 * 48
    last = explored.rounds[-1]
    assert (last.pairs, last.estimates) == (len(explored.pairs), len(explored.estimates))
    assert last.best_score == scores.max()
    first, second = Toy(dies=len(whole.seen) // 2), Toy()
    with pytest.raises(KeyboardInterrupt):
        explored_with(first, str(tmp_path / "q"))
    resumed = explored_with(second, str(tmp_path / "q"))
    assert (resumed.pairs, resumed.estimates) == (explored.pairs, explored.estimates)
    assert first.seen + second.seen == whole.seen
