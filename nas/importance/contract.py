"""The promises that every importance criterion keeps, as functions that run it on a tiny parent.

In a notebook: `check_criterion(my_criterion)`. In the tests: every check on every criterion. A broken promise
raises AssertionError with what to mend.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, replace

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from nas.evidence import Evidence
from nas.families import MLP, layers_of, shape_of
from nas.importance.criterion import Criterion
from nas.importance.scores import UnitScores

BLOCKS, GROUPS, QUERIES, FFN, VOCABULARY = 2, 2, 3, 20, 37


def check_shapes(criterion: Criterion) -> None:
    """(G,), (G, Q) and (P,) scores in float64, with fewer KV groups than query heads."""
    evidence = tiny_evidence()
    shape = evidence.shape
    expected = {
        "groups": (shape.kv_groups,),
        "queries": (shape.kv_groups, shape.queries_per_group),
        "channels": (shape.ffn,),
    }
    for block in range(shape.blocks):
        scores = criterion(evidence, block)
        for kind, size in expected.items():
            found = getattr(scores, kind)
            assert tuple(found.shape) == size, f"{kind} have shape {tuple(found.shape)}; return {size}"
            assert found.dtype == torch.float64, f"{kind} are {found.dtype}; return float64"


def check_finite(criterion: Criterion) -> None:
    """No score is NaN or infinite, not even of units that never speak."""
    evidence = tiny_evidence()
    with torch.no_grad():
        layer = layers_of(evidence.parent)[0]
        layer.up_proj.weight.zero_()
        layer.o_proj.weight.zero_()
    scores = criterion(evidence, 0)
    for kind, values in _parts(scores).items():
        assert torch.isfinite(values).all(), f"{kind} of dead modules are {values}; give them finite scores"


def check_deterministic(criterion: Criterion) -> None:
    """The same evidence, the same scores, whatever the global random numbers."""
    torch.manual_seed(1)
    first = criterion(tiny_evidence(), 1)
    torch.manual_seed(2)
    second = criterion(tiny_evidence(), 1)
    for kind, values in _parts(first).items():
        assert torch.equal(values, _parts(second)[kind]), (
            f"{kind} differ between two calls; seed what is random"
        )


def check_parent_untouched(criterion: Criterion) -> None:
    """Weights, gradients, hooks and modes of the parent are as they were."""
    evidence = tiny_evidence()
    before = copy.deepcopy(evidence.parent.state_dict())
    wanting = [p.requires_grad for p in evidence.parent.parameters()]
    criterion(evidence, 0)
    after = evidence.parent.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items()), (
        "the parent's weights changed"
    )
    assert all(p.grad is None for p in evidence.parent.parameters()), "gradients were left in the parent"
    assert [p.requires_grad for p in evidence.parent.parameters()] == wanting, "requires_grad was changed"
    assert not evidence.parent.training, "the parent was left in training mode"
    left = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in evidence.parent.modules())
    assert left == 0, f"{left} hooks were left in the parent; remove them in a `finally`"


def check_follows_units(criterion: Criterion) -> None:
    """A parent with its FFN channels in another order has the same scores in that order, unless the
    criterion looks at nothing at all."""
    evidence = tiny_evidence()
    order = torch.randperm(FFN, generator=torch.Generator().manual_seed(3))
    moved = copy.deepcopy(evidence.parent)
    for layer in layers_of(moved):
        for linear in layer.inputs(MLP):
            linear.weight.data = linear.weight.data[order]
        layer.down_proj.weight.data = layer.down_proj.weight.data[:, order]
    here = criterion(evidence, 1).channels
    there = criterion(replace(evidence, parent=moved), 1).channels
    if torch.equal(here, there):
        return  # blind to the parent, like a random order
    assert _close(here[order], there), "scores of reordered channels are not the reordered scores"


def check_rescaling(criterion: Criterion) -> None:
    """Where `invariant` is said: a channel's output column times 3 and its row of up_proj divided by 3, a
    head's columns of o_proj times 3 and its rows of v_proj divided by 3, leave all scores as they are; where
    it is not said, they do not."""
    evidence = tiny_evidence(queries=1)
    scaled = copy.deepcopy(evidence.parent)
    width = evidence.shape.head_dim
    for layer in layers_of(scaled):
        layer.up_proj.weight.data[4] /= 3
        layer.down_proj.weight.data[:, 4] *= 3
        layer.v_proj.weight.data[:width] /= 3
        layer.o_proj.weight.data[:, :width] *= 3
    here = _parts(criterion(evidence, 1))
    there = _parts(criterion(replace(evidence, parent=scaled), 1))
    same = all(_close(values, there[kind]) for kind, values in here.items())
    assert same == criterion.invariant, (
        f"scores {'stay' if same else 'change'} when units are rescaled without effect, and the criterion "
        f"says invariant={criterion.invariant}"
    )


CHECKS: dict[str, Callable[[Criterion], None]] = {
    "shapes": check_shapes,
    "finite": check_finite,
    "deterministic": check_deterministic,
    "parent untouched": check_parent_untouched,
    "follows units": check_follows_units,
    "rescaling": check_rescaling,
}


def check_criterion(criterion: Criterion) -> None:
    """Run every check; the first broken promise raises AssertionError."""
    for check in CHECKS.values():
        check(criterion)


def tiny_evidence(queries: int = QUERIES) -> Evidence:
    """A random LLaMA of two blocks with grouped queries, and eight windows for it."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=FFN,
        num_hidden_layers=BLOCKS,
        num_attention_heads=GROUPS * queries,
        num_key_value_heads=GROUPS,
        head_dim=4,
        pad_token_id=None,
        attention_bias=False,
    )
    draw = torch.Generator().manual_seed(0)
    parent = LlamaForCausalLM(config).eval().requires_grad_(False)
    with torch.no_grad():
        for weight in parent.parameters():
            noise = torch.randn(weight.shape, generator=draw)
            weight.copy_(noise * 1.5 / weight.shape[1] ** 0.5 if weight.dim() == 2 else 1.0 + 0.3 * noise)
    windows = torch.randint(0, VOCABULARY, (8, 10), generator=draw)
    return Evidence(parent, shape_of(parent), windows, batch_size=4)


def _parts(scores: UnitScores) -> dict[str, Tensor]:
    return {field.name: getattr(scores, field.name) for field in fields(scores)}


def _close(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-3, atol=1e-6 * float(first.abs().max()))
