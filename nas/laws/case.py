"""What the laws are held against: a tiny random parent, made once, and how logits are compared."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel, StaticCache

from nas.architecture import Architecture
from nas.calibration import Statistics, calibrate
from nas.families import Family, family_of, plain, shape_of
from nas.laws.cuts import CUTS, architecture_of_cut
from nas.laws.tiny import random_model, random_ranking, random_tokens
from nas.ranking import permute
from nas.repair.bank import Bank, repair_block
from nas.repair.stream import Stream
from nas.shape import Shape
from nas.subnet import cut

LENGTH = 12
"""Tokens of a text: more than a tiny parent's sliding windows hold."""
NARROWED = 20
"""Hidden channels that the narrower streams keep."""


@dataclass(frozen=True)
class Case:
    """A tiny parent of a configuration, and what is made of it, each when first asked for; all of it is
    shared by the laws, so they leave it as it is."""

    config: PreTrainedConfig
    device: str = "cpu"

    @cached_property
    def native(self) -> PreTrainedModel:
        """As its family builds it."""
        return random_model(self.config).to(self.device)

    @cached_property
    def parent(self) -> PreTrainedModel:
        """With plain projections."""
        return plain(copy.deepcopy(self.native))

    @cached_property
    def shape(self) -> Shape:
        """The parent's."""
        return shape_of(self.parent)

    @cached_property
    def permuted(self) -> PreTrainedModel:
        """The parent in the order of a random ranking."""
        return permute(self.parent, self.shape, random_ranking(self.shape))

    @property
    def family(self) -> Family:
        """What the parent allows."""
        return family_of(self.config)

    @cached_property
    def cuts(self) -> dict[str, Architecture]:
        """An architecture for each of `CUTS`."""
        return {kind: architecture_of_cut(kind, self.shape) for kind in CUTS}

    @cached_property
    def ids(self) -> Tensor:
        """Two texts, (2, LENGTH)."""
        return self.tokens(2)

    @cached_property
    def windows(self) -> Tensor:
        """Texts to calibrate on, (24, LENGTH)."""
        return self.tokens(24)

    def tokens(self, batch: int, length: int = LENGTH) -> Tensor:
        """Texts, (batch, length)."""
        return random_tokens(self.shape.vocab, length, batch).to(self.device)

    @cached_property
    def statistics(self) -> Statistics:
        """Of the permuted parent on the windows."""
        return calibrate(self.permuted, self.windows)

    @cached_property
    def bank(self) -> Bank:
        """Every repaired matrix that a cut of the permuted parent can ask for."""
        return whole_bank(self.permuted, self.shape, self.statistics)

    @cached_property
    def stream(self) -> Stream:
        """Of the permuted parent on the windows."""
        return Stream(self.permuted, self.windows)

    @cached_property
    def takes_static_cache(self) -> bool:
        """Whether the whole parent, as its family builds it, has its own logits with a static cache."""
        expected = logits_of(self.native, self.ids)
        try:
            found = decoded(self.native, self.ids, static_cache(self.native))
        except Exception:  # whatever the family's code raises where it cannot
            return False
        return bool(_far(found, expected).max() <= 0)

    def cut(self, kind: str, *, own: bool = False, hidden: int | None = None) -> PreTrainedModel:
        """The subnet of one of the `CUTS`."""
        architecture = self.cuts[kind]
        if hidden is not None:
            architecture = Architecture(hidden, architecture.blocks)
        return cut(self.permuted, self.shape, architecture, own=own)

    def other(self, **settings: Any) -> Case:
        """The case of the same configuration but for these settings."""
        config = copy.deepcopy(self.config)
        for name, value in settings.items():
            setattr(config, name, value)
        return Case(config, self.device)


def whole_bank(parent: PreTrainedModel, shape: Shape, statistics: Statistics) -> Bank:
    """Every entry that a cut of a tiny parent can ask for."""
    matrices: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    every = tuple(range(1, shape.kv_groups + 1))
    for block in range(shape.blocks):
        heads = {queries: every for queries in range(1, shape.queries_per_group + 1)}
        part = repair_block(parent, shape, statistics, block, heads, tuple(range(1, shape.ffn + 1)))
        matrices |= part.matrices
        errors |= part.errors
    return Bank(matrices, errors)


def logits_of(model: PreTrainedModel, ids: Tensor, **more: Any) -> Tensor:
    """(batch, length, vocabulary)."""
    found: Tensor = model(ids, **more).logits
    return found


def decoded(model: PreTrainedModel, ids: Tensor, cache: Cache, prefill: int = 3) -> Tensor:
    """Logits of a prefill and then one token after the other, (batch, length, vocabulary)."""
    steps = [logits_of(model, ids[:, :prefill], past_key_values=cache, use_cache=True)]
    for position in range(prefill, ids.shape[1]):
        token = ids[:, position : position + 1]
        steps.append(logits_of(model, token, past_key_values=cache, use_cache=True))
    return torch.cat(steps, 1)


def static_cache(model: PreTrainedModel) -> Cache:
    """With room for one text."""
    return StaticCache(config=model.config, max_cache_len=LENGTH)


def dynamic_cache(model: PreTrainedModel) -> Cache:
    """As the model's configuration asks for."""
    return DynamicCache(config=model.config)


def check_same(found: Tensor, expected: Tensor, what: str) -> None:
    """Raise AssertionError unless both are equal up to the rounding of another order of summation."""
    assert found.shape == expected.shape, f"{what} have shape {(*found.shape,)}, not {(*expected.shape,)}"
    far = _far(found, expected)
    largest = float((found - expected).abs().max())
    assert bool((far <= 0).all()), (
        f"{what} are off by up to {largest:.3g} in {int((~(far <= 0)).sum())} of {far.numel()} places, "
        f"beside values up to {float(expected.abs().max()):.3g}"
    )


def check_equal(found: Tensor, expected: Tensor, what: str) -> None:
    """Raise AssertionError unless both are the same bit for bit."""
    if not torch.equal(found, expected):
        far = float((found.double() - expected.double()).abs().max()) if found.shape == expected.shape else 0
        raise AssertionError(
            f"{what} are not the same bit for bit: off by up to {far:.3g}, shapes {(*found.shape,)} and "
            f"{(*expected.shape,)}"
        )


def check_mattered(found: Tensor, whole: Tensor, what: str) -> None:
    """Raise AssertionError if what was dropped hardly changes the logits: then it proves nothing."""
    moved = float((found - whole).std() / found.std())
    assert moved > 0.2, (
        f"{what} moves the logits by {moved:.3f} of their spread only, so that nothing is proved; make the "
        "weights of the tiny parent larger"
    )


def _far(found: Tensor, expected: Tensor) -> Tensor:
    """How much further off than rounding explains, (...,): at most 0 is the same."""
    allowed = 1e-4 * expected.abs() + 2e-5 * expected.abs().max()
    return (found - expected).abs() - allowed
