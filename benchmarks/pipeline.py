"""Where the time of the search goes: building pairs, searching with the predictor, and what comes out faster.

- building pairs as the main job does (sampler, cut, evaluation, store): the share outside forward passes
  (wanted at most 15 %; the loss is not one of them), and pairs/s
- the predictor: candidates/s through the fitted one in batched calls (wanted at least 20,000), and
  proposals/s of a whole search, with what else it does: mutating, fitting to the budget, Optuna
- prefill of a subnet with half of the parent's block parameters, saved as a checkpoint and loaded again,
  against its parent's (wanted at least 1.5 times as fast); `--checkpoint` measures that of a finished run

    python -m benchmarks.pipeline
    python -m benchmarks.pipeline --parent ORGANISATION/MODEL --corpus Salesforce/wikitext:wikitext-2-raw-v1
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks._setup import Common, Ready, forward_clock, in_turn, make_ready, ratio, show
from experiments.command_line import option, run
from nas.building import SubnetMeter, build_pairs
from nas.cost import Budget
from nas.encoding import Encoding
from nas.exploration import fit_predictor
from nas.export import save_checkpoint
from nas.families import blocks_of
from nas.latency import measure_latency
from nas.pairs import Pair, Pairs, Setting
from nas.proposals import Indices, fit, mutate
from nas.sampling import SAMPLERS, starts
from nas.search import Predict, search
from nas.shape import Widths, architecture_of
from nas.subnet import cut
from predictors import make_predictor


@dataclass(frozen=True)
class Settings(Common):
    """What is measured."""

    keep: float = option(0.5, "kept fraction of the blocks' parameters", group="input")
    checkpoint: Path | None = option(
        None, "a saved subnet of the parent for the prefill; without it one is made", group="input"
    )
    pairs: int = option(24, "pairs that are built", group="run")
    known: int = option(120, "pairs that the predictor is fitted on, with made-up scores", group="run")
    trials: int = option(240, "Optuna trials of a search", group="run")


def main(settings: Settings) -> None:
    """Measure and print."""
    ready = make_ready(settings)
    budget = ready.budget("block_parameters", settings.keep)
    print(
        f"{settings.parent}: keep {settings.keep}, {len(ready.eval_windows)} windows of {settings.seq_len} "
        f"tokens in an evaluation, batches of {settings.batch_size}, {settings.threads} thread(s)"
    )
    building(settings, ready, budget)
    searching(settings, ready, budget)
    prefill(settings, ready, budget)


def building(settings: Settings, ready: Ready, budget: Budget) -> None:
    """Build pairs in a fresh store and split the time."""
    rng = np.random.default_rng(settings.seed)
    measure = SubnetMeter(
        ready.parent, ready.shape, ready.prepared.bank, ready.eval_windows, settings.batch_size
    )
    measure(ready.space.widths(ready.space.depths[None] - 1)[0])  # the first pass warms up
    with tempfile.TemporaryDirectory() as folder, forward_clock() as clock:
        pairs = Pairs(f"{folder}/pairs.journal", Setting({"benchmark": "pipeline"}))
        start = perf_counter()
        rows = SAMPLERS["seeded"](ready.space, budget, settings.pairs, rng, ready.hints)
        sampled = perf_counter() - start
        build_pairs(pairs, measure, ready.shape, budget, ready.space.widths(rows), "benchmark", quiet=True)
        spent = perf_counter() - start
    rows_of = {
        "the whole stage": (spent, ""),
        "sampler": (sampled, ""),
        "forward passes": (clock.seconds, ""),
        "outside them: cuts, losses, the store": (spent - clock.seconds, "<= 15 %"),
    }
    show(
        f"Building {settings.pairs} pairs: {settings.pairs / spent:.2f} pairs/s",
        [
            ["", "seconds", "share", "wanted"],
            *([name, f"{s:.3f}", f"{s / spent:.1%}", limit] for name, (s, limit) in rows_of.items()),
        ],
    )


def searching(settings: Settings, ready: Ready, budget: Budget) -> None:
    """Candidates a second: the fitted predictor alone, and a whole search."""
    rng = np.random.default_rng(settings.seed)
    rows = SAMPLERS["seeded"](ready.space, budget, settings.known, rng, ready.hints)
    encoding = Encoding(ready.cost, ready.prepared.attention_error, ready.prepared.mlp_error)
    known = made_up(ready, encoding, ready.space.widths(rows), rng)
    start = perf_counter()
    predict = fit_predictor(make_predictor("xgboost", settings.seed), encoding, known, reference=-3.0)
    fitting = perf_counter() - start

    lines = [
        ["", "a second", "wanted"],
        [f"fits of the predictor on {settings.known} pairs", f"{1 / fitting:.1f}", ""],
    ]
    for size in (640, 2560, 10240):
        many: Indices = rng.integers(0, ready.space.depths, (size, len(ready.space.depths)))
        widths = ready.space.widths(many)
        actions: dict[str, Callable[[], object]] = {
            "encoding": lambda w=widths: encoding(w),  # type: ignore[misc]
            "all": lambda w=widths: predict(w),  # type: ignore[misc]
            "fit": lambda m=many: fit(ready.space, budget, mutate(ready.space, m, rng), rng),  # type: ignore[misc]
        }
        seconds = {name: median(each) for name, each in in_turn(actions, settings.repeats).items()}
        lines.append([f"candidates scored, calls of {size}", f"{size / seconds['all']:,.0f}", ">= 20,000"])
        lines.append([f"  encoded, calls of {size}", f"{size / seconds['encoding']:,.0f}", ""])
        lines.append([f"  mutated and fitted to the budget, {size}", f"{size / seconds['fit']:,.0f}", ""])

    scoring = Counted(predict)
    start = perf_counter()
    found = search(ready.space, budget, scoring, starts=rows[:30], seed=settings.seed, trials=settings.trials)
    spent = perf_counter() - start
    lines += [
        [f"a search of {settings.trials} trials: proposals", f"{found.proposals / spent:,.0f}", ""],
        ["  proposals in the time of its predictor alone", f"{scoring.rows / scoring.seconds:,.0f}", ""],
        ["  share of its time in the predictor", f"{scoring.seconds / spent:.1%}", ""],
    ]
    show("Searching with the predictor", lines)


class Counted:
    """A predictor that keeps count of its rows and seconds."""

    def __init__(self, predict: Predict) -> None:
        self.predict, self.rows, self.seconds = predict, 0, 0.0

    def __call__(self, widths: Widths) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Predicted scores."""
        start = perf_counter()
        scores = self.predict(widths)
        self.rows, self.seconds = self.rows + len(widths), self.seconds + perf_counter() - start
        return scores


def made_up(ready: Ready, encoding: Encoding, widths: Widths, rng: np.random.Generator) -> list[Pair]:
    """Pairs that were not measured: damage adds up over local errors and the worst of them, with noise."""
    features = encoding(widths)[:, list(encoding.errors)].astype(np.float64)
    weights = rng.gamma(2.0, 0.05, features.shape[1])
    damage = (features @ weights + features.max(1) ** 2) * np.exp(rng.normal(0, 0.03, len(features)))
    return [
        Pair(architecture_of(row, ready.shape), -3.0 - float(lost), "made up")
        for row, lost in zip(widths, damage, strict=True)
    ]


def prefill(settings: Settings, ready: Ready, budget: Budget) -> None:
    """Latency of a saved and reloaded subnet beside its parent's."""
    with tempfile.TemporaryDirectory() as folder:
        saved = settings.checkpoint
        if saved is None:
            rng = np.random.default_rng(settings.seed)
            rows = ready.space.widths(starts(ready.space, budget, rng, ready.hints))
            # The most uneven of the structured starts in which no module is skipped.
            whole = rows[(rows > 0).all((1, 2))]
            widths = max(whole, key=lambda row: float((row / row.mean(0)).std()))
            architecture = architecture_of(widths, ready.shape)
            subnet = cut(ready.parent, ready.shape, architecture, ready.prepared.bank, own=True)
            saved = save_checkpoint(subnet, ready.config, ready.shape, architecture, f"{folder}/subnet")
        loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            saved, dtype=ready.parent.dtype, trust_remote_code=True
        )
        loaded = loaded.to(ready.parent.device).eval().requires_grad_(False)
        models = [ready.parent, loaded]
        lines = [["", "parent, ms", "subnet, ms", "times as fast", "wanted"]]
        for context, batch in ((settings.seq_len, 1), (settings.seq_len, settings.batch_size)):
            rounds = [
                measure_latency(models, batch=batch, context=context, tokens=2, repeats=3)
                for _ in range(settings.repeats)
            ]
            before, after = ([turn[i].prefill_ms for turn in rounds] for i in range(2))
            lines.append(
                [
                    f"prefill, {batch} x {context} tokens",
                    f"{median(before):.2f}",
                    f"{median(after):.2f}",
                    f"{ratio(before, after):.2f}",
                    ">= 1.50",
                ]
            )
    parameters, ours = ([p for m in [model] for p in blocks_of(m).parameters()] for model in models)
    share = sum(map(torch.numel, ours)) / sum(map(torch.numel, parameters))
    show(f"Prefill of a reloaded {type(loaded).__name__} with {share:.3f} of the block parameters", lines)


if __name__ == "__main__":
    sys.exit(run(Settings, main))
