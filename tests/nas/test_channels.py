"""Refitting channels: what it must find, and that it never makes an MLP worse."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from nas.architecture import Architecture, Block
from nas.families import MLP, Layer, layers_of
from nas.repair import channels
from nas.repair.channels import refit_channels
from nas.repair.stream import Stream
from nas.subnet import cut
from tests.nas.tiny_models import DENSE, permuted_parent, tokens


def narrowed(name: str, batch_size: int = 8) -> tuple[Layer, Layer, list[Tensor]]:
    """An MLP of a parent, the same with half of its channels, and normed inputs of both."""
    parent, shape = permuted_parent(name)
    full = (shape.kv_groups, shape.queries_per_group)
    blocks = tuple(Block(i, *full, shape.ffn // 2) for i in range(shape.blocks))
    subnet = cut(parent, shape, Architecture(shape.hidden, blocks), own=True)
    dense, mine = layers_of(parent)[0], layers_of(subnet)[0]
    stream = Stream(parent, tokens(length=12, batch=24), batch_size)
    read = stream.before(0) if dense.layout.parallel else stream.middle(0)
    return dense, mine, [dense.norm(MLP, h) for h in read]


def left(layer: Layer, inputs: list[Tensor], goals: list[Tensor]) -> list[Tensor]:
    return [goal - layer.feed(x) for goal, x in zip(goals, inputs, strict=True)]


def squares(parts: list[Tensor]) -> float:
    return sum(float(part.double().square().sum()) for part in parts)


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize(("steps", "batch_size"), [(1, 8), (4, 8), (4, 2)])
def test_refitting_channels_lowers_the_error_it_minimises(name: str, steps: int, batch_size: int) -> None:
    dense, mine, inputs = narrowed(name, batch_size)  # 3 batches, or 12: more than sweeps
    goals = [dense.feed(x) for x in inputs]
    before = left(mine, inputs, goals)
    refit_channels(mine, inputs, before, damping=1e-3, output_damping=1e-3, steps=steps)
    assert squares(left(mine, inputs, goals)) < 0.99 * squares(before)


@pytest.mark.parametrize("name", ["llama", "llama-biased", "gemma2"])
def test_projections_that_explain_the_target_are_found(name: str) -> None:
    _, mine, inputs = narrowed(name)
    other = copy.deepcopy(mine)
    other.up_proj.weight.data += 0.3 * torch.randn(
        other.up_proj.weight.shape, generator=torch.Generator().manual_seed(0)
    )
    goals = [other.feed(x) for x in inputs]
    before = left(mine, inputs, goals)
    for _ in range(8):  # Gauss-Newton: each goes most of the way that is left
        missing = left(mine, inputs, goals)
        refit_channels(mine, inputs, missing, damping=1e-9, output_damping=1e-9, steps=60)
    assert squares(left(mine, inputs, goals)) < 1e-4 * squares(before)


@pytest.mark.parametrize("name", ["llama", "llama-biased"])
def test_nothing_missing_nothing_changed(name: str) -> None:
    _, mine, inputs = narrowed(name)
    before = {key: value.clone() for key, value in mine.module.state_dict().items()}
    refit_channels(mine, inputs, [torch.zeros_like(x) for x in inputs], damping=1e-1, output_damping=1e-2)
    for key, value in mine.module.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=1e-4, atol=1e-5)


def test_a_dead_mlp_is_no_obstacle() -> None:
    dense, mine, inputs = narrowed("llama")
    mine.down_proj.weight.data.zero_()
    mine.gate_proj.weight.data[0] = 0.0  # a channel that never opens
    refit_channels(mine, inputs, [dense.feed(x) for x in inputs], damping=1e-1, output_damping=1e-2)
    assert all(torch.isfinite(weight).all() for weight in mine.module.parameters())


@pytest.mark.parametrize("change", [1e4, torch.nan, torch.inf])
def test_a_step_that_leads_nowhere_is_dropped(change: float, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, mine, inputs = narrowed("llama")
    goals = [dense.feed(x) for x in inputs]
    before, gates, ups = left(mine, inputs, goals), mine.gate_proj.weight.clone(), mine.up_proj.weight.clone()
    monkeypatch.setattr(channels, "_step", lambda *_: torch.full((2 * len(gates), gates.shape[1]), change))
    refit_channels(mine, inputs, before, damping=1e-1, output_damping=1e-2)
    assert torch.equal(mine.gate_proj.weight, gates)
    assert torch.equal(mine.up_proj.weight, ups)
    assert squares(left(mine, inputs, goals)) <= squares(before)


def test_a_step_that_goes_too_far_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, mine, inputs = narrowed("llama")
    goals = [dense.feed(x) for x in inputs]
    before, ups, step = left(mine, inputs, goals), mine.up_proj.weight.clone(), channels._step
    taken: list[Tensor] = []

    def too_far(*given: Any) -> Tensor:
        taken.append(4.0 * step(*given))
        return taken[-1]

    monkeypatch.setattr(channels, "_step", too_far)
    refit_channels(mine, inputs, before, damping=1e-1, output_damping=1e-2, sweeps=1)
    moved = (mine.up_proj.weight - ups) / taken[0][: len(ups)]
    assert float(moved.median()) in (pytest.approx(0.5, rel=1e-3), pytest.approx(0.25, rel=1e-3))
    assert squares(left(mine, inputs, goals)) < squares(before)
