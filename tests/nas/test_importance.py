"""Every criterion keeps its promises, and each says what its paper says."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from data.errors import InputError
from nas.evidence import Evidence
from nas.families import layers_of, shape_of
from nas.gradients import OUTPUTS
from nas.importance import CRITERIA, Criterion, UnitScores
from nas.importance.contract import CHECKS, check_criterion, tiny_evidence
from nas.importance.fusion import fixed
from nas.importance.scores import as_if_ranked, of_heads
from nas.ranking import ranking_of
from tests.nas.tiny_models import PARENTS, tiny_parent, tokens


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("check", CHECKS)
def test_keeps_its_promise(check: str, name: str) -> None:
    CHECKS[check](CRITERIA[name])


@pytest.mark.parametrize("name", PARENTS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_family_can_be_ranked(criterion: str, name: str) -> None:
    parent = tiny_parent(name)
    evidence = Evidence(parent, shape_of(parent), tokens(batch=3))
    if evidence.shape.experts_per_token and not CRITERIA[criterion].experts:
        with pytest.raises(InputError, match="6 experts in their place") as refused:
            CRITERIA[criterion](evidence, 1)
        assert all((each in str(refused.value)) == can.experts for each, can in CRITERIA.items())
        return
    scores = CRITERIA[criterion](evidence, 1)
    assert all(torch.isfinite(part).all() for part in (scores.groups, scores.queries, scores.channels))


def wrong_shape(evidence: Evidence, block: int) -> UnitScores:
    right = CRITERIA["l2"](evidence, block)
    return UnitScores(right.queries.flatten(), right.queries, right.channels)


def no_number(evidence: Evidence, block: int) -> UnitScores:
    right = CRITERIA["l2"](evidence, block)
    energy = layers_of(evidence.parent)[block].up_proj.weight.double().square().sum(1)
    return UnitScores(right.groups, right.queries, energy / energy)


def unseeded(evidence: Evidence, block: int) -> UnitScores:
    right = CRITERIA["l2"](evidence, block)
    return UnitScores(right.groups, right.queries, torch.rand_like(right.channels))


def meddling(evidence: Evidence, block: int) -> UnitScores:
    right = CRITERIA["l2"](evidence, block)
    layers_of(evidence.parent)[block].up_proj.weight.data *= 2
    return right


def by_place(evidence: Evidence, block: int) -> UnitScores:
    right = CRITERIA["l2"](evidence, block)
    return UnitScores(right.groups, right.queries, right.channels.cumsum(0))


@pytest.mark.parametrize(
    ("check", "broken", "invariant"),
    [
        ("shapes", wrong_shape, False),
        ("finite", no_number, False),
        ("deterministic", unseeded, False),
        ("parent untouched", meddling, False),
        ("follows units", by_place, False),
        ("rescaling", CRITERIA["l2"].score, True),
        ("rescaling", CRITERIA["taylor_element1"].score, False),
    ],
)
def test_a_criterion_that_breaks_a_promise_is_caught(check: str, broken: object, invariant: bool) -> None:
    criterion = Criterion(broken, invariant)  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        CHECKS[check](criterion)
    with pytest.raises(AssertionError):
        check_criterion(criterion)


def masked_loss(evidence: Evidence, block: int, scale: Tensor) -> Tensor:
    """The mean loss with the inputs of down_proj multiplied by `scale` (P,)."""
    hook = layers_of(evidence.parent)[block].down_proj.register_forward_pre_hook(
        lambda _, args: (args[0] * scale,)
    )
    try:
        logits = evidence.parent(evidence.windows).logits
    finally:
        hook.remove()
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), evidence.windows[:, 1:].flatten())


def test_the_signed_sum_over_an_output_column_is_the_slope_of_the_loss() -> None:
    evidence = tiny_evidence()
    scale = torch.ones(evidence.shape.ffn, requires_grad=True)
    (slope,) = torch.autograd.grad(masked_loss(evidence, 1, scale), scale)
    signed = evidence.gradients[1].signed["down_proj"].mean(0)
    torch.testing.assert_close(signed, slope.double(), rtol=1e-4, atol=1e-7)


def test_gradients_are_those_of_the_mean_loss_and_their_squares_those_of_windows() -> None:
    evidence = tiny_evidence()
    layer = layers_of(evidence.parent)[0]
    for name, linear in layer.projections():
        weight = linear.weight.requires_grad_(True)
        each = []
        for window in evidence.windows:
            logits = evidence.parent(window[None]).logits[0, :-1]
            each.append(torch.autograd.grad(functional.cross_entropy(logits, window[1:]), weight)[0])
        linear.weight.requires_grad_(False)
        stacked = torch.stack(each)
        torch.testing.assert_close(evidence.gradients[0].mean[name], stacked.mean(0), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(
            evidence.gradients[0].square[name], stacked.square().mean(0), rtol=1e-4, atol=1e-9
        )
        lines = (stacked * linear.weight).double().sum(1 if name in OUTPUTS else 2)
        torch.testing.assert_close(evidence.gradients[0].signed[name], lines, rtol=1e-3, atol=1e-6)


def test_a_head_is_scored_by_all_its_rows_and_columns_and_a_group_by_its_keys_and_values_too() -> None:
    evidence = tiny_evidence()
    shape, layer = evidence.shape, layers_of(evidence.parent)[1]
    d, q = shape.head_dim, shape.queries_per_group
    energy = {name: getattr(layer, name).weight.double().square() for name in ("q_proj", "k_proj", "v_proj")}
    out = layer.o_proj.weight.double().square()
    scores = CRITERIA["l2"](evidence, 1)
    for group in range(shape.kv_groups):
        shared = sum(energy[name][group * d : (group + 1) * d].sum() for name in ("k_proj", "v_proj"))
        for query in range(q):
            rows = slice((group * q + query) * d, (group * q + query + 1) * d)
            assert scores.queries[group, query] == pytest.approx(
                float(energy["q_proj"][rows].sum() + out[:, rows].sum())
            )
        assert scores.groups[group] == pytest.approx(float(scores.queries[group].sum() + shared))


@pytest.mark.parametrize(("weight", "alone"), [(0.0, "taylor_mix"), (1.0, "taylor_vector")])
def test_fusion_with_weight_0_or_1_is_the_fine_or_the_coarse_criterion(weight: float, alone: str) -> None:
    evidence = tiny_evidence()
    for block in range(evidence.shape.blocks):
        fused, single = fixed(weight)(evidence, block), CRITERIA[alone](evidence, block)
        for kind in ("groups", "queries", "channels"):
            part = getattr(single, kind)
            assert torch.equal(getattr(fused, kind), part / part.sum(-1, keepdim=True))
    fused_order = ranking_of([fixed(weight)(evidence, 0)])
    single_order = ranking_of([CRITERIA[alone](evidence, 0)])
    assert all(
        torch.equal(getattr(fused_order, kind)[0], getattr(single_order, kind)[0])
        for kind in ("groups", "queries", "channels")
    )


@pytest.mark.parametrize("mode", ["fused_reliability", "fused_attention"])
def test_fused_scores_lie_between_both(mode: str) -> None:
    evidence = tiny_evidence()
    coarse, fine, fused = (criterion(evidence, 1) for criterion in (fixed(1.0), fixed(0.0), CRITERIA[mode]))
    for kind in ("groups", "channels"):
        low = torch.minimum(getattr(coarse, kind), getattr(fine, kind))
        high = torch.maximum(getattr(coarse, kind), getattr(fine, kind))
        assert ((getattr(fused, kind) >= low - 1e-12) & (getattr(fused, kind) <= high + 1e-12)).all()


def test_the_fluctuation_of_a_constant_channel_is_the_least() -> None:
    evidence = tiny_evidence()
    layer = layers_of(evidence.parent)[0]
    with torch.no_grad():
        layer.up_proj.weight[5] = 0.0  # silent, so constant
    assert int(CRITERIA["fluctuation"](evidence, 0).channels.argmin()) == 5


def test_activation_is_what_a_plain_forward_pass_shows() -> None:
    evidence = tiny_evidence()
    caught: dict[str, Tensor] = {}
    layer = layers_of(evidence.parent)[1]
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: caught.update({name: args[0]}))
        for name, module in (("heads", layer.o_proj), ("channels", layer.down_proj))
    ]
    evidence.parent(evidence.windows)
    for hook in hooks:
        hook.remove()
    scores = CRITERIA["activation"](evidence, 1)
    torch.testing.assert_close(scores.channels, caught["channels"].abs().double().mean((0, 1)))
    heads = caught["heads"].unflatten(-1, (-1, evidence.shape.head_dim)).norm(dim=-1).double().mean((0, 1))
    torch.testing.assert_close(scores.queries.flatten(), heads)


def test_scores_made_of_an_order_sort_into_it_even_where_costs_are_zero() -> None:
    order = torch.tensor([2, 0, 3, 1])
    scores = as_if_ranked(order, torch.tensor([0.0, 0.0, 1.0, 0.0]))
    assert scores.argsort().tolist() == order.tolist()
    assert len(set(scores.tolist())) == 4


def test_a_group_is_worth_its_heads_together() -> None:
    shape = tiny_evidence().shape
    heads = torch.arange(6.0)
    assert of_heads(shape, heads, torch.ones(shape.ffn)).groups.tolist() == [3.0, 12.0]
