"""Rounds of exploration: fit the predictor, prune the space, search it, really evaluate the best, repeat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from data.errors import InputError
from nas.building import Build, Estimate, table
from nas.cost import Budget
from nas.damage import DamagePredictor
from nas.encoding import Encoding
from nas.pairs import Pair
from nas.proposals import Indices
from nas.pruning import Dropped, prune
from nas.search import Predict, search, spread_out
from nas.space import SearchSpace
from predictors.protocol import Predictor


@dataclass(frozen=True)
class Round:
    """What one round did. `pairs` are those measured in full so far, `estimates` the others; `predicted_best`
    and `measured_best` are of its own proposals, `best_score` of all pairs so far; `choices_left` counts the
    choices of the pruned space over all knobs."""

    round: int
    pairs: int
    estimates: int
    best_score: float
    predicted_best: float
    measured_best: float
    choices_left: int
    proposals: int
    seconds: float


@dataclass(frozen=True)
class Explored:
    """All pairs (the first ones and every round's), estimates of what was not measured in full, the rounds,
    the space as last pruned with the choices dropped by round, and the predictor fitted on all of them."""

    predict: Predict
    pairs: list[Pair]
    estimates: list[Estimate]
    rounds: list[Round]
    space: SearchSpace
    dropped: list[tuple[int, Dropped]]


def explore(
    space: SearchSpace,
    budget: Budget,
    encoding: Encoding,
    make: Callable[[], Predictor],
    build: Build,
    first: Indices,
    *,
    reference: float,
    total: int,
    rounds: int,
    trials: int,
    seed: int,
    searcher: str = "nsga2",
    pruning: bool = True,
) -> Explored:
    """Build pairs of the `first` architectures, then spend the rest of `total` architectures over `rounds`.

    Each round depends on the pairs of the rounds before it and on the seed alone, so that an interrupted run
    proposes the same again and measures only what is missing. `reference` is the parent's score. Raises
    `InputError` where the budget leaves next to nothing to choose from. Without `pruning` every round
    searches the whole space.
    """
    shape = space.shape
    known, guessed = build(space.widths(first), "start")
    if len(known) + len(guessed) < 2:
        raise InputError(
            f"within the budget there is {len(known) + len(guessed)} architecture to begin with, and a "
            "search takes 2 or more; relax the budget"
        )
    log: list[Round] = []
    gone: list[tuple[int, Dropped]] = []
    pruned = space
    for number in range(1, rounds + 1):
        start = perf_counter()
        count = (total - len(known) - len(guessed)) // (rounds - number + 1)
        if count < 1:
            break
        rng = np.random.default_rng([seed, number])
        widths, scores = table([*known, *guessed], shape)
        predict = fit_predictor(make(), encoding, [*known, *guessed], reference)

        best = widths[np.argsort(-scores, kind="stable")]
        if pruning:
            pruned, dropped = prune(
                space, budget, predict, space.indices(best[:12]), margin(known, reference), rng
            )
            gone += [(number, item) for item in dropped]
        found = search(
            pruned, budget, predict,
            starts=pruned.indices(best[:30]), seed=int(rng.integers(2**31)), trials=trials, searcher=searcher,
        )  # fmt: skip
        taken = {row.tobytes() for row in widths}
        chosen = pruned.widths(spread_out(pruned, found, count, taken))
        searched = perf_counter() - start
        new, stopped = build(chosen, f"round {number}") if len(chosen) else ([], [])
        known, guessed = known + new, guessed + stopped
        log.append(
            Round(
                round=number,
                pairs=len(known),
                estimates=len(guessed),
                best_score=max(pair.score for pair in known),
                predicted_best=float(predict(chosen).max()) if len(chosen) else float("nan"),
                measured_best=max((pair.score for pair in new), default=float("nan")),
                choices_left=int(pruned.depths.sum()),
                proposals=found.proposals,
                seconds=searched,
            )
        )
    predict = fit_predictor(make(), encoding, [*known, *guessed], reference)
    return Explored(predict, known, guessed, log, pruned, gone)


def fit_predictor(
    predictor: Predictor, encoding: Encoding, known: Sequence[Pair | Estimate], reference: float
) -> Predict:
    """A function from widths to predicted scores, learned from pairs and from estimates."""
    widths, scores = table(known, encoding.cost.shape)
    fitted = DamagePredictor(predictor, reference, encoding.errors).fit(encoding(widths), scores)
    return lambda rows: fitted.predict(encoding(rows))


def margin(known: list[Pair], reference: float) -> float:
    """How much worse than the best a choice may be predicted before it is dropped: half of the best damage,
    which no predictor error near the optimum has come close to."""
    return 0.5 * max(reference - max(pair.score for pair in known), 1e-3)
