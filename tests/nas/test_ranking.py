"""Ranking: what goes first is what is missed least, and every way there is gives a permutation."""

import pytest
import torch
from torch import Tensor

from nas.calibration import Statistics, calibrate
from nas.evidence import Evidence
from nas.families import blocks_of, shape_of
from nas.importance import CRITERIA
from nas.importance.criterion import ModuleScore
from nas.importance.elimination import elimination
from nas.importance.magnitude import magnitude
from nas.importance.output_energy import output_energy
from nas.importance.wanda import wanda
from nas.linear import damped
from nas.ranking import permute, permute_statistics, rank
from tests.nas.tiny_models import PARENTS, random_ranking, tiny_parent, tokens

MODULE_SCORES: dict[str, ModuleScore] = {
    "elimination": elimination,
    "output_energy": output_energy,
    "magnitude": magnitude,
    "wanda": wanda,
}


def order_of(scores: Tensor) -> list[int]:
    return scores.argsort(descending=True, stable=True).tolist()


def problem(units: int, unit: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A random output matrix (5, units * unit) and the Gram matrix of correlated inputs."""
    draw = torch.Generator().manual_seed(seed)
    columns = units * unit
    mix = torch.randn(columns, columns, generator=draw, dtype=torch.float64)
    inputs = torch.randn(40, columns, generator=draw, dtype=torch.float64) @ mix
    return torch.randn(5, columns, generator=draw, dtype=torch.float64), inputs.T @ inputs / 40


def columns_of(units: list[int], unit: int) -> list[int]:
    return [column for u in units for column in range(u * unit, (u + 1) * unit)]


def least_error(weight: Tensor, gram: Tensor, keep: list[int]) -> float:
    """The squared error that the best matrix on the kept columns leaves, by a solver of its own."""
    root = torch.linalg.cholesky(damped(gram)).T  # ||root x||^2 is the form x^T S x
    fitted = torch.linalg.lstsq(root[:, keep], root @ weight.T).solution
    return float((root @ weight.T - root[:, keep] @ fitted).square().sum())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("unit", [1, 2, 3])
def test_elimination_is_the_greedy_choice_by_brute_force(unit: int, seed: int) -> None:
    weight, gram = problem(7, unit, seed)
    left, removed = list(range(7)), []
    while len(left) > 1:
        errors = {u: least_error(weight, gram, columns_of([k for k in left if k != u], unit)) for u in left}
        victim = min(errors, key=errors.__getitem__)
        left.remove(victim)
        removed.append(victim)
    assert order_of(elimination(weight, gram, unit)) == [*left, *reversed(removed)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("unit", [1, 2])
def test_a_unit_eliminated_scores_the_error_that_is_left_without_it_and_all_before_it(
    unit: int, seed: int
) -> None:
    weight, gram = problem(6, unit, seed)
    scores = elimination(weight, gram, unit)
    for kept in range(1, 6):
        left = order_of(scores)[:kept]
        error = least_error(weight, gram, columns_of(left, unit))
        assert scores.sort(descending=True).values[kept] == pytest.approx(error, rel=1e-6)
    whole = float((torch.linalg.cholesky(damped(gram)).T @ weight.T).square().sum())
    assert scores.max() == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("unit", [1, 2, 4])
@pytest.mark.parametrize("name", MODULE_SCORES)
def test_modules_are_scored_always_the_same_and_left_alone(name: str, unit: int) -> None:
    weight, gram = problem(9, unit)
    before = weight.clone(), gram.clone()
    scores = MODULE_SCORES[name](weight, gram, unit)
    assert scores.shape == (9,)
    assert torch.equal(MODULE_SCORES[name](weight, gram, unit), scores)
    assert torch.equal(weight, before[0])
    assert torch.equal(gram, before[1])


@pytest.mark.parametrize("unit", [1, 3])
def test_without_correlations_elimination_is_output_energy(unit: int) -> None:
    weight, gram = problem(8, unit)
    gram = torch.diag(gram.diagonal())
    assert order_of(elimination(weight, gram, unit)) == order_of(output_energy(weight, gram, unit))


def test_magnitude_does_not_look_at_the_data() -> None:
    weight, gram = problem(8, 2)
    assert torch.equal(magnitude(weight, gram, 2), magnitude(weight, torch.zeros_like(gram), 2))


@pytest.mark.parametrize("name", ["elimination", "output_energy", "wanda"])
@pytest.mark.parametrize("unit", [1, 2])
def test_a_unit_that_never_speaks_goes_first(name: str, unit: int) -> None:
    weight, gram = problem(6, unit)
    silent = columns_of([4], unit)
    gram[silent] = 0.0
    gram[:, silent] = 0.0
    assert order_of(MODULE_SCORES[name](weight, gram, unit))[-1] == 4


def test_elimination_sees_that_others_can_stand_in() -> None:
    weight = torch.tensor([[3.0, 3.0, 1.0]], dtype=torch.float64)
    gram = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    # One of the twins, though each says three times as much.
    assert order_of(elimination(weight, gram, 1))[-1] in (0, 1)
    assert order_of(output_energy(weight, gram, 1))[-1] == 2


def test_dead_inputs_can_be_ranked_too() -> None:
    weight, gram = problem(5, 2)
    assert len(set(elimination(weight, torch.zeros_like(gram), 2).tolist())) == 5


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_parent_is_ranked_part_by_part(criterion: str) -> None:
    parent = tiny_parent("llama")
    shape = shape_of(parent)
    done: list[int] = []
    ranking = rank(Evidence(parent, shape, tokens(batch=6)), CRITERIA[criterion], progress=done.append)
    assert sum(done) == shape.blocks == len(ranking.groups) == len(ranking.queries) == len(ranking.channels)
    for groups, queries, channels in zip(ranking.groups, ranking.queries, ranking.channels, strict=True):
        assert sorted(groups.tolist()) == list(range(shape.kv_groups))
        assert sorted(channels.tolist()) == list(range(shape.ffn))
        assert queries.shape == (shape.kv_groups, shape.queries_per_group)
        assert all(sorted(inside) == list(range(shape.queries_per_group)) for inside in queries.tolist())
    again = rank(Evidence(parent, shape, tokens(batch=6)), CRITERIA[criterion])
    for kind in ("groups", "queries", "channels"):
        for first, second in zip(getattr(ranking, kind), getattr(again, kind), strict=True):
            assert torch.equal(first, second)


def test_a_parent_is_ranked_by_the_inputs_of_its_output_matrices() -> None:
    parent = tiny_parent("llama")
    shape = shape_of(parent)
    evidence = Evidence(parent, shape, tokens(batch=6))
    ranking, statistics = rank(evidence, CRITERIA["output_energy"]), evidence.statistics
    block = blocks_of(parent)[1]
    energy = block.self_attn.o_proj.weight.double().square().sum(0) * statistics.attention_gram[1].diagonal()
    heads = energy.view(shape.kv_groups, shape.queries_per_group, -1).sum(2)
    assert ranking.groups[1].tolist() == heads.sum(1).argsort(descending=True).tolist()
    assert ranking.queries[1].tolist() == heads.argsort(1, descending=True).tolist()


def gathered(statistics: Statistics) -> Tensor:
    """All statistics in one vector."""
    grams = [*statistics.attention_gram, *statistics.ffn_gram]
    influence = torch.tensor(statistics.influence, dtype=torch.float64)
    return torch.cat([*(gram.flatten() for gram in grams), influence])


@pytest.mark.parametrize("name", PARENTS)
def test_permuted_statistics_are_those_of_the_permuted_parent(name: str) -> None:
    parent = tiny_parent(name)
    shape = shape_of(parent)
    ranking = random_ranking(shape)
    expected = calibrate(permute(parent, shape, ranking), tokens(batch=4))
    found = permute_statistics(shape, calibrate(parent, tokens(batch=4)), ranking)
    torch.testing.assert_close(gathered(found), gathered(expected), rtol=1e-4, atol=1e-4)


def test_statistics_do_not_depend_on_batches_and_leave_no_hooks() -> None:
    parent = tiny_parent("llama")
    windows = tokens(batch=7)
    seen: list[int] = []
    one = calibrate(parent, windows, batch_size=1)
    many = calibrate(parent, windows, batch_size=4, progress=seen.append)
    torch.testing.assert_close(gathered(one), gathered(many), rtol=1e-5, atol=1e-5)
    assert one.tokens == many.tokens == windows.numel()
    assert seen == [4, 3]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in parent.modules())


def test_a_block_that_changes_nothing_has_no_influence() -> None:
    parent = tiny_parent("llama")
    still = blocks_of(parent)[1]
    with torch.no_grad():
        still.self_attn.o_proj.weight.zero_()
        still.mlp.down_proj.weight.zero_()
    influence = calibrate(parent, tokens(batch=4)).influence
    assert abs(influence[1]) < 1e-6
    assert min(influence[0], influence[2]) > 1e-3
