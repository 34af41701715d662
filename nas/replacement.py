"""One-block replacement: the parent with one module at another choice, and scores summed over modules.

The surrogate of additive methods (Puzzletron, arXiv 2411.19146, section 3; CLADO and others before it): what
a subnet loses is taken for the sum of what its modules lose one at a time. It needs a pair for every choice
of every module, and is blind to how modules compound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from nas.pairs import Pair
from nas.shape import Shape, Widths, widths_of
from nas.space import SearchSpace
from predictors.protocol import Features, Scores


def replaced(space: SearchSpace) -> tuple[Widths, NDArray[np.int64]]:
    """The parent with one module at each of its choices, the whole one among them: (n, blocks, 3), and which
    module that is (n,), 2 * block for an attention and 2 * block + 1 for an MLP."""
    shape = space.shape
    whole = shape.whole
    rows, modules = [], []
    for block in range(shape.blocks):
        groups, queries, ffn = space.choices[3 * block : 3 * block + 3]
        heads = [(g, q) for g in groups.tolist() for q in (queries.tolist() if g else [0])]
        for part, choices, module in ((slice(0, 2), heads, 0), (slice(2, 3), ffn.tolist(), 1)):
            for choice in choices:
                row = whole.copy()
                row[block, part] = choice
                rows.append(row)
                modules.append(2 * block + module)
    return np.stack(rows), np.array(modules)


def replacements(space: SearchSpace) -> Widths:
    """The parent with one attention or one MLP at each of its other choices: (n, blocks, 3)."""
    shape = space.shape
    rows, _ = replaced(space)
    differs = (rows != [shape.kv_groups, shape.queries_per_group, shape.ffn]).any((1, 2))
    return rows[differs & (rows[..., 0] > 0).any(1)]


@dataclass(frozen=True)
class ModuleDamage:
    """What each choice of each module costs alone, in the units of the score: attention (blocks, G + 1,
    Q + 1) and MLP (blocks, P + 1), 0 for whole modules and NaN where it was not measured."""

    attention: NDArray[np.float64]
    mlp: NDArray[np.float64]

    def __call__(self, widths: Widths) -> NDArray[np.float64]:
        """The sums (n,) over the modules of widths (n, blocks, 3)."""
        block = np.arange(widths.shape[1])
        groups, queries, ffn = np.moveaxis(widths, -1, 0)
        total: NDArray[np.float64] = (self.attention[block, groups, queries] + self.mlp[block, ffn]).sum(1)
        return total


@dataclass(frozen=True)
class ReplacementPredictor:
    """Scores from the damage of single replacements, as a predictor over rows of widths (n, blocks * 3) that
    has nothing left to learn. `reference` is the parent's score."""

    damage: ModuleDamage
    reference: float

    def fit(self, X: Features, y: Scores) -> Self:
        """Nothing: what is summed was measured before."""
        return self

    def predict(self, X: Features) -> Scores:
        """(n,) scores."""
        scores: Scores = self.reference - self.damage(X.astype(np.int64).reshape(len(X), -1, 3))
        return scores


def module_damage(pairs: Sequence[Pair], shape: Shape, reference: float) -> ModuleDamage:
    """The damage of every single replacement among the pairs; other pairs are passed over. `reference` is
    the parent's score. Raises `InputError` where there is no single replacement at all."""
    attention = np.full((shape.blocks, shape.kv_groups + 1, shape.queries_per_group + 1), np.nan)
    mlp = np.full((shape.blocks, shape.ffn + 1), np.nan)
    attention[:, -1, -1] = mlp[:, -1] = 0.0
    whole = np.array([shape.kv_groups, shape.queries_per_group, shape.ffn])
    found = 0
    for pair in pairs:
        widths = widths_of(pair.architecture, shape)
        heads, channels = (widths[:, :2] != whole[:2]).any(1), widths[:, 2] != whole[2]
        if heads.sum() + channels.sum() != 1:
            continue
        found += 1
        block = int(np.argmax(heads | channels))
        if heads[block]:
            attention[block, widths[block, 0], widths[block, 1]] = reference - pair.score
        else:
            mlp[block, widths[block, 2]] = reference - pair.score
    if not found:
        raise InputError(
            f"none of the {len(pairs)} pairs replaces a single module; build such with "
            "experiments.build_pairs --kind replaced"
        )
    return ModuleDamage(attention, mlp)
