"""Successive halving: all architectures see a few windows, the better ones more, and only the best see all.

Full evaluation spends most of its tokens on subnets that a fraction of the windows rules out (Jamieson and
Talwalkar 2016, arXiv 1502.07943; over tokens, as here, Sieberling et al. 2024, arXiv 2410.14649). The windows
are cut into parts that have none in common. A rung adds a part: who is promoted sees only what it has not
seen before, and who comes to the last rung has the score of a full evaluation.

The first parts are studies of their own in the pair store, with claims like any other; the study of the
setting itself holds only what was measured in full. Promotions depend on stored scores alone, so that all
workers promote the same, and a run that was interrupted goes on where it stopped. The promoted are those of
the least divergence from the parent, where it is measured: on few windows it tells more than the loss does,
since it compares whole distributions and not the probability of one token (docs/less-work.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nas.architecture import Architecture
from nas.building import Estimate, Measure, check_allowed, measure_each
from nas.cost import Budget
from nas.evaluate import Scores
from nas.pairs import Pair, Pairs, Setting
from nas.shape import Shape, Widths, architecture_of, widths_of

SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Of the windows, seen by those who come to each rung; rising to 1."""
KEPT = 1 / 2
"""Of the architectures of a rung, promoted to the next."""

Seen = Mapping[Architecture, Scores]


@dataclass(frozen=True)
class Rung:
    """A part of the windows: where scores on it are stored, what measures them, and the parent's own.

    `pairs` of the last rung hold scores on all windows, those of the others on their part alone.
    """

    pairs: Pairs
    measure: Measure
    parent: Scores


@dataclass(frozen=True)
class Halving:
    """Builds pairs by successive halving within a budget; called as `explore` wants it."""

    rungs: Sequence[Rung]
    shape: Shape
    budget: Budget
    kept: float = KEPT
    quiet: bool = False

    def __call__(self, rows: Widths, origin: str) -> tuple[list[Pair], list[Estimate]]:
        """Those of these architectures (n, blocks, 3) that came to the last rung, in the given order, and
        estimates of the others; what could not be measured is in neither.

        Every rung promotes the best by all that was seen so far (`early`), ties by digest, and more of them
        where some fail. Nothing over budget is evaluated, as in `build_pairs`.
        """
        check_allowed(self.budget, rows)
        given = list(dict.fromkeys(architecture_of(row, self.shape) for row in rows))
        reached: list[Seen] = []
        candidates, lost, pairs = given, set[Architecture](), dict[Architecture, Pair]()
        for number, rung in enumerate(self.rungs):
            before = reached[-1] if reached else {}
            last = number == len(self.rungs) - 1
            pairs, tried = self._promote(
                rung, candidates, math.ceil(len(given) * self.kept**number),
                origin if last else f"{origin}, part {number + 1} of {len(self.rungs)}",
                before if last else {},
            )  # fmt: skip
            lost |= set(tried) - pairs.keys()
            tokens = sum(each.parent.tokens for each in (self.rungs if last else [rung]))
            found = {each: stored(pair, tokens) for each, pair in pairs.items()}
            reached.append(found if last else {each: joined(before.get(each), found[each]) for each in found})
            candidates = sorted(found, key=lambda each: (early(reached[-1][each]), each.digest))
        left = [each for each in given if each not in pairs and each not in lost]
        parents = [self.rungs[0].parent]
        for rung in self.rungs[1:]:
            parents.append(joined(parents[-1], rung.parent))
        return [pairs[each] for each in given if each in pairs], estimates(left, reached, parents, origin)

    def _promote(
        self, rung: Rung, candidates: Sequence[Architecture], wanted: int, origin: str, before: Seen
    ) -> tuple[dict[Architecture, Pair], list[Architecture]]:
        """The first `wanted` candidates that can be measured on a rung, and all that were tried; what is
        stored is joined with what was seen `before`."""

        def measured(architecture: Architecture) -> tuple[float, Mapping[str, float]]:
            scores = joined(before.get(architecture), rung.measure(widths_of(architecture, self.shape)))
            return scores.score, {"accuracy": scores.accuracy} | (
                {} if scores.kl is None else {"kl": scores.kl}
            )

        built: dict[Architecture, Pair] = {}
        tried: list[Architecture] = []
        while len(built) < wanted and len(tried) < len(candidates):
            some = list(candidates[len(tried) : len(tried) + wanted - len(built)])
            least = 1 if len(tried) + len(some) == len(candidates) and not built else 0
            found = measure_each(rung.pairs, some, measured, origin, quiet=self.quiet, least=least)
            built |= {pair.architecture: pair for pair in found}
            tried += some
        return built, tried


def parts_of(count: int, shares: Sequence[float] = SHARES) -> list[list[int]]:
    """The numbers of the windows that each rung adds, of `count` in the order of the text.

    What has been seen is spread over all of them at every rung: they are taken in the order of their
    bit-reversed numbers (van der Corput 1935). Where there are too few windows for all rungs, there are
    fewer rungs.
    """
    bits = max(1, (count - 1).bit_length())
    order = sorted(range(count), key=lambda number: int(f"{number:0{bits}b}"[::-1], 2))
    ends = sorted({round(share * count) for share in shares} - {0} | {count})
    return [sorted(order[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def rungs_of(
    location: str,
    fields: Mapping[str, Any],
    pairs: Pairs,
    windows: Tensor,
    meter: Callable[[Tensor], Measure],
    parent: Callable[[Tensor], Scores],
    shares: Sequence[float] = SHARES,
) -> list[Rung]:
    """A rung for each part of the `windows` (n, seq_len): what measures subnets on it, the parent's scores
    and a study in the store at `location`, which for the last one is that of the full `pairs`. `fields` are
    everything that scores depend on besides the windows."""
    parts = parts_of(len(windows), shares)
    studies = [Pairs(location, Setting({**fields, "part": part})) for part in parts[:-1]]
    return [
        Rung(study, meter(windows[part]), parent(windows[part]))
        for study, part in zip([*studies, pairs], parts, strict=True)
    ]


def early(scores: Scores) -> float:
    """What is promoted by, the less the better."""
    return scores.nll if scores.kl is None else scores.kl


def stored(pair: Pair, tokens: int) -> Scores:
    """What a pair says of so many tokens."""
    return Scores(-pair.score, pair.measured.get("accuracy", math.nan), tokens, pair.measured.get("kl"))


def joined(first: Scores | None, second: Scores) -> Scores:
    """Of two parts of a text together: means over the tokens of both."""
    if first is None:
        return second
    tokens = first.tokens + second.tokens
    one, other = first.tokens / tokens, second.tokens / tokens
    return Scores(
        one * first.nll + other * second.nll,
        one * first.accuracy + other * second.accuracy,
        tokens,
        None if first.kl is None or second.kl is None else one * first.kl + other * second.kl,
    )


def estimates(
    left: Sequence[Architecture], reached: Sequence[Seen], parents: Sequence[Scores], origin: str
) -> list[Estimate]:
    """What those that are `left` behind would score on all windows, from what they lost on those they saw.

    `reached` holds by rung the scores of those who came there on all that they had seen, `parents` the
    parent's. What was lost on few windows is averaged with what the divergence says of it, which errs
    elsewhere. From one rung to the next a loss changes as that of the promoted did: the ratio of their sums,
    so that it does not matter which windows came first.
    """
    lost = [
        {each: scores.nll - parent.nll for each, scores in seen.items()}
        for seen, parent in zip(reached, parents, strict=True)
    ]
    factor, found = 1.0, dict[Architecture, Estimate]()
    for number in reversed(range(len(reached) - 1)):
        promoted = reached[number + 1]
        factor *= ratio(
            [lost[number + 1][each] for each in promoted], [lost[number][each] for each in promoted]
        )
        told = {each: scores.kl for each, scores in reached[number].items() if scores.kl is not None}
        scale = ratio([lost[number][each] for each in told], told.values())
        for each in (each for each in left if each in reached[number] and each not in found):
            loss = lost[number][each]
            if each in told:
                loss = (loss + scale * told[each]) / 2
            tokens = reached[number][each].tokens
            found[each] = Estimate(each, -parents[-1].nll - factor * loss, origin, tokens)
    return [found[each] for each in left]


def ratio(over: Iterable[float], under: Iterable[float]) -> float:
    """Of two sums; 1 where one of them is not positive, and tells nothing."""
    above, below = sum(over), sum(under)
    return above / below if above > 0 and below > 0 else 1.0
