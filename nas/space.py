"""The search space: which choices each block has, and how architectures are encoded for predictors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from nas.architecture import Architecture
from nas.shape import Shape, Widths, architecture_of, widths_of

KINDS = ("kv_groups", "queries_per_group", "ffn")
"""What a knob sets in its block, in the order of the last axis of `Widths`."""


@dataclass(frozen=True)
class SearchSpace:
    """Ordered knobs, each with its ascending choices, over the blocks of one parent.

    A knob is named `BLOCK.KIND` (`KINDS`); 0 KV groups skip the attention, 0 FFN channels the MLP, both the
    block.
    """

    shape: Shape
    knobs: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        expected = [f"{block}.{kind}" for block in range(self.shape.blocks) for kind in KINDS]
        if list(self.knobs) != expected:
            raise InputError(
                f"a space over {self.shape.blocks} blocks has {len(expected)} knobs BLOCK.KIND in order"
            )
        for name, choices in self.knobs.items():
            if not choices or list(choices) != sorted(set(choices)):
                raise InputError(f"knob {name} has choices {choices}; give ascending, distinct ones")

    @cached_property
    def choices(self) -> list[NDArray[np.int64]]:
        """Choices by knob, in knob order."""
        return [np.asarray(c, dtype=np.int64) for c in self.knobs.values()]

    @property
    def size(self) -> float:
        """How many knob settings there are (not all spell different architectures)."""
        return float(np.prod([len(c) for c in self.choices], dtype=float))

    @cached_property
    def depths(self) -> NDArray[np.int64]:
        """How many choices each knob has, (knobs,)."""
        return np.array([len(c) for c in self.choices], dtype=np.int64)

    @cached_property
    def _table(self) -> NDArray[np.int64]:
        """Choices by knob, (knobs, most choices), filled up with the largest."""
        most = int(self.depths.max())
        return np.stack([np.pad(choices, (0, most - len(choices)), mode="edge") for choices in self.choices])

    def widths(self, indices: NDArray[np.int64]) -> Widths:
        """Choice indices (n, knobs) -> canonical widths (n, blocks, 3)."""
        values = self._table[np.arange(len(self.choices)), indices]
        return self.canonical(values.reshape(len(indices), self.shape.blocks, 3))

    def indices(self, widths: Widths) -> NDArray[np.int64]:
        """Nearest choice indices (n, knobs) of widths (n, blocks, 3), rounding down."""
        flat = widths.reshape(len(widths), len(self.choices))
        columns = [
            np.clip(np.searchsorted(choices, flat[:, k], side="right") - 1, 0, None)
            for k, choices in enumerate(self.choices)
        ]
        return np.stack(columns, axis=1).astype(np.int64)

    def contains(self, widths: Widths) -> NDArray[np.bool_]:
        """Whether every kept part has a listed choice, (..., blocks, 3) -> (...,)."""
        flat = widths.reshape(*widths.shape[:-2], len(self.choices))
        inside = np.ones(flat.shape[:-1], dtype=bool)
        for column, choices in enumerate(self.choices):
            inside &= np.isin(flat[..., column], choices) | (
                (column % 3 == 1) & (flat[..., column] == 0) & (flat[..., column - 1] == 0)
            )
        return inside

    def canonical(self, widths: Widths) -> Widths:
        """One spelling per architecture: no queries where there are no KV groups."""
        result = widths.copy()
        result[..., 1] = np.where(result[..., 0] == 0, 0, result[..., 1])
        return result

    def build(self, choice: Mapping[str, int]) -> Architecture:
        """The architecture of a knob setting; `InputError` if a value is not among a knob's choices."""
        for name, choices in self.knobs.items():
            if choice[name] not in choices:
                raise InputError(f"{name}={choice[name]} is not in the space; choose from {choices}")
        widths = np.array([choice[name] for name in self.knobs], dtype=np.int64).reshape(-1, 3)
        return architecture_of(self.canonical(widths), self.shape)

    def choice_of(self, architecture: Architecture) -> dict[str, int]:
        """The canonical knob setting of an architecture: skipped attention names its first queries choice."""
        widths = widths_of(architecture, self.shape)
        if not self.contains(widths):
            raise InputError(f"architecture {architecture.digest} uses choices outside the space")
        values = widths.ravel().tolist()
        return {
            name: self.knobs[name][0] if name.endswith("queries_per_group") and value == 0 else value
            for name, value in zip(self.knobs, values, strict=True)
        }

    def restrict(self, kept: Mapping[str, Sequence[int]]) -> SearchSpace:
        """The space with fewer choices for some knobs."""
        knobs = {name: tuple(sorted(kept.get(name, choices))) for name, choices in self.knobs.items()}
        return SearchSpace(self.shape, knobs)


def default_space(shape: Shape, steps: int = 32) -> SearchSpace:
    """Every KV group count, every queries-per-group count that is a power of two or full, FFN on a grid.

    The FFN grid steps by the largest power of two that gives at least `steps` choices, and holds the full
    width; 0 skips a module. Of experts there are at least as many as a token visits; attentions that
    cannot be cut (`Shape.whole_attention`) are whole or skipped.
    """
    step = 1
    while shape.ffn // (step * 2) >= steps:
        step *= 2
    least = max(step, shape.experts_per_token)
    ffn = tuple(sorted({0, least, *range(step, shape.ffn + 1, step), shape.ffn} - {*range(1, least)}))
    groups = (0, shape.kv_groups) if shape.whole_attention else tuple(range(shape.kv_groups + 1))
    queries = tuple(
        sorted(
            {2**i for i in range(shape.queries_per_group.bit_length()) if 2**i <= shape.queries_per_group}
            | {shape.queries_per_group}
        )
    )
    if shape.whole_attention:
        queries = (shape.queries_per_group,)
    knobs: dict[str, tuple[int, ...]] = {}
    for block in range(shape.blocks):
        knobs[f"{block}.kv_groups"] = groups
        knobs[f"{block}.queries_per_group"] = queries
        knobs[f"{block}.ffn"] = ffn
    return SearchSpace(shape, knobs)
