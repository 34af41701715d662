"""Heads that attend alike are found, by the divergence that the paper defines."""

import math

import pytest
import torch

from nas.families import layers_of, shape_of
from nas.importance.output_energy import output_energy
from nas.repair.steps import choose
from nas.repair.stream import Stream
from nas.repair.walk import Visit, walk
from nas.similarity import group_divergence, head_divergence, redundant
from tests.nas.tiny_models import DENSE, tiny_parent, tokens

WINDOWS = tokens(length=8, batch=3)


def divergence_of(name: str, block: int = 1) -> torch.Tensor:
    """Between the heads of a block of a tiny parent."""
    parent = tiny_parent(name)
    found: list[torch.Tensor] = []

    def look(visit: Visit) -> None:
        if visit.is_attention and visit.block.source == block:
            found.append(head_divergence(visit.layer.attention, visit.arguments, visit.normed))

    walk(parent, shape_of(parent), shape_of(parent).parent, Stream(parent, WINDOWS), [look])
    return found[0]


@pytest.mark.parametrize("name", [name for name in DENSE if not name.startswith("falcon")])
def test_it_is_a_divergence(name: str) -> None:
    found = divergence_of(name)
    assert found.shape == (4, 4)
    torch.testing.assert_close(found, found.T)
    torch.testing.assert_close(found.diagonal(), torch.zeros(4, dtype=torch.float64), atol=1e-9, rtol=0)
    assert (found <= math.log(2) + 1e-9).all()
    assert (found + torch.eye(4) > 0).all()


@pytest.mark.parametrize("name", ["llama", "mistral-window"])
def test_it_is_what_the_probabilities_of_the_model_say(name: str) -> None:
    parent = tiny_parent(name)
    parent.set_attn_implementation("eager")
    with torch.no_grad():
        rows = parent(WINDOWS, output_attentions=True).attentions[1].double()  # (n, H, s, s)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            p, q = rows[:, i], rows[:, j]
            middle = (p + q) / 2
            both = torch.special.xlogy(p, p / middle.clamp_min(1e-300)).sum(-1)
            both += torch.special.xlogy(q, q / middle.clamp_min(1e-300)).sum(-1)
            expected[i, j] = both.mean() / 2
    torch.testing.assert_close(divergence_of(name), expected, rtol=1e-4, atol=1e-7)


def test_twins_are_found_and_the_less_important_goes() -> None:
    parent = tiny_parent("llama-mha")
    attention = layers_of(parent)[1]
    with torch.no_grad():
        for linear in (attention.q_proj, attention.k_proj):
            linear.weight[24:32] = linear.weight[8:16]  # head 3 attends like head 1
    shape = shape_of(parent)
    found: list[torch.Tensor] = []

    def look(visit: Visit) -> None:
        if visit.is_attention and visit.block.source == 1:
            heads = head_divergence(visit.layer.attention, visit.arguments, visit.normed)
            found.append(group_divergence(shape, heads))

    walk(parent, shape, shape.parent, Stream(parent, WINDOWS), [look, choose(output_energy)])
    assert torch.equal(found[0], group_divergence(shape, found[0]))  # a group is a head here
    importance = torch.tensor([1.0, 5.0, 1.0, 4.0])
    assert redundant(found[0], importance, 1e-6) == [3]
    assert redundant(found[0], importance, 1e-6, literal=True) == [1]
    assert redundant(found[0], importance, 0.0) == []


def test_pairs_are_scanned_greedily() -> None:
    near = torch.tensor([[0.0, 0.1, 0.1], [0.1, 0.0, 0.1], [0.1, 0.1, 0.0]])
    assert redundant(near, torch.tensor([3.0, 2.0, 1.0]), 0.2) == [1, 2]  # 0 stays for all of them
    assert redundant(near, torch.tensor([1.0, 2.0, 3.0]), 0.2) == [0, 1]


def test_groups_are_compared_over_all_their_queries() -> None:
    shape = shape_of(tiny_parent("llama"))
    heads = torch.arange(16.0).view(4, 4)
    assert group_divergence(shape, heads)[0, 1] == heads[:2, 2:].mean()
