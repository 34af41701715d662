"""Which subnets a training step passes through: strategies by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nas.architecture import Architecture
from nas.supernet.grids import Grid


@dataclass(frozen=True)
class Pass:
    """A forward and a backward pass of a step: through the whole super-network (None) or a subnet, on
    the text or, `distilled`, towards what the whole super-network said of the same text in the same step."""

    architecture: Architecture | None = None
    distilled: bool = False


@dataclass(frozen=True)
class Sandwich:
    """What a sandwich holds besides the whole super-network: random subnets, and the smallest."""

    random: int = 2
    smallest: bool = True


Strategy = Callable[[Grid, float, int, Sandwich, np.random.Generator], list[Pass]]
"""From the grid, how far training is (0 to 1), the step's number, and randomness to the step's passes."""


def standard(
    grid: Grid, progress: float, step: int, sandwich: Sandwich, rng: np.random.Generator
) -> list[Pass]:
    """The whole super-network, always."""
    return [Pass()]


def random(
    grid: Grid, progress: float, step: int, sandwich: Sandwich, rng: np.random.Generator
) -> list[Pass]:
    """One random subnet."""
    return [Pass(_draw(grid, rng))]


def random_linear(
    grid: Grid, progress: float, step: int, sandwich: Sandwich, rng: np.random.Generator
) -> list[Pass]:
    """A random subnet with a probability that rises linearly from 0 to 1, else the whole."""
    return [Pass(_draw(grid, rng) if rng.random() < progress else None)]


def alternating(
    grid: Grid, progress: float, step: int, sandwich: Sandwich, rng: np.random.Generator
) -> list[Pass]:
    """The whole and a random subnet in turn (ATS)."""
    return [Pass(_draw(grid, rng) if step % 2 else None)]


def plain_sandwich(
    grid: Grid, progress: float, step: int, sandwich: Sandwich, rng: np.random.Generator
) -> list[Pass]:
    """The whole, random ones and the smallest, all on the text (Yu & Huang, arXiv 1903.05134)."""
    return [Pass(), *(Pass(each) for each in _filling(grid, sandwich, rng))]


def distilled_sandwich(
    grid: Grid, progress: float, step: int, sandwich: Sandwich, rng: np.random.Generator
) -> list[Pass]:
    """The whole on the text, and the others towards it: in-place distillation."""
    return [Pass(), *(Pass(each, distilled=True) for each in _filling(grid, sandwich, rng))]


STRATEGIES: dict[str, Strategy] = {
    "standard": standard,
    "random": random,
    "random-linear": random_linear,
    "ats": alternating,
    "sandwich": plain_sandwich,
    "sandwich-kd": distilled_sandwich,
}
"""By the names of arXiv 2410.06479's scripts."""


def _draw(grid: Grid, rng: np.random.Generator) -> Architecture:
    return grid.architectures[int(rng.integers(len(grid.architectures)))]


def _filling(grid: Grid, sandwich: Sandwich, rng: np.random.Generator) -> list[Architecture]:
    chosen = [_draw(grid, rng) for _ in range(sandwich.random)]
    return [*chosen, grid.smallest] if sandwich.smallest else chosen
