"""What are pruning and the predictor worth? Searches without them, at the same number of evaluations.

Every variant starts from the same architectures and really evaluates as many subnets within the same budget:
with the learned predictor or its additive line alone, with the space pruned or whole, by mutations of the
best measured without any prediction, and at random. What counts is the best of each on validation windows
that no search saw.

    python -m experiments.ablation --keep 0.5 --evaluations 100 --seeds 5

Pairs are kept as they are measured: the same command again goes on where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pandas as pd
from matplotlib import pyplot

from data.errors import InputError, first_line
from experiments.command_line import check_least, option, run
from experiments.results import REPORT, STORE, seeded, usable, versions
from experiments.stages import Stages, say
from experiments.subject import OfSubject, Subject, open_subject
from experiments.workers import OfWorkers, launch
from nas.alone import alone
from nas.baselines import evolve, random_cuts
from nas.building import build_pairs, in_full
from nas.cost import Budget, budget_of
from nas.damage import no_correction
from nas.exploration import Explored, explore
from nas.pairs import Pair, Pairs
from nas.proposals import Indices, check_reachable
from nas.report import read_report, write_html, write_json
from nas.report.record import at
from nas.sampling import SAMPLERS
from nas.shape import widths_of
from nas.storage import shown
from predictors import PREDICTORS, Predictor


@dataclass(frozen=True)
class Settings(OfSubject, OfWorkers):
    """A parent, a budget, and how often each variant is run."""

    keep: float = option(0.5, "largest fraction of the blocks' parameters", group="search")
    evaluations: int = option(100, "real evaluations of every search", group="search", least=24)
    first_pairs: int = option(40, "of these, before there is a predictor", group="search", least=12)
    rounds: int = option(6, "times that a search goes on from what it measured", group="search", least=1)
    trials: int = option(400, "Optuna trials a round", group="search", least=1)
    predictor: str = option("xgboost", f"one of {', '.join(PREDICTORS)}, or an import path", group="search")
    seeds: int = option(5, "repetitions", group="search", least=1)
    final_windows: int = option(
        128, "validation windows that no search sees, on which the best are compared", group="input", least=1
    )
    out: Path = option(Path("runs/ablation"), "folder of the results", group="run")
    report_in: Path | None = option(
        None, "folder of a finished run of experiments.compress whose report shows them too", group="run"
    )


def main(settings: Settings) -> int:
    """Run every variant with every seed, alone or as one of several workers, show what each found."""
    check(settings)
    usable(settings.out, "--out")
    if settings.workers > 1:
        return launch(settings, "experiments.ablation", settings.out)
    stages = Stages()
    subject = open_subject(settings, stages, final=settings.final_windows)
    budget = budget_of(subject.cost, settings.keep)
    check_reachable(subject.space, budget)
    pairs = Pairs(settings.storage or str(settings.out / STORE), subject.setting)
    final = replace(subject.meter, windows=subject.final)
    rows: list[dict[str, Any]] = []
    seeded(0)(settings.predictor)  # a wrong name ends it before any work
    with stages("searches"):
        for seed in range(settings.seeds):
            first = SAMPLERS["seeded"](
                subject.space, budget, settings.first_pairs, np.random.default_rng([settings.seed, seed]),
                subject.hints,
            )  # fmt: skip
            for name, variant in VARIANTS.items():
                known, choices = variant(subject, budget, pairs, first, settings, seed)
                best = max(known, key=lambda pair: pair.score)
                other = final(widths_of(best.architecture, subject.shape)).score
                so_far = np.maximum.accumulate([pair.score for pair in known]).tolist()
                rows.append(
                    {
                        "variant": name, "seed": seed, "evaluations": len(known), "score": best.score,
                        "final_score": other, "best_so_far": so_far, "choices_left": choices,
                        "digest": best.architecture.digest,
                    }
                )  # fmt: skip
                say(f"seed {seed}, {name}: {np.exp(-best.score):.3f}, on other windows {np.exp(-other):.3f}")
    record = {
        "settings": {**asdict(settings), "storage": shown(settings.storage or "") or None},
        "setting": subject.setting.digest, "parent": subject.digest,
        "versions": versions(), "reference": subject.reference, "rows": rows,
    }  # fmt: skip
    frame = pd.DataFrame(rows)
    with alone(settings.out / "ablation.json"):  # every worker writes the same
        write_json(record, settings.out / "ablation.json")
        if settings.report_in is not None:
            show_in(settings.report_in, record)
        draw(frame, subject.reference, settings)
    print(in_words(frame))
    print(f"\n{settings.out / 'ablation.json'}, {settings.out / 'ablation.png'}")
    return 0


def check(settings: Settings) -> None:
    """Refuse numbers that cannot mean anything, before any work."""
    check_least(settings)
    if not 0 < settings.keep <= 1:
        raise InputError(f"--keep is {settings.keep}; give a fraction above 0 and at most 1")
    if settings.report_in is not None:
        if not (settings.report_in / REPORT).is_file():
            raise InputError(
                f"--report-in {settings.report_in} holds no {REPORT}; give a finished run's folder"
            )
        read_report(settings.report_in / REPORT)
    if settings.first_pairs >= settings.evaluations:
        raise InputError(
            f"--first-pairs is {settings.first_pairs} and --evaluations {settings.evaluations}; give fewer"
        )


def show_in(folder: Path, record: dict[str, Any]) -> None:
    """Add the ablation to the report of a finished run; `InputError` if that is of another parent."""
    report = read_report(folder / REPORT)
    if at(report, "parent.digest") != record["parent"]:
        raise InputError(
            f"{folder} is a run on the parent {at(report, 'parent.digest')}, and the ablation on "
            f"{record['parent']}; its results are kept, give the folder of a run on the same parent"
        )
    report["ablation"] = record
    try:
        write_html(report, folder / "report.html")
    except Exception as error:  # whatever numbers that cannot be make of a drawing
        raise InputError(
            f"{folder / REPORT} is damaged ({first_line(error)}); run its job again, the ablation's results "
            "are kept"
        ) from error
    write_json(report, folder / REPORT)


Variant = Callable[[Subject, Budget, Pairs, Indices, Settings, int], tuple[list[Pair], int]]
"""(subject, budget, store, first architectures, settings, seed) -> pairs in order, choices left."""


def predicted(pruning: bool, learned: bool) -> Variant:
    """The main job's search, with or without its two parts."""

    def search(
        subject: Subject, budget: Budget, pairs: Pairs, first: Indices, settings: Settings, seed: int
    ) -> tuple[list[Pair], int]:
        def make() -> Predictor:
            if learned:
                return seeded(seed)(settings.predictor)
            return no_correction()  # the additive line alone

        found: Explored = explore(
            subject.space, budget, subject.encoding, make,
            in_full(pairs, subject.meter, subject.shape, budget), first,
            reference=subject.reference, total=settings.evaluations, rounds=settings.rounds,
            trials=settings.trials, seed=seed, pruning=pruning,
        )  # fmt: skip
        return found.pairs, int(found.space.depths.sum())

    return search


def evolution(
    subject: Subject, budget: Budget, pairs: Pairs, first: Indices, settings: Settings, seed: int
) -> tuple[list[Pair], int]:
    """Mutations of the best measured, without predictions."""
    found = evolve(
        subject.space, budget, subject.meter, pairs, first, total=settings.evaluations,
        rounds=settings.rounds, seed=seed,
    )  # fmt: skip
    return found, int(subject.space.depths.sum())


def random(
    subject: Subject, budget: Budget, pairs: Pairs, first: Indices, settings: Settings, seed: int
) -> tuple[list[Pair], int]:
    """The same first architectures, every other one drawn on its own and filled up to the budget."""
    space, rng = subject.space, np.random.default_rng([seed, 3])
    rows = np.concatenate([first, random_cuts(space, budget, 2 * settings.evaluations, rng)])
    _, once = np.unique(space.widths(rows).reshape(len(rows), -1), axis=0, return_index=True)
    widths = space.widths(rows[np.sort(once)[: settings.evaluations]])
    found = build_pairs(pairs, subject.meter, subject.shape, budget, widths, "random")
    return found, int(space.depths.sum())


VARIANTS: dict[str, Variant] = {
    "predictor, pruned space": predicted(pruning=True, learned=True),
    "predictor, whole space": predicted(pruning=False, learned=True),
    "additive line, pruned space": predicted(pruning=True, learned=False),
    "additive line, whole space": predicted(pruning=False, learned=False),
    "no predictor: mutations": evolution,
    "no predictor: random": random,
}
"""By name; the first is the main job."""


def in_words(frame: pd.DataFrame) -> str:
    """One line a variant: perplexity of its best, mean and deviation over seeds, and how often it wins."""
    frame = frame.assign(perplexity=np.exp(-frame.score), other=np.exp(-frame.final_score))
    by = frame.groupby("variant", sort=False)
    first = frame[frame.variant == next(iter(VARIANTS))].set_index("seed").final_score
    shown = pd.DataFrame(
        {
            "perplexity": by.perplexity.mean(),
            "on other windows": by.other.mean(),
            "± seeds": by.other.std().fillna(0.0),
            "better than the first": by.apply(
                lambda rows: f"{int((rows.set_index('seed').final_score > first).sum())} of {len(rows)}",
                include_groups=False,
            ),
            "choices left": by.choices_left.mean(),
            "evaluations": by.evaluations.mean(),
        }
    )
    return shown.rename_axis(None).to_string(
        float_format="{:.3f}".format,
        formatters={name: "{:.0f}".format for name in ("choices left", "evaluations")},
    )


def draw(frame: pd.DataFrame, reference: float, settings: Settings) -> None:
    """The best so far against evaluations, mean over seeds, over the parent's perplexity."""
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, rows in frame.groupby("variant", sort=False):
        curves = np.exp(reference - np.array([row[: rows.evaluations.min()] for row in rows.best_so_far]))
        steps = np.arange(1, curves.shape[1] + 1)
        (line,) = axes.plot(steps, curves.mean(0), label=name)
        spread = curves.std(0)
        axes.fill_between(
            steps,
            curves.mean(0) - spread,
            curves.mean(0) + spread,
            color=line.get_color(),
            alpha=0.12,
            linewidth=0,
        )
    best = np.exp(reference - max(max(row) for row in frame.best_so_far))
    last = np.exp(reference - min(max(row) for row in frame.best_so_far))  # of the worst search
    axes.set(
        xlabel="real evaluations",
        ylabel="best so far, perplexity over the parent's",
        title=f"{Path(settings.parent).name} at {settings.keep:g}, {settings.seeds} seeds",
        ylim=(best - 0.01, max(best * 1.15, last + 0.02)),
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(settings.out / "ablation.png", dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(run(Settings, main))
