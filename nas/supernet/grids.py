"""Which subnets a super-network is trained for: grids over the sizes, by name.

The calibrated grid of arXiv 2410.06479 splits the sizes into equal bins and keeps the best of several random
subnets of each. Its scripts wait for ever for a bin that no subnet falls into; here tries are
bounded, and the bins that stayed empty are named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data.errors import InputError
from nas.architecture import Architecture
from nas.supernet.space import UniformSpace

Measure = Callable[[Architecture], float]


@dataclass(frozen=True)
class Grid:
    """Subnets by size, the smallest and the largest of the space first and last; `unreached` are the
    bins, from one size to the next, that no draw fell into."""

    architectures: tuple[Architecture, ...]
    unreached: tuple[tuple[float, float], ...] = ()

    @property
    def smallest(self) -> Architecture:
        """The smallest of the space."""
        return self.architectures[0]


def calibrated(
    space: UniformSpace, size: Measure, score: Measure, bins: int, draws: int, rng: np.random.Generator
) -> Grid:
    """In each of `bins` equal bins of size the best by `score` (larger is better) of `draws` random ones."""
    chosen, unreached = [], []
    for members, bin in _binned(space, size, bins, draws, rng):
        if members:
            chosen.append(max(members, key=score))
        else:
            unreached.append(bin)
    return _grid(space, size, chosen, unreached)


def first_hits(
    space: UniformSpace, size: Measure, score: Measure, bins: int, draws: int, rng: np.random.Generator
) -> Grid:
    """The first random one in each bin ("params grid"); nothing is scored."""
    found = list(_binned(space, size, bins, 1, rng))
    return _grid(space, size, [m[0] for m, _ in found if m], [bin for m, bin in found if not m])


def diagonal(
    space: UniformSpace, size: Measure, score: Measure, bins: int, draws: int, rng: np.random.Generator
) -> Grid:
    """All knobs scaled together, in as many steps as there are bins; nothing is scored."""
    return _grid(space, size, [space.at(part) for part in np.linspace(0.0, 1.0, bins + 2)], [])


def uniform(
    space: UniformSpace, size: Measure, score: Measure, bins: int, draws: int, rng: np.random.Generator
) -> Grid:
    """`bins` times `draws` subnets with every knob drawn evenly; nothing is scored."""
    return _grid(space, size, [space.sample(rng) for _ in range(bins * draws)], [])


GRIDS: dict[str, Callable[[UniformSpace, Measure, Measure, int, int, np.random.Generator], Grid]] = {
    "calibrated": calibrated,
    "params": first_hits,
    "diagonal": diagonal,
    "uniform": uniform,
}
"""By name; all take the space, the size and the score of a subnet, bins, draws a bin, and randomness."""

TRIES = 1000
"""Draws by rejection that a bin gets, as in the scripts."""


def _binned(
    space: UniformSpace, size: Measure, bins: int, draws: int, rng: np.random.Generator
) -> list[tuple[list[Architecture], tuple[float, float]]]:
    """Up to `draws` distinct random subnets of each bin, with the bin, within `TRIES` draws a bin."""
    if bins < 1 or draws < 1:
        raise InputError(f"a grid of {bins} bins with {draws} draws each holds nothing; give 1 or more")
    edges = np.linspace(size(space.smallest), size(space.largest), bins + 1)
    members: list[dict[Architecture, None]] = [{} for _ in range(bins)]
    for _ in range(TRIES * bins):  # a draw counts in the bin that it falls into: none is thrown away
        drawn = space.sample(rng)
        place = min(bins - 1, max(0, int(np.searchsorted(edges, size(drawn), side="right")) - 1))
        if len(members[place]) < draws:
            members[place][drawn] = None
            if all(len(each) == draws for each in members):
                break
    return [(list(each), (float(edges[i]), float(edges[i + 1]))) for i, each in enumerate(members)]


def _grid(
    space: UniformSpace, size: Measure, chosen: list[Architecture], unreached: list[tuple[float, float]]
) -> Grid:
    """Each once, by size, with both ends of the space."""
    inner = sorted({*chosen} - {space.smallest, space.largest}, key=lambda each: (size(each), each))
    ends = dict.fromkeys((space.smallest, *inner, space.largest))
    return Grid(tuple(ends), tuple(unreached))
