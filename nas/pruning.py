"""Prune the search space: drop the choices that no good subnet within the budget makes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nas.cost import Budget
from nas.proposals import Indices, fit
from nas.search import Predict
from nas.space import SearchSpace


@dataclass(frozen=True)
class Dropped:
    """A choice that was dropped, and the evidence: the best predicted score of a subnet that makes it,
    against the best of all. `best_with` is None if no subnet that makes it was found within the budget."""

    knob: str
    choice: int
    best_with: float | None
    best: float


def prune(
    space: SearchSpace,
    budget: Budget,
    predict: Predict,
    good: Indices,
    margin: float,
    rng: np.random.Generator,
    *,
    tries: int = 4,
) -> tuple[SearchSpace, list[Dropped]]:
    """The space without the choices whose best subnet is predicted worse than the best by over `margin`.

    Each choice is put into every one of the `good` architectures, the rest of which is then fitted to the
    budget around it, `tries` times; the best prediction of these is what the choice can do. All of them are
    predicted in one call. The best choice of a knob always stays.
    """
    rows, owner = [], []
    for knob, depth in enumerate(space.depths):
        for choice in range(int(depth)):
            forced = np.repeat(good, tries, axis=0)
            forced[:, knob] = choice
            rows.append(forced)
            owner += [(knob, choice)] * len(forced)
    owners = np.array(owner)
    fitted = fit(space, budget, np.concatenate(rows), rng, held=np.arange(len(space.depths)) == owners[:, :1])
    holds = fitted[np.arange(len(fitted)), owners[:, 0]] == owners[:, 1]
    scores = np.where(holds, predict(space.widths(fitted)), -np.inf)
    best = float(max(scores.max(), predict(space.widths(good)).max()))
    kept: dict[str, list[int]] = {}
    dropped: list[Dropped] = []
    for knob, name in enumerate(space.knobs):
        choices = space.choices[knob].tolist()
        reach = [float(scores[(owners == (knob, c)).all(1)].max()) for c in range(len(choices))]
        stay = [c for c, value in enumerate(reach) if value >= best - margin] or [int(np.argmax(reach))]
        kept[name] = [choices[c] for c in stay]
        dropped += [
            Dropped(name, choices[c], reach[c] if np.isfinite(reach[c]) else None, best)
            for c in range(len(choices))
            if c not in stay
        ]
    return space.restrict(kept), dropped
