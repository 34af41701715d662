"""Experts of a mixture as units: what each adds is measured, and the least useful go first."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from data.errors import InputError
from nas.architecture import Architecture, Block
from nas.calibration import calibrate
from nas.evidence import Evidence
from nas.families import MLP, layers_of, shape_of
from nas.families.experts import contributions
from nas.importance import CRITERIA
from nas.ranking import permute, rank
from nas.repair.bank import mlp_key, repair_block
from nas.repair.sequential import repair_front_to_back
from nas.repair.stream import Stream
from nas.space import default_space
from nas.subnet import cut
from tests.nas.tiny_models import tiny_parent, tokens


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


every_mixture = pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
WINDOWS = tokens(length=12, batch=24)


def outputs_of(name: str) -> tuple[Tensor, Tensor]:
    """What the experts of block 1 add, (tokens, experts, hidden), and the mixture, (tokens, hidden)."""
    parent = tiny_parent(name)
    layer = layers_of(parent)[1]
    caught: list[Tensor] = []
    x = torch.cat(Stream(parent, WINDOWS).middle(1))
    hook = layer.mlp.experts.register_forward_pre_hook(
        lambda module, args: caught.extend(contributions(module, *args))
    )
    whole = layer.feed(layer.norm(MLP, x)).flatten(0, 1)
    hook.remove()
    return torch.cat(caught), whole


@every_mixture
def test_what_experts_add_is_what_the_mixture_adds(name: str) -> None:
    each, whole = outputs_of(name)
    torch.testing.assert_close(each.sum(1), whole, rtol=1e-4, atol=1e-5)
    assert int((each.square().sum(-1) > 0).sum(1).max()) == 2  # as many as a token visits


@every_mixture
def test_statistics_hold_their_inner_products(name: str) -> None:
    each = outputs_of(name)[0].double()
    found = calibrate(tiny_parent(name), WINDOWS).ffn_gram[1]
    torch.testing.assert_close(
        found, torch.einsum("teh,tfh->ef", each, each) / len(each), rtol=1e-3, atol=1e-4
    )


@every_mixture
def test_the_loudest_experts_are_kept_and_the_error_is_what_the_others_added(name: str) -> None:
    parent = tiny_parent(name)
    shape = shape_of(parent)
    evidence = Evidence(parent, shape, WINDOWS)
    each = outputs_of(name)[0].double()
    energy = each.square().sum(-1).mean(0)
    orders = rank(evidence, CRITERIA["output_energy"])
    assert orders.channels[1].tolist() == energy.argsort(descending=True).tolist()
    permuted = permute(parent, shape, orders)
    bank = repair_block(permuted, shape, calibrate(permuted, WINDOWS), 1, {}, (2, 3, 6))
    assert not bank.matrices and bank.errors[mlp_key(1, 6)] == 0.0
    gone = each[:, orders.channels[1][3:]].sum(1)
    expected = gone.square().sum(-1).mean() / each.sum(1).square().sum(-1).mean()
    assert bank.errors[mlp_key(1, 3)] == pytest.approx(float(expected), rel=1e-3)
    assert bank.errors[mlp_key(1, 2)] >= bank.errors[mlp_key(1, 3)]


@every_mixture
def test_fewer_experts_than_a_token_visits_are_not_in_the_space_and_refused(name: str) -> None:
    parent = tiny_parent(name)
    shape = shape_of(parent)
    assert default_space(shape).knobs["1.ffn"] == (0, 2, 3, 4, 5, 6)
    with pytest.raises(InputError, match="1 experts are fewer than the 2 that every token visits"):
        cut(parent, shape, Architecture(32, (Block(0, 2, 2, 1),)))


@every_mixture
def test_front_to_back_repair_corrects_around_experts(name: str) -> None:
    parent = tiny_parent(name)
    shape, stream = shape_of(parent), Stream(parent, WINDOWS)
    architecture = Architecture(32, tuple(Block(i, 1, 2, 4) for i in range(3)))
    statistics = calibrate(parent, WINDOWS)
    matrices, errors = {}, {}
    for block in range(3):
        part = repair_block(parent, shape, statistics, block, {2: (1, 2)}, (4, 6))
        matrices |= part.matrices
        errors |= part.errors
    bank = type(part)(matrices, errors)
    wanted = parent(WINDOWS).logits
    once = cut(parent, shape, architecture, bank)(WINDOWS).logits
    twice = repair_front_to_back(parent, shape, architecture, bank, stream)(WINDOWS).logits
    assert (twice - wanted).square().mean() < (once - wanted).square().mean()
