"""Adaptive Estimation Fusion (arXiv 2403.10799): what do coarse and fine importance say together?

Taylor importance of coupled structures, coarse (signed sums over lines) and fine (single weights, with the
Fisher diagonal), is normalised in every module and fused. The same share is cut from every block but the
ends, without repair. How the weights are found is `--mode`: a fixed number, the scores' reliability over
windows, attention between both, or a search in which they are knobs.

    python -m experiments.published.estimation_fusion --parent FOLDER --corpus FOLDER --mode searched
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import Literal

import optuna
from optuna.distributions import FloatDistribution
from tqdm import tqdm

from data.errors import InputError
from experiments.command_line import option, run
from experiments.published.case import Case
from experiments.published.outcome import Outcome, run_system
from experiments.published.protection import Protected, protected
from nas.architecture import Architecture
from nas.evaluate import evaluate
from nas.importance import CRITERIA, UnitScores
from nas.importance.fusion import WEIGHTS, blend
from nas.oneshot import same_share
from nas.pairs import quiet_optuna
from nas.ranking import permute, ranking_of
from nas.shape import architecture_of
from nas.subnet import cut

Weights = dict[str, float]
"""Of the coarse score in one block, for `heads` and for `channels`."""


@dataclass(frozen=True)
class Settings(Protected):
    """The paper's: LLM-Pruner's structures and protected ends, scaled to the parent's depth."""

    mode: Literal["fixed", "reliability", "attention", "searched"] = option(
        "reliability", "how the weight of the coarse score is found in each module", group="system"
    )
    weight: float = option(0.5, "weight of the coarse score with --mode fixed, 0 to 1", group="system")
    trials: int = option(100, "evaluations with --mode searched", group="system")


def prune(case: Case, keep: float, settings: Settings) -> Outcome:
    """Fuse, rank, cut."""
    if not 0 <= settings.weight <= 1 or settings.trials < 1:
        raise InputError(
            f"--weight is {settings.weight} and --trials {settings.trials}; give 0 to 1 and at least 1"
        )
    blocks = range(case.shape.blocks)
    spared = protected(case, settings.protect)
    architecture = architecture_of(same_share(case.budget(keep), spared), case.shape)
    coarse = [CRITERIA["taylor_vector"](case.evidence, block) for block in blocks]
    fine = [CRITERIA["taylor_mix"](case.evidence, block) for block in blocks]
    if settings.mode == "fixed":
        weights = [{"heads": settings.weight, "channels": settings.weight} for _ in blocks]
    elif settings.mode == "searched":
        weights = search(case, architecture, coarse, fine, spared, settings)
    else:
        weights = [WEIGHTS[settings.mode](case.evidence, block) for block in blocks]
    scores = [blend(*each) for each in zip(coarse, fine, weights, strict=True)]
    ordered = permute(case.parent, case.shape, ranking_of(scores))
    return Outcome(
        cut(ordered, case.shape, architecture, own=True),
        architecture,
        [f"coarse and fine Taylor scores fused, {settings.mode}", f"blocks {spared} protected", "no repair"],
        {"weights": weights},
    )


def search(
    case: Case, architecture: Architecture, coarse: list[UnitScores], fine: list[UnitScores],
    spared: tuple[int, ...], settings: Settings,
) -> list[Weights]:  # fmt: skip
    """The weights whose subnet scores best on validation windows, by Optuna's TPE from the three constants;
    chosen among the five best on windows that the search did not see."""
    with quiet_optuna():
        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=settings.seed)
        )
    free = [block for block in range(case.shape.blocks) if block not in spared]
    names = {
        f"{block}.{part}": FloatDistribution(0.0, 1.0) for block in free for part in ("heads", "channels")
    }
    for constant in (0.0, 0.5, 1.0):
        study.enqueue_trial(dict.fromkeys(names, constant))

    def weights_of(values: Weights) -> list[Weights]:
        return [
            {part: values.get(f"{block}.{part}", 0.0) for part in ("heads", "channels")}
            for block in range(case.shape.blocks)
        ]

    def score(values: Weights, on_final: bool = False) -> float:
        scores = [blend(*each) for each in zip(coarse, fine, weights_of(values), strict=True)]
        subnet = cut(permute(case.parent, case.shape, ranking_of(scores)), case.shape, architecture)
        seen = case.text.final if on_final else case.text.pairs
        return evaluate(subnet, seen, batch_size=settings.batch_size).score

    for _ in tqdm(range(settings.trials), desc="fusion weights", unit="subnet", leave=False):
        trial = study.ask(dict(names))
        study.tell(trial, score(trial.params))
    best = sorted(study.get_trials(deepcopy=False), key=lambda trial: -(trial.value or 0.0))[:5]
    return weights_of(max((trial.params for trial in best), key=partial(score, on_final=True)))


def main(settings: Settings) -> None:
    """One result for each fraction asked for."""
    run_system("estimation_fusion", prune, settings)


if __name__ == "__main__":
    sys.exit(run(Settings, main))
