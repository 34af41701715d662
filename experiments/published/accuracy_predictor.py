"""Pruning LLMs via Accuracy Predictor (arXiv 2309.09507): do boosted trees find better rates than one?

Every module of every block but the ends has a pruning rate. Architectures with rates tied over neighbouring
blocks and with free ones are cut by first-order Taylor importance and really evaluated: log-perplexity on two
texts and, with `--target-tasks`, accuracy. One boosted regressor a target learns from 7 of 10 pairs; its
permutation importances on the others reshape the ranges (rates of modules that matter are bounded, those of
modules that do not may rise); of 10,000 architectures drawn from these the predicted best are really
evaluated, and the best of them is taken. `--recovery-steps` trains it afterwards.

    python -m experiments.published.accuracy_predictor --parent FOLDER --corpus FOLDER --second-corpus FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.inspection import permutation_importance
from sklearn.model_selection import train_test_split

from data.errors import InputError
from data.tasks import TASKS
from experiments.command_line import option, run
from experiments.published.case import Case
from experiments.published.outcome import Outcome, run_system
from experiments.published.protection import Protected, protected
from experiments.published.targets import Targets, make_targets
from experiments.results import seeded
from nas.architecture import Architecture
from nas.building import measure_each
from nas.cost import Budget
from nas.importance import CRITERIA
from nas.pairs import Pair, Pairs, Setting
from nas.ranking import permute, rank
from nas.shape import Shape, Widths, architecture_of
from nas.subnet import cut
from predictors import PREDICTORS
from predictors.metrics import kendall_tau, precision_at_k, r2
from predictors.protocol import Predictor

Rates = NDArray[np.float64]
"""(n, modules): the share of units cut from each module: attention and MLP of each block not spared."""

STEPS = 5
"""Rates in a range: 0.1 to 0.5 in the paper."""


@dataclass(frozen=True)
class Settings(Protected):
    """The paper's numbers; `--tied 80 --free 25 --draws 2000` is a fifth of them."""

    second_corpus: str = option(
        "", "a second text whose log-perplexity is a target too (validation split); none by default",
        group="system",
    )  # fmt: skip
    target_tasks: tuple[str, ...] = option(
        (), "tasks whose accuracy is a target too", group="system", metavar="NAME"
    )
    target_items: int = option(200, "items of each (validation split)", group="system", least=1)
    tied: int = option(400, "pairs with rates tied over --tie neighbouring blocks", group="system", least=5)
    free: int = option(125, "pairs with free rates", group="system", least=5)
    tie: int = option(4, "blocks that share a rate in tied pairs", group="system", least=1)
    draws: int = option(10_000, "architectures predicted in the reshaped space", group="system", least=1)
    verified: int = option(18, "of these that are really evaluated", group="system", least=1)
    protect: float = option(0.09, "as elsewhere; the paper prunes blocks 3 to 29 of 32", group="system")
    predictor: str = option("xgboost", f"one of {', '.join(PREDICTORS)}, or an import path", group="system")


def prune(case: Case, keep: float, settings: Settings) -> Outcome:
    """Pairs, predictor, reshaped ranges, draws, verification."""
    rng = np.random.default_rng(settings.seed)
    spared = protected(case, settings.protect)
    modules = Modules(case.shape, tuple(b for b in range(case.shape.blocks) if b not in spared))
    budget = case.budget(keep)
    grid = ranges(case, keep, modules)
    ordered = permute(case.parent, case.shape, rank(case.evidence, CRITERIA["taylor_element1"]))
    targets = make_targets(case, settings.second_corpus, settings.target_tasks, settings.target_items)
    store = Pairs(
        str(case.settings.out / f"accuracy_predictor-{keep:g}" / "pairs.journal"),
        Setting({"targets": targets.fields, "parent": case.digest, "tokens": case.text.digests,
                 "calibration": len(case.text.calibration), "seq_len": settings.seq_len,
                 "seed": settings.seed, "dtype": str(case.parent.dtype)}),
    )  # fmt: skip

    def measured(architecture: Architecture) -> tuple[float, dict[str, float]]:
        found = targets.measure(cut(ordered, case.shape, architecture))
        return found[targets.names[0]], found

    def build(rates: Rates, origin: str) -> tuple[Rates, list[Pair]]:
        """The pairs of these rates, without what could not be measured, and the rates of each."""
        architectures = [architecture_of(widths, case.shape) for widths in modules.widths(rates)]
        known = {pair.architecture: pair for pair in measure_each(store, architectures, measured, origin)}
        kept = [each in known for each in architectures]
        return rates[kept], [known[each] for each in architectures if each in known]

    first = np.concatenate(
        [tied(grid, modules, settings.tied, settings.tie, rng), drawn(grid, settings.free, rng)]
    )
    first, pairs = build(first, "tied and free")
    learned = Learned.of(settings, case, targets, modules, first, pairs)
    reshaped = reshape(grid, learned.importance)
    candidates = near_budget(reshaped, modules, budget, settings.draws, rng)
    mean = learned.predict(candidates).mean(1)
    best = candidates[np.argsort(-mean, kind="stable")[: settings.verified]]
    _, checked = build(best, "verified")
    standard = learned.standardise(np.array([[p.measured[name] for name in targets.names] for p in checked]))
    winner = checked[int(standard.mean(1).argmax())].architecture
    return Outcome(
        cut(ordered, case.shape, winner, own=True),
        winner,
        [
            f"units ranked by taylor_element1; blocks {spared} protected",
            f"{len(pairs)} pairs; rates found by {settings.predictor} on {', '.join(targets.names)}",
            f"{len(checked)} of {len(candidates)} predicted architectures verified; no repair",
        ],
        {"predictor": learned.report, "importance": learned.importance.tolist(),
         "ranges": reshaped.tolist(), "modules": modules.names},
    )  # fmt: skip


@dataclass(frozen=True)
class Modules:
    """The modules that have rates, attention and MLP of each of `blocks` in turn."""

    shape: Shape
    blocks: tuple[int, ...]

    @property
    def names(self) -> list[str]:
        """One a rate."""
        return [f"{block}.{kind}" for block in self.blocks for kind in ("attention", "mlp")]

    def widths(self, rates: Rates) -> Widths:
        """(n, blocks, 3): whole units, to the nearest, one at least."""
        shape = self.shape
        full = np.array([shape.kv_groups, shape.queries_per_group, shape.ffn])
        widths = np.tile(full, (len(rates), shape.blocks, 1))
        for column, kind in ((0, 0), (1, 2)):
            kept = np.maximum(1, np.rint((1.0 - rates[:, column::2]) * full[kind])).astype(np.int64)
            widths[:, list(self.blocks), kind] = kept
        return widths

    def features(self, rates: Rates, budget: Budget) -> NDArray[np.float64]:
        """(n, modules + 1): the rates that the whole units come to, and the size relative to the budget. The
        same architecture has the same features."""
        widths, shape = self.widths(rates), self.shape
        real = np.empty_like(rates)
        for column, kind in ((0, 0), (1, 2)):
            full = (shape.kv_groups, shape.queries_per_group, shape.ffn)[kind]
            real[:, column::2] = 1.0 - widths[:, list(self.blocks), kind] / full
        return np.concatenate([real, budget.load(widths)[:, None]], axis=1)


def ranges(case: Case, keep: float, modules: Modules) -> Rates:
    """The paper's rates 0.1 to 0.5, scaled so that their mean prunes what is asked: (modules, STEPS)."""
    free = len(modules.blocks) / case.shape.blocks
    mean = (1.0 - keep) / free
    if mean >= 1.0:
        raise InputError(
            f"with {case.shape.blocks - len(modules.blocks)} blocks protected {1 - free:.2f} stays at least, "
            f"more than --keep {keep}; give a larger --keep or --protect 0"
        )
    steps = np.minimum(mean * np.linspace(1 / 3, 5 / 3, STEPS), 0.95)
    return np.tile(steps, (2 * len(modules.blocks), 1))


def drawn(grid: Rates, count: int, rng: np.random.Generator) -> Rates:
    """Every module's rate from its own range: (count, modules)."""
    picks = rng.integers(0, grid.shape[1], size=(count, len(grid)))
    return grid[np.arange(len(grid)), picks]


def tied(grid: Rates, modules: Modules, count: int, tie: int, rng: np.random.Generator) -> Rates:
    """Rates shared by `tie` neighbouring blocks, attention and MLP apart: (count, modules)."""
    groups = -(-len(modules.blocks) // tie)
    picks = rng.integers(0, grid.shape[1], size=(count, groups, 2)).repeat(tie, axis=1)
    picks = picks[:, : len(modules.blocks)].reshape(count, -1)
    return grid[np.arange(len(grid)), picks]


def reshape(grid: Rates, importance: NDArray[np.float64]) -> Rates:
    """Narrower ranges for the quarter of modules that matters most, the lower three fifths of their rates,
    and wider ones for the quarter that matters least, up to 1.4 times the largest; others keep theirs.

    The paper's 0.1 to 0.3 and 0.2 to 0.7 were set by hand; this is their rule by quartiles.
    """
    result = grid.copy()
    order = np.argsort(importance)
    quarter = max(1, len(order) // 4)
    for module in order[-quarter:]:
        result[module] = np.linspace(grid[module, 0], grid[module, 2], STEPS)
    for module in order[:quarter]:
        result[module] = np.linspace(grid[module, 1], min(0.95, 1.4 * grid[module, -1]), STEPS)
    return result


def near_budget(
    grid: Rates, modules: Modules, budget: Budget, count: int, rng: np.random.Generator, tries: int = 50
) -> Rates:
    """Different architectures whose size is within 3 % below the budget, so that the predictor compares at
    equal size: rates (at most count, modules). Those of a draw that misses are shifted towards the size, all
    alike, each as far as its range goes."""
    found = np.empty((0, len(grid)))
    low, high = grid.min(1), grid.max(1)
    for _ in range(tries):
        rates = drawn(grid, count, rng)
        for _ in range(8):
            load = budget.load(modules.widths(rates))[:, None]
            rates = np.where(
                (load > 1.0) | (load < 0.97), np.clip(rates + 0.7 * (load - 0.985), low, high), rates
            )
        load = budget.load(modules.widths(rates))
        found = np.concatenate([found, rates[(load <= 1.0) & (load >= 0.97)]])
        flat = modules.widths(found).reshape(len(found), 3 * modules.shape.blocks)
        found = found[np.sort(np.unique(flat, axis=0, return_index=True)[1])]
        if len(found) >= count:
            break
    if not len(found):
        raise InputError("no draw came near the budget; give a larger --keep or --protect 0")
    return found[:count]


@dataclass(frozen=True)
class Learned:
    """Regressors on standardised targets, fitted on all pairs, with what 7 of 10 told about the others."""

    models: Sequence[Predictor]
    modules: Modules
    budget: Budget
    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    importance: NDArray[np.float64]
    report: dict[str, Any]

    @classmethod
    def of(
        cls,
        settings: Settings,
        case: Case,
        targets: Targets,
        modules: Modules,
        rates: Rates,
        pairs: list[Pair],
    ) -> Learned:
        """Split 7 to 3, report, take importances on the held-out part, refit on all."""
        budget = case.budget(1.0)  # size relative to the parent
        _, first = np.unique([pair.architecture.digest for pair in pairs], return_index=True)
        X = modules.features(rates[first], budget)
        y = np.array([[pairs[i].measured[name] for name in targets.names] for i in first])
        centre, scale = y.mean(0), np.maximum(y.std(0), 1e-12)
        z = (y - centre) / scale
        train, held = train_test_split(np.arange(len(X)), train_size=0.7, random_state=settings.seed)
        make = seeded(settings.seed)
        report: dict[str, Any] = {"pairs": len(X), "held_out": len(held)}
        importances = []
        for column, name in enumerate(targets.names):
            judged = _Estimator(make(settings.predictor)).fit(X[train], z[train, column])
            guess, truth = judged.predict(X[held]), z[held, column]
            k = max(1, len(held) // 5)
            report[name] = {
                "r2": r2(truth, guess),
                "kendall_tau": kendall_tau(truth, guess),
                "precision_at_k": precision_at_k(truth, guess, k),
            }
            found = permutation_importance(
                judged, X[held], truth, n_repeats=10, random_state=settings.seed,
                scoring="neg_mean_squared_error",
            )  # fmt: skip
            importances.append(np.maximum(found.importances_mean[:-1], 0.0))
        models = [make(settings.predictor) for _ in targets.names]
        for column, model in enumerate(models):
            model.fit(X, z[:, column])
        return cls(models, modules, budget, centre, scale, np.mean(importances, axis=0), report)

    def predict(self, rates: Rates) -> NDArray[np.float64]:
        """(n, targets), standardised, larger is better."""
        X = self.modules.features(rates, self.budget)
        return np.stack([model.predict(X) for model in self.models], axis=1)

    def standardise(self, targets: NDArray[np.float64]) -> NDArray[np.float64]:
        """Measured targets (n, targets) on the predictions' scale."""
        return (targets - self.centre) / self.scale


class _Estimator(BaseEstimator):
    """Any predictor as scikit-learn's inspection wants it."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def fit(self, X: NDArray[np.float64], y: NDArray[np.float64]) -> _Estimator:
        self.predictor.fit(X, y)
        return self

    def predict(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.predictor.predict(X)


def main(settings: Settings) -> None:
    """One result for each fraction asked for."""
    for name in settings.target_tasks:
        if name in settings.tasks and name in TASKS and len(TASKS[name].parts) == 1:
            raise InputError(
                f"{name} has one labelled split, and what is searched on cannot be reported on; take it "
                "out of --tasks or --target-tasks"
            )
    run_system("accuracy_predictor", prune, settings)


if __name__ == "__main__":
    sys.exit(run(Settings, main))
