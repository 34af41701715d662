"""One-shot pruning: the budget is met to within one unit, by the best units there are."""

import numpy as np
import pytest
import torch

from data.errors import InputError
from nas.block_importance import BLOCK_CRITERIA, without
from nas.cost import CostModel, budget_of
from nas.evaluate import evaluate
from nas.evidence import Evidence
from nas.families import shape_of
from nas.greedy_drop import drop_greedily
from nas.importance import UnitScores
from nas.oneshot import ends, global_threshold, same_share
from nas.shape import Shape, architecture_of
from nas.subnet import cut
from tests.nas.tiny_models import PARENTS, tiny_parent, tokens

KEEPS = (0.3, 0.5, 0.8, 1.0)


def random_scores(shape: Shape, seed: int = 0) -> list[UnitScores]:
    draw = torch.Generator().manual_seed(seed)

    def scores(*size: int) -> torch.Tensor:
        return torch.rand(*size, generator=draw, dtype=torch.float64)

    groups, queries = shape.kv_groups, shape.queries_per_group
    return [
        UnitScores(scores(groups), scores(groups, queries), scores(shape.ffn)) for _ in range(shape.blocks)
    ]


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("name", PARENTS)
def test_a_global_threshold_meets_the_budget_to_within_one_unit(name: str, keep: float) -> None:
    shape = shape_of(tiny_parent(name))
    budget = budget_of(CostModel(shape, 16, 4), keep)
    widths = global_threshold(random_scores(shape), budget)
    assert budget.allows(widths[None])[0]
    groups = shape.kv_groups if shape.whole_attention else 1
    unit = groups * (shape.per_group + shape.queries_per_group * shape.per_query) + shape.attention_fixed
    spare = budget.limits["block_parameters"] - int(
        budget.cost.of_widths(widths, ["block_parameters"])["block_parameters"]
    )
    assert spare < max(unit, shape.per_channel + shape.mlp_fixed) or keep == 1.0
    assert (keep < 1.0) or (widths == [shape.kv_groups, shape.queries_per_group, shape.ffn]).all()


def test_a_global_threshold_keeps_no_unit_below_one_that_it_drops() -> None:
    shape = shape_of(tiny_parent("llama-mha"))
    scores = random_scores(shape, seed=1)
    widths = global_threshold(scores, budget_of(CostModel(shape, 16, 4), 0.5))
    kept, dropped = [], []
    for row, of_block in zip(widths, scores, strict=True):
        for count, values in ((row[0], of_block.groups), (row[2], of_block.channels)):
            ordered = values.sort(descending=True).values.tolist()
            kept += ordered[:count]
            dropped += ordered[count:]
    assert sorted(kept)[1] >= max(dropped)  # one group is kept whatever it scores


def test_protected_blocks_stay_whole() -> None:
    shape = shape_of(tiny_parent("llama"))
    budget = budget_of(CostModel(shape, 16, 4), 0.8)
    full = [shape.kv_groups, shape.queries_per_group, shape.ffn]
    for widths in (same_share(budget, {0, 2}), global_threshold(random_scores(shape), budget, {0, 2})):
        assert widths[[0, 2]].tolist() == [full, full]
        assert widths[1].tolist() != full
        assert budget.allows(widths[None])[0]


@pytest.mark.parametrize(
    "prune", [same_share, lambda b, p: global_threshold(random_scores(b.cost.shape), b, p)]
)
def test_a_budget_below_the_protected_blocks_is_refused(prune: object) -> None:
    shape = shape_of(tiny_parent("llama"))
    with pytest.raises(InputError, match="2 blocks protected .* times the budget"):
        prune(budget_of(CostModel(shape, 16, 4), 0.5), (0, 2))  # type: ignore[operator]


@pytest.mark.parametrize("keep", KEEPS[1:])  # 0.3 is less than one unit of each kind
@pytest.mark.parametrize("name", [name for name in PARENTS if name not in ("falcon", "olmo2", "olmo3")])
def test_an_even_cut_is_as_large_as_the_budget_allows(name: str, keep: float) -> None:
    shape = shape_of(tiny_parent(name))
    budget = budget_of(CostModel(shape, 16, 4), keep)
    widths = same_share(budget)
    assert (widths == widths[0]).all()
    assert budget.allows(widths[None])[0]
    wider = widths + np.array([0, 0, 1])
    assert widths[0, 2] == shape.ffn or not budget.allows(wider[None])[0]


def test_the_ends_are_the_first_and_last_blocks() -> None:
    shape = shape_of(tiny_parent("llama"))
    assert ends(shape, 1, 1) == (0, 2)
    assert ends(shape, 0, 0) == ()
    assert ends(shape, 4, 2) == (0, 1, 2)


@pytest.mark.parametrize("criterion", BLOCK_CRITERIA)
@pytest.mark.parametrize("name", PARENTS)
def test_block_criteria_are_finite_deterministic_and_leave_the_parent(name: str, criterion: str) -> None:
    parent = tiny_parent(name)
    shape, windows = shape_of(parent), tokens(batch=4)
    before = {key: value.clone() for key, value in parent.state_dict().items()}
    first, second = (BLOCK_CRITERIA[criterion](Evidence(parent, shape, windows)) for _ in range(2))
    assert first.shape == (shape.blocks,) and np.isfinite(first).all()
    assert (first == second).all()
    assert all(torch.equal(value, before[key]) for key, value in parent.state_dict().items())


def test_a_block_that_does_nothing_matters_least() -> None:
    parent = tiny_parent("llama")
    layer = parent.model.layers[1]
    for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
        linear.weight.data.zero_()
    evidence = Evidence(
        parent, shape_of(parent), parent.generate(tokens(2, 8), max_length=24, do_sample=True)
    )
    assert BLOCK_CRITERIA["influence"](evidence).argmin() == 1
    whole = evaluate(parent, evidence.windows).nll
    assert BLOCK_CRITERIA["drop_one_loss"](evidence)[1] == pytest.approx(whole, abs=1e-6)


def test_blocks_are_dropped_one_by_one_as_brute_force_does() -> None:
    parent = tiny_parent("llama")
    shape, windows = shape_of(parent), tokens(batch=4)

    def loss(gone: set[int]) -> float:
        model = cut(parent, shape, without(shape, gone))
        with torch.no_grad():
            logits = model(windows).logits
        return float(
            torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten())
        )

    seen: list[int] = []
    gone = drop_greedily(parent, shape, windows, 2, progress=seen.append)
    first = min(range(3), key=lambda block: loss({block}))
    second = min(set(range(3)) - {first}, key=lambda block: loss({first, block}))
    assert gone == [first, second]
    assert len(seen) == 3 + 2
    assert drop_greedily(parent, shape, windows, 1, protected=(0, 2)) == [1]
    with pytest.raises(InputError, match="only 1 are not protected"):
        drop_greedily(parent, shape, windows, 2, protected=(0, 2))


def test_a_threshold_gives_an_architecture_that_can_be_cut() -> None:
    parent = tiny_parent("qwen3")
    shape = shape_of(parent)
    for keep in KEEPS:
        widths = global_threshold(random_scores(shape, 3), budget_of(CostModel(shape, 16, 4), keep))
        assert cut(parent, shape, architecture_of(widths, shape))(tokens()).logits.isfinite().all()
