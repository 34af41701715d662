"""How much of the text each pair is measured on: all of it, or only as much as it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from data.errors import InputError
from experiments.command_line import option
from nas.building import Build, Estimate, SubnetMeter
from nas.cost import Budget
from nas.evaluate import Scores, evaluate
from nas.halving import Halving, rungs_of
from nas.pairs import Pair, Pairs, Setting
from nas.parent import digest_of
from nas.recovery.teacher import stored_teacher

FULL, HALVING = "full", "halving"
TOP_K = 64
"""The parent's logits that a subnet's divergence from it is measured by."""


@dataclass(frozen=True)
class OfFidelity:
    """The setting that says so."""

    fidelity: str = option(
        FULL,
        f"{FULL} measures every pair on all windows, {HALVING} the better ones on more of them than others "
        "and only the best on all",
        group="search", choices=(FULL, HALVING),
    )  # fmt: skip


def check_fidelity(fidelity: str, recovery_steps: int) -> None:
    """Raise `InputError` where windows are not what a pair costs."""
    if fidelity != FULL and recovery_steps:
        raise InputError(
            f"--recovery-steps {recovery_steps} trains the subnet of every pair, which takes far longer than "
            f"the windows that --fidelity {fidelity} spares; give --fidelity {FULL}"
        )


def halving(
    location: str, setting: Setting, pairs: Pairs, meter: SubnetMeter, budget: Budget, cache: Path
) -> Build:
    """Builds pairs by successive halving over the meter's windows, in the store at `location`; what the
    parent says of the windows is kept in the `cache`."""

    digest, top_k = digest_of(meter.parent), min(TOP_K, meter.shape.vocab)

    def on(some: Tensor) -> SubnetMeter:
        teacher = stored_teacher(meter.parent, some, top_k, cache, batch_size=meter.batch_size, digest=digest)
        return replace(meter, windows=some, divergence=teacher.divergence)

    def parent(some: Tensor) -> Scores:
        return evaluate(meter.parent, some, batch_size=meter.batch_size)

    rungs = rungs_of(location, {**setting.fields, "top_k": TOP_K}, pairs, meter.windows, on, parent)
    return Halving(rungs, meter.shape, budget)


def search_words(
    pairs: Sequence[Pair], random: Sequence[Pair], estimates: Sequence[Estimate], windows: Tensor
) -> str:
    """How many subnets of the search and of random search were measured on all `windows` (n, seq_len) or a
    part, and what that took."""
    every = {pair.architecture for pair in (*pairs, *random)}
    tokens = len(every) * windows[:, 1:].numel() + sum(each.tokens for each in estimates)
    part = f", {len(estimates)} more on a part of them alone (successive halving)" * bool(estimates)
    whose = ", random search's too" * bool(random)
    return f"{len(every)} subnets on all of these{part}: {tokens:,} predicted tokens{whose}"
