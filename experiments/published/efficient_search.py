"""Search for Efficient LLMs (arXiv 2409.17372): which channels, inside heads and MLPs, make the best subnet?

The search starts from one subnet, the most important channels by optimal-brain-surgeon saliences, the same
share in every block. Evolution changes how many channels a block keeps, which ones, and how many blocks
there are; what leaves the window of sizes is dropped; fitness is the perplexity on a few training windows.
The output matrices of the winner are then reformed front to back, in closed form or by the paper's ADMM.

    python -m experiments.published.efficient_search --parent FOLDER --corpus FOLDER --epochs 10
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from data.errors import InputError
from data.windows import spread
from experiments.command_line import option, run
from experiments.published.case import Case, Common
from experiments.published.outcome import Outcome, run_system
from nas.block_importance import BLOCK_CRITERIA
from nas.cost import Budget
from nas.evaluate import evaluate
from nas.importance.obs import obs_lines
from nas.importance.scores import MLP_LINES
from nas.repair.steps import compensate
from nas.repair.stream import Stream
from nas.repair.walk import walk
from nas.rotary import rotary_scores
from nas.shape import Shape
from nas.subnet import cut
from nas.unit_sets import UnitSets, most_important, resized, swapped, with_block

RANGES = {
    0.9: (0.9, 0.6, 1.0), 0.8: (0.8, 0.4, 1.0), 0.7: (0.7, 0.2, 0.9375), 0.6: (0.6, 0.1, 0.875),
    0.5: (0.6, 0.1, 0.875),
}  # fmt: skip
"""Smallest share of channels inside heads, of FFN channels, and of blocks, by the fraction to keep (the
paper's table 1 for LLaMA-7B; its 0.3 for heads at 0.7 is taken for a misprint). Below 0.5 they shrink with
it."""


@dataclass(frozen=True)
class Settings(Common):
    """The paper's numbers; `--epochs 10 --population 40` is a twelfth of its evaluations."""

    epochs: int = option(50, "generations", group="system", least=0)
    population: int = option(
        100, "candidates of a generation: half mutated, three tenths crossed", group="system", least=4
    )
    survivors: int = option(10, "candidates that go on", group="system", least=1)
    fitness_windows: int = option(
        16, "training windows that candidates are measured on", group="system", least=1
    )
    inside_heads: bool = option(
        True, "search channels inside heads too; else MLPs and depth only", group="system"
    )
    step: int = option(
        8, "channels inside a head or an MLP come in multiples of this", group="system", least=2
    )
    reform: Literal["closed_form", "admm", "none"] = option(
        "closed_form", "how output matrices take over what was cut", group="system"
    )
    rho: float = option(1.0, "ADMM's penalty, relative to the mean power", group="system")
    admm_steps: int = option(30, "ADMM's iterations", group="system", least=1)


@dataclass(frozen=True)
class Chances:
    """Chances of changing how many, which, and how deep."""

    share: float
    mask: float
    depth: float


FIRST, LATER, OVERLAP = Chances(0.3, 0.6, 0.0), Chances(0.1, 0.3, 0.1), 0.8
"""The paper's: P_s0, P_m0 for the first generation (and a fifth of each later one), P_s, P_m, P_d, alpha."""


@dataclass(frozen=True)
class Choices:
    """How many rotary pairs and channels a block may keep, how few blocks, and which go first."""

    pairs: tuple[int, ...]
    channels: tuple[int, ...]
    fewest: int
    dropped_first: tuple[int, ...]


def prune(case: Case, keep: float, settings: Settings) -> Outcome:
    """Start, evolve, reform."""
    if settings.survivors > settings.population:
        raise InputError(
            f"--survivors is {settings.survivors} and --population {settings.population}; give no more than "
            "these"
        )
    if settings.step % 2:
        raise InputError(f"--step is {settings.step}; give an even number, for channels turn in pairs")
    rng = np.random.default_rng(settings.seed)
    budget = case.budget(keep)
    choices = choices_of(case, keep, settings)
    first = start(case, budget, choices, settings)
    seen = spread(case.text.calibration, min(settings.fitness_windows, len(case.text.calibration)))

    def fitness(sets: UnitSets) -> float:
        return evaluate(realise(case.parent, case.shape, sets), seen, batch_size=settings.batch_size).score

    best, history = evolve(first, fitness, budget, choices, settings, rng)
    architecture = best.architecture(case.shape)
    rotary, channels = best.rotary(), best.channels()
    if settings.reform == "none":
        model = cut(case.parent, case.shape, architecture, rotary=rotary, channels=channels, own=True)
    else:
        steps = settings.admm_steps if settings.reform == "admm" else 0
        model = walk(
            case.parent, case.shape, architecture,
            Stream(case.parent, case.text.calibration, settings.batch_size),
            [compensate(admm_steps=steps, rho=settings.rho)], rotary=rotary, channels=channels,
        )  # fmt: skip
    return Outcome(
        model,
        architecture,
        [
            "channels by optimal-brain-surgeon saliences, then evolution of sets and sizes "
            f"({settings.epochs} generations of {settings.population})",
            f"output matrices reformed: {settings.reform}",
        ],
        {"start": first.architecture(case.shape).digest, "fitness": history},
    )


def realise(parent: PreTrainedModel, shape: Shape, sets: UnitSets) -> PreTrainedModel:
    """The subnet of these sets."""
    return cut(parent, shape, sets.architecture(shape), rotary=sets.rotary(), channels=sets.channels())


def choices_of(case: Case, keep: float, settings: Settings) -> Choices:
    """The paper's ranges for this fraction, in steps that the parent's widths allow."""
    known = min((target for target in RANGES if target >= keep - 1e-9), default=0.9)
    heads, mlp, depth = RANGES[known]
    if keep < min(RANGES):
        heads, depth = heads * keep / min(RANGES), depth * keep / min(RANGES)
    shape = case.shape
    full, half = shape.ffn, shape.head_dim // 2
    pair_step = max(1, settings.step // 2)
    pairs = {half, *(p for p in range(pair_step, half, pair_step) if p >= heads * half)}
    channels = {full, *(c for c in range(settings.step, full, settings.step) if c >= mlp * full)}
    influence = BLOCK_CRITERIA["influence"](case.evidence)
    return Choices(
        tuple(sorted(pairs)) if settings.inside_heads else (half,),
        tuple(sorted(channels)),
        max(1, int(np.ceil(depth * shape.blocks - 1e-9))),
        tuple(sorted(range(shape.blocks), key=lambda block: influence[block])),
    )


def start(case: Case, budget: Budget, choices: Choices, settings: Settings) -> UnitSets:
    """The most important channels, the same share of both kinds in every block, as many as fit."""
    shape = case.shape
    pairs, channels = [], []
    for block in range(shape.blocks):
        found = obs_lines(case.evidence, block)
        channels.append(torch.stack([found[name] for name in MLP_LINES if name in found]).sum(0))
        query, key = found["q_proj"] + found["o_proj"], found["k_proj"] + found["v_proj"]
        pairs.append(rotary_scores(shape, query, key))
    for share in np.linspace(1.0, 0.0, 201):
        counts = (
            max(p for p in choices.pairs if p <= max(share * shape.head_dim / 2, choices.pairs[0])),
            max(c for c in choices.channels if c <= max(share * shape.ffn, choices.channels[0])),
        )
        sets = most_important(pairs, channels, counts)
        if sets.load(budget) <= 1.0:
            return sets
    raise InputError(
        f"the smallest start costs {sets.load(budget):.2f} times the budget; give a larger --keep"
    )


def evolve(
    first: UnitSets, fitness: Callable[[UnitSets], float], budget: Budget, choices: Choices,
    settings: Settings, rng: np.random.Generator,
) -> tuple[UnitSets, list[float]]:  # fmt: skip
    """The fittest sets found, and the best fitness after every generation."""
    size, mutated, crossed = settings.population, settings.population // 2, settings.population * 3 // 10
    pool, known = [(fitness(first), first)], {first.key}
    history = [pool[0][0]]
    with tqdm(total=(settings.epochs + 1) * size, desc="evolution", unit="subnet", leave=False) as bar:
        for epoch in range(settings.epochs + 1):
            parents = [sets for _, sets in pool]

            def one(kind: int, parents: list[UnitSets] = parents, epoch: int = epoch) -> UnitSets:
                a = parents[rng.integers(len(parents))]
                if epoch and kind < mutated:
                    return mutate(a, LATER, choices, rng)
                if epoch and kind < mutated + crossed:
                    others = [each for each in parents if each is not a]
                    return cross(a, others[rng.integers(len(others))] if others else a, rng)
                return mutate(a, FIRST, choices, rng)

            for kind in range(size):
                child = within(partial(one, kind), budget, known)
                if child is not None:
                    known.add(child.key)
                    pool.append((fitness(child), child))
                bar.update(1)
            pool = sorted(pool, key=lambda each: -each[0])[: settings.survivors]
            history.append(pool[0][0])
    return pool[0][1], history


def within(
    make: Callable[[], UnitSets], budget: Budget, known: Collection[bytes] = (), tries: int = 50,
    window: float = 0.97,
) -> UnitSets | None:  # fmt: skip
    """A new candidate inside the window of sizes, None after so many that were not."""
    for _ in range(tries):
        child = make()
        if child.key not in known and window <= child.load(budget) <= 1.0:
            return child
    return None


def mutate(sets: UnitSets, rates: Chances, choices: Choices, rng: np.random.Generator) -> UnitSets:
    """Shares, sets and depth changed by chance."""
    alive = sets.alive
    if rng.random() < rates.depth and choices.fewest < len(alive):
        count = int(rng.integers(choices.fewest, len(alive) + 1))
        alive = np.ones(len(alive), dtype=bool)
        alive[list(choices.dropped_first[: len(alive) - count])] = False
    sets = replace(sets, alive=alive)
    for index in np.flatnonzero(alive):
        pairs, channels = sets.blocks[index].pairs, sets.blocks[index].channels
        if rng.random() < rates.share:
            count = int(rng.choice(choices.pairs))
            pairs = np.stack([resized(row, count, rng) for row in pairs])
        if rng.random() < rates.share:
            channels = resized(channels, int(rng.choice(choices.channels)), rng)
        pairs = np.stack([swapped(row, OVERLAP, rng) if rng.random() < rates.mask else row for row in pairs])
        if rng.random() < rates.mask:
            channels = swapped(channels, OVERLAP, rng)
        sets = with_block(sets, int(index), pairs, channels)
    return sets


def cross(a: UnitSets, b: UnitSets, rng: np.random.Generator) -> UnitSets:
    """Each block from one of both, and one's depth."""
    pick = rng.random(len(a.blocks)) < 0.5
    blocks = tuple(x if first else y for x, y, first in zip(a.blocks, b.blocks, pick, strict=True))
    return UnitSets(blocks, a.alive if rng.random() < 0.5 else b.alive)


def main(settings: Settings) -> None:
    """One result for each fraction asked for."""
    run_system("efficient_search", prune, settings)


if __name__ == "__main__":
    sys.exit(run(Settings, main))
