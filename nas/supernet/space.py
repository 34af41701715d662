"""The space of subnets that are the same in every block: hidden width, KV groups, FFN width, depth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from data.errors import InputError
from nas.architecture import Architecture, Block
from nas.shape import Shape

KNOBS = ("hidden", "kv_groups", "ffn", "depth")


@dataclass(frozen=True)
class UniformSpace:
    """Ascending choices of each knob over a parent in order; `order` holds its blocks, the last to go first.

    The joint space of arXiv 2410.06479, with the FFN width a knob of its own and heads kept whole: a prefix
    of a head would tear its rotary pairs apart. All queries of a kept group stay.
    """

    shape: Shape
    order: tuple[int, ...]
    knobs: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(self.shape.blocks)):
            raise InputError(f"an order of {self.shape.blocks} blocks is {self.order}; name each once")
        if tuple(self.knobs) != KNOBS:
            raise InputError(f"the space has knobs {', '.join(self.knobs)}; give {', '.join(KNOBS)}")
        for name, choices in self.knobs.items():
            if not choices or list(choices) != sorted(set(choices)) or choices[0] < 1:
                raise InputError(f"knob {name} has choices {choices}; give ascending, positive ones")

    def build(self, choice: Mapping[str, int]) -> Architecture:
        """The subnet of these values of the knobs: the first of everything, alike in all its blocks."""
        kept = sorted(self.order[: choice["depth"]])
        widths = (choice["kv_groups"], self.shape.queries_per_group, choice["ffn"])
        return Architecture(choice["hidden"], tuple(Block(source, *widths) for source in kept))

    def choice_of(self, architecture: Architecture) -> dict[str, int]:
        """The values that `build` makes this of."""
        first = architecture.blocks[0]
        values = (architecture.hidden, first.kv_groups, first.ffn, len(architecture.blocks))
        return dict(zip(KNOBS, values, strict=True))

    def sample(self, rng: np.random.Generator) -> Architecture:
        """Every knob drawn evenly and alone."""
        return self.build({name: int(rng.choice(choices)) for name, choices in self.knobs.items()})

    def at(self, part: float) -> Architecture:
        """All knobs this part of the way from their first to their last choice, 0 to 1."""
        return self.build(
            {name: choices[round(part * (len(choices) - 1))] for name, choices in self.knobs.items()}
        )

    def all(self) -> Iterator[Architecture]:
        """Every subnet once."""
        for values in product(*self.knobs.values()):
            yield self.build(dict(zip(KNOBS, values, strict=True)))

    @property
    def smallest(self) -> Architecture:
        """The first choice of every knob."""
        return self.at(0.0)

    @property
    def largest(self) -> Architecture:
        """The last choice of every knob."""
        return self.at(1.0)

    @cached_property
    def size(self) -> int:
        """How many subnets there are."""
        return math.prod(len(choices) for choices in self.knobs.values())


def uniform_space(
    shape: Shape, order: tuple[int, ...], *, floor: float = 0.5, fixed_hidden: bool = False
) -> UniformSpace:
    """From `floor` of each width up to the whole, in steps that hardware likes; every depth from `floor` up.

    Steps are the largest power of two within an eighth of the parent's width: 32 of 256, 512 of 4096.
    Raises `InputError` for a floor that is none.
    """
    if not 0 < floor <= 1:
        raise InputError(f"the smallest share of each width is {floor}; give more than 0 and at most 1")

    def steps(whole: int) -> tuple[int, ...]:
        step = 1 << max(0, math.floor(math.log2(whole / 8)))
        least = -(-math.ceil(floor * whole) // step) * step
        return tuple(sorted({*range(least, whole, step), whole}))

    return UniformSpace(
        shape,
        order,
        {
            "hidden": (shape.hidden,) if fixed_hidden else steps(shape.hidden),
            "kv_groups": (shape.kv_groups,) if shape.whole_attention else steps(shape.kv_groups),
            "ffn": tuple(width for width in steps(shape.ffn) if width >= shape.experts_per_token),
            "depth": tuple(range(math.ceil(floor * shape.blocks), shape.blocks + 1)),
        },
    )
