"""What a part of the windows tells of a subnet, and what a search by successive halving gives for its tokens.

First, early scores: structured and random architectures, then mutations of the best of these, are measured on
all windows. For each share of the windows, by the loss and by the divergence from the parent: Kendall's tau
with the full score over all, and among the true best quarter; and with the loss on held-out windows, as far
as full evaluation itself agrees with it. Second, whole searches, the main job's without finalists, seed by
seed: all pairs on all windows, as many architectures by halving with either early score, a fifth more of
them, and as many pairs on all windows as the tokens of halving pay for. What they found is judged on held-out
validation windows.

    python -m benchmarks.fidelity
    python -m benchmarks.fidelity --parent ../shared/models/wiki-llama-8m --corpus FOLDER --pairs 60
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from statistics import mean

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks._setup import Common, Ready, make_ready, show
from data.corpus import load_corpus
from data.windows import encode, spread_apart, windows
from experiments.command_line import option, run
from experiments.fidelity import TOP_K
from nas.architecture import Architecture
from nas.baselines import random_cuts
from nas.building import Build, Measure, SubnetMeter, in_full
from nas.cost import Budget
from nas.encoding import Encoding
from nas.evaluate import Scores, evaluate
from nas.exploration import Explored, explore
from nas.halving import SHARES, Halving, Rung, joined, parts_of
from nas.pairs import Pairs, Setting
from nas.proposals import fit, mutate
from nas.recovery.teacher import stored_teacher
from nas.sampling import SAMPLERS
from nas.shape import Widths, architecture_of, widths_of
from predictors import make_predictor
from predictors.metrics import kendall_tau

TRIED = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of the windows; halving's own are among them."""
FULL, BY_KL, BY_LOSS = "full", "halving, kl", "halving, loss"
MORE, FEWER = "halving, kl, a fifth more", "full, as many tokens"
OF_KL = {"kl on a quarter": 3, "kl on all": 5}
"""Searches for the least divergence in place of the least loss, by how many parts of `TRIED` all see."""
WAYS = (FULL, BY_KL, BY_LOSS, MORE, FEWER, *OF_KL)


@dataclass(frozen=True)
class Settings(Common):
    """What is measured."""

    eval_windows: int = option(32, "validation windows of a full evaluation", group="input", least=16)
    final_windows: int = option(64, "other validation windows, which judge", group="input", least=1)
    keep: float = option(0.5, "kept fraction of the blocks' parameters", group="input")
    architectures: int = option(60, "of each kind, for the early scores; 0 for none", group="run")
    ways: tuple[str, ...] = option(
        WAYS,
        f"searches that are compared, {FULL} first; '{FEWER}' behind '{BY_KL}'",
        group="run",
        choices=WAYS,
    )
    seeds: int = option(5, "searches of each way; 0 for none", group="run")
    pairs: int = option(100, "architectures of a search", group="run")
    first_pairs: int = option(30, "of these, at its start", group="run")
    rounds: int = option(5, "of each search", group="run")
    trials: int = option(240, "Optuna trials a round", group="run")


@dataclass
class Measured:
    """Scores of architectures part by part, each measured once; the last part is the held-out windows."""

    meters: Sequence[SubnetMeter]
    parents: Sequence[Scores]
    known: dict[tuple[Architecture, int], Scores] = field(default_factory=dict)

    def __call__(self, architecture: Architecture, parts: Sequence[int]) -> Scores:
        """On some parts together."""
        for part in parts:
            if (architecture, part) not in self.known:
                meter = self.meters[part]
                self.known[architecture, part] = meter(widths_of(architecture, meter.shape))
        return together([self.known[architecture, part] for part in parts])

    def parent(self, parts: Sequence[int]) -> Scores:
        """The parent's, on some parts together."""
        return together([self.parents[part] for part in parts])


def together(scores: Sequence[Scores]) -> Scores:
    """Means over all of their tokens."""
    return reduce(joined, scores[1:], scores[0])


def main(settings: Settings) -> None:
    """Measure and print."""
    ready = make_ready(settings)
    measured = measured_of(settings, ready)
    budget = ready.budget("block_parameters", settings.keep)
    if settings.architectures:
        early_scores(settings, ready, budget, measured)
    if settings.seeds:
        searches(settings, ready, budget, measured)


def measured_of(settings: Settings, ready: Ready) -> Measured:
    """Nothing measured yet, on the parts of `TRIED` and on the held-out windows."""
    text = load_corpus(settings.corpus, ready.tokenizer).split("validation")
    valid = windows(encode(ready.tokenizer, text, settings.cache), settings.seq_len)
    seen, held_out = spread_apart(valid, settings.eval_windows, settings.final_windows)
    every = [*(seen[part] for part in parts_of(len(seen), TRIED)), held_out]
    plain = SubnetMeter(ready.parent, ready.shape, ready.prepared.bank, held_out, settings.batch_size)

    def on(some: Tensor) -> SubnetMeter:
        top_k = min(TOP_K, ready.shape.vocab)
        teacher = stored_teacher(ready.parent, some, top_k, settings.cache, batch_size=settings.batch_size)
        return replace(plain, windows=some, divergence=teacher.divergence)

    parents = [evaluate(ready.parent, some, batch_size=settings.batch_size) for some in every]
    return Measured([*map(on, every[:-1]), plain], parents)


def early_scores(settings: Settings, ready: Ready, budget: Budget, measured: Measured) -> None:
    """Kendall's taus of all shares and both early scores."""
    space, shape, count = ready.space, ready.shape, settings.architectures
    rng = np.random.default_rng(settings.seed)
    held_out, last = len(TRIED), len(TRIED) - 1
    seeded = SAMPLERS["seeded"](space, budget, count - count // 3, rng, ready.hints)
    rows = space.widths(np.concatenate([seeded, random_cuts(space, budget, count // 3, rng)]))
    groups = {"structured and random": once(rows, ready)}
    best = list(groups["structured and random"])
    for size in (count // 4, count // 4, count):  # of the best, then of the best of these
        best = sorted(best, key=lambda each: measured(each, range(last + 1)).nll)[:6]
        parents = space.indices(np.stack([widths_of(each, shape) for each in best]))
        mutated = mutate(space, parents[rng.integers(len(parents), size=size)], rng)
        new = once(space.widths(fit(space, budget, mutated, rng)), ready)
        best += new
    groups["near the best"] = new
    for name, some in groups.items():
        truth = np.array([measured(each, range(last + 1)).nll for each in some])
        judged = np.array([measured(each, [held_out]).nll for each in some])
        lines = [["windows, early score", "tau, all", "best quarter", "held-out, all", "best quarter"]]
        for number, share in enumerate(TRIED):
            scores = [measured(each, range(number + 1)) for each in some]
            kinds = {"loss": [each.nll for each in scores], "kl": [each.kl or 0.0 for each in scores]}
            for kind, values in kinds.items():
                taus = [*both(truth, np.array(values)), *both(judged, np.array(values))]
                lines.append([f"{share:.4g}, {kind}", *(f"{tau:.3f}" for tau in taus)])
        show(f"{len(some)} architectures of {settings.parent}, {name}: Kendall's tau", lines)


def once(rows: Widths, ready: Ready) -> list[Architecture]:
    """Each architecture of some rows once."""
    return list(dict.fromkeys(architecture_of(row, ready.shape) for row in rows))


def both(truth: NDArray[np.float64], guess: NDArray[np.float64]) -> tuple[float, float]:
    """Kendall's tau over all, and among the quarter with the least truth."""
    best = np.argsort(truth, kind="stable")[: max(4, len(truth) // 4)]
    return kendall_tau(truth, guess), kendall_tau(truth[best], guess[best])


def searches(settings: Settings, ready: Ready, budget: Budget, measured: Measured) -> None:
    """Every way with every seed: what the best pair loses on its own windows and on held-out ones, and what
    the pair of the least divergence loses there."""
    whole, held_out = range(len(TRIED)), [len(TRIED)]
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for seed in range(settings.seeds):
        spent = 1.0
        for name in settings.ways:
            pairs = round({MORE: 1.2, FEWER: spent}.get(name, 1.0) * settings.pairs)
            explored = one_search(settings, ready, budget, measured, name, pairs, seed)
            seen = range(OF_KL.get(name, len(TRIED)))
            tokens = len(explored.pairs) * measured.parent(seen).tokens
            tokens += sum(each.tokens for each in explored.estimates)
            share = tokens / (settings.pairs * measured.parent(whole).tokens)
            if name == BY_KL:
                spent = share
            tried = [pair.architecture for pair in explored.pairs]
            nearest = min(tried, key=lambda each, seen=seen: measured(each, seen).kl or 0.0)  # type: ignore[misc]
            best = nearest if name in OF_KL else min(tried, key=lambda each: measured(each, whole).nll)
            damage = [
                measured(each, on).nll - measured.parent(on).nll
                for each, on in ((best, whole), (best, held_out), (nearest, held_out))
            ]
            found.setdefault(name, []).append((share, damage[0], damage[1], damage[2]))
        line = ", ".join(f"{name} {each[-1][2]:.4f}" for name, each in found.items())
        print(f"seed {seed}, held-out damage in nats: {line}", flush=True)
    head = ["search", "tokens", "damage, own windows", "held-out", "over full", "better", "worse", "least kl"]
    lines, base = [head], [each[2] for each in found[settings.ways[0]]]
    for name, each in found.items():
        tokens, own, judged, nearest_judged = (mean(column) for column in zip(*each, strict=True))
        gains = [one[2] - other for one, other in zip(each, base, strict=True)]
        lines.append(
            [
                name, f"{tokens:.3f}", f"{own:.4f}", f"{judged:.4f}", f"{judged / mean(base):.3f}",
                str(sum(gain < 0 for gain in gains)), str(sum(gain > 0 for gain in gains)),
                f"{nearest_judged:.4f}",
            ]
        )  # fmt: skip
    show(f"{settings.seeds} searches of {settings.pairs} architectures of {settings.parent}", lines)


def one_search(
    settings: Settings, ready: Ready, budget: Budget, measured: Measured, name: str, pairs: int, seed: int
) -> Explored:
    """What the main job's search finds in this way."""
    first = SAMPLERS["seeded"](
        ready.space, budget, max(12, settings.first_pairs * pairs // settings.pairs),
        np.random.default_rng(seed), ready.hints,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        return explore(
            ready.space, budget, Encoding(ready.cost, ready.hints.attention_error, ready.hints.mlp_error),
            lambda: make_predictor("xgboost", seed),
            builder(name, ready, budget, measured, f"{folder}/pairs"), first,
            reference=0.0 if name in OF_KL else measured.parent(range(len(TRIED))).score, total=pairs,
            rounds=settings.rounds, trials=settings.trials, seed=seed,
        )  # fmt: skip


def builder(name: str, ready: Ready, budget: Budget, measured: Measured, location: str) -> Build:
    """Builds pairs in this way, in an empty store."""
    shape = ready.shape

    def on(parts: Sequence[int], by_loss: bool) -> Measure:
        def measure(widths: Widths) -> Scores:
            scores = measured(architecture_of(widths, shape), parts)
            return replace(scores, kl=None) if by_loss else scores

        return measure

    def study(number: int) -> Pairs:
        return Pairs(location, Setting({"benchmark": name, "rung": number}))

    if name in OF_KL:

        def diverged(widths: Widths) -> Scores:
            scores = measured(architecture_of(widths, shape), range(OF_KL[name]))
            return replace(scores, nll=scores.kl or 0.0)

        return in_full(study(0), diverged, shape, budget, quiet=True)
    if name in (FULL, FEWER):
        return in_full(study(0), on(range(len(TRIED)), True), shape, budget, quiet=True)
    ends = [0, *(TRIED.index(share) + 1 for share in SHARES)]
    rungs = [
        Rung(study(number), on(parts, name == BY_LOSS), measured.parent(parts))
        for number, parts in enumerate(map(range, ends[:-1], ends[1:]))
    ]
    return Halving(rungs, shape, budget, quiet=True)


if __name__ == "__main__":
    sys.exit(run(Settings, main))
