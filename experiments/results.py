"""The output folder of a run: whose it is, whether it is finished, and what the report says."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.errors import InputError, first_line
from data.json_text import from_json
from experiments.guarded import Guarded
from experiments.text import Text
from nas.architecture import Architecture
from nas.building import Estimate, table
from nas.card import model_card
from nas.cost import Budget, CostModel
from nas.damage import DamagePredictor, no_correction
from nas.encoding import Encoding
from nas.engines import ENGINES
from nas.evaluate import Scores
from nas.finalists import Contender
from nas.latency import Latency
from nas.latency_table import LatencyTable
from nas.pairs import Pair
from nas.repair import REPAIRS
from nas.report import read_report, terminal_table, write_json
from nas.report.record import METRICS
from nas.shape import Shape, architecture_of, widths_of
from nas.space import SearchSpace
from nas.what_if import Within
from predictors import make_predictor
from predictors.also_from import AlsoFrom
from predictors.metrics import kendall_tau, precision_at_k, regret
from predictors.protocol import Predictor
from predictors.validation import out_of_fold, verdict

REPORT, SETTINGS, STORE, TIMES = "report.json", "settings.json", "pairs.journal", "stages.json"
FEWEST_PAIRS = 10
"""That a verdict on a predictor takes."""
WHEREABOUTS = ("out", "cache", "device", "storage", "workers", "launcher")
"""Settings that say where a run is carried out, not what it finds; a device, as far as latencies allow."""


SHOWN = 4
"""Settings that are named where more of them differ."""


def claim(out: Path, settings: Any) -> None:
    """Make `out` the folder of these settings.

    Raises `InputError` if it cannot be written or holds what was measured under other settings; nothing in it
    is changed then.
    """
    fields = {name: value for name, value in asdict(settings).items() if name not in WHEREABOUTS}
    table = fields.get("latency_table")
    if isinstance(table, Path) and table.is_file():  # what is in it counts, not what it is called
        fields["latency_table"] = hashlib.sha256(table.read_bytes()).hexdigest()[:16]
    mine = json.loads(json.dumps(fields, default=str))
    path = out / SETTINGS
    try:
        if path.is_file() and ((out / STORE).exists() or (out / REPORT).exists()):  # nothing to mix otherwise
            # Options that came later than a run had their defaults in it.
            since = {each.name: each.default for each in dataclasses.fields(settings) if each.name in mine}
            stored = from_json(path.read_text())
            if not isinstance(stored, dict):
                raise ValueError("it holds no settings")
            theirs = json.loads(json.dumps(since, default=str)) | stored
            if theirs == mine:
                return
            other = {name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)}
            if other:
                before, now = (
                    ", ".join(_as_typed(name, each.get(name)) for name in sorted(other)[:SHOWN])
                    for each in (theirs, mine)
                )
                raise InputError(
                    f"{out} belongs to a run with {before}, and this one has {now}; give another --out, or "
                    "the settings it was made with"
                )
        write_json(mine, path)
    except (OSError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        if isinstance(error, (ValueError, AttributeError)):
            raise InputError(
                f"{path} is damaged ({first_line(error)}); give another --out, or remove that file if all "
                "settings are those that the run was made with"
            ) from error
        raise InputError(f"the output folder {out} {_trouble(out, error)}; give another --out") from error


def usable(folder: Path, flag: str = "--cache") -> None:
    """Make the folder that an option names; `InputError` if that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} {_trouble(folder, error)}; give another {flag}") from error


def _as_typed(name: str, value: Any) -> str:
    """A setting as a person gives it: `--keep 0.5`, `--max-flops none`, `--no-random-search`."""
    words = name.replace("_", "-")[:40]
    if isinstance(value, bool):
        return f"--{words}" if value else f"--no-{words}"
    return f"--{words} {'none' if value is None else str(value)[:120]}"


def _trouble(folder: Path, error: Exception) -> str:
    if folder.exists() and not folder.is_dir():
        return "is a file"
    return f"cannot be used ({getattr(error, 'strerror', None) or error})"


def finished(out: Path, words: str = "finished before") -> bool:
    """Whether the run of this folder is complete; if so its table is printed again."""
    path = out / REPORT
    if not path.is_file():
        return False
    try:
        report = read_report(path)
    except InputError:
        return False  # half a file: the run is repeated from its pairs
    print(terminal_table(report))
    print(f"\n{words}: checkpoint {out / 'checkpoint'}, report {out / 'report.html'}")
    return True


def model_record(contender: Contender, cost: CostModel, test: Scores, latency: Latency) -> dict[str, Any]:
    """What a report says of one subnet."""
    costs, whole = cost(contender.architecture), cost(cost.shape.parent)
    return {
        "architecture": asdict(contender.architecture),
        "digest": contender.architecture.digest,
        "block_parameters_kept": costs["block_parameters"] / whole["block_parameters"],
        "parameters_kept": costs["parameters"] / whole["parameters"],
        "costs": costs,
        "scores": {"validation": contender.best.validation.record(), "test": test.record()},
        "latency": latency.record(),
        "predicted_latency": predicted_latency(contender.architecture, cost),
        "evaluations": contender.evaluations,
        "finalists": [
            {
                "digest": each.pair.architecture.digest,
                "origin": each.pair.origin,
                "score": each.pair.score,
                "validation_nll": each.validation.nll,
            }
            for each in contender.finalists
        ],
    }


def predicted_latency(architecture: Architecture, cost: CostModel) -> dict[str, float] | None:
    """What the latency table says of an architecture, in milliseconds as `Latency` has them."""
    if cost.latency is None:
        return None
    widths = widths_of(architecture, cost.shape)
    return {
        "prefill_ms": float(cost.latency.prefill(widths)),
        "decode_ms_per_token": float(cost.latency.decode(widths)),
    }


def latency_record(table: LatencyTable | None) -> dict[str, Any] | None:
    """What latencies were measured on, and how far sums of modules agree with whole subnets."""
    if table is None:
        return None
    whole = widths_of(table.shape.parent, table.shape)
    return {
        "words": table.words(),
        "request": asdict(table.request),
        **{
            name: {"parent": float(phase(whole)), "whole": phase.whole, **asdict(phase.calibration)}
            for name, phase in (("prefill", table.prefill), ("decode", table.decode))
        },
    }


def typical_size(pairs: Sequence[Pair], cost: CostModel) -> float:
    """The median fraction of the block parameters that the pairs keep."""
    sizes = [cost(pair.architecture)["block_parameters"] for pair in pairs]
    return float(np.median(sizes)) / cost(cost.shape.parent)["block_parameters"]


def front_record(found: Sequence[Within], cost: CostModel) -> list[dict[str, Any]]:
    """The best predicted subnet of each budget, none of which was measured."""
    whole = cost(cost.shape.parent)["block_parameters"]
    rows = []
    for each in found:
        architecture = architecture_of(each.widths, cost.shape)
        costs = cost(architecture)
        rows.append(
            {
                "limit": each.limit, "kept": costs["block_parameters"] / whole, "costs": costs,
                "predicted_score": each.predicted, "among_pairs": each.among_pairs,
                "digest": architecture.digest, "architecture": asdict(architecture),
            }
        )  # fmt: skip
    return rows


def predictor_record(
    name: str,
    make: Callable[[str], Predictor],
    pairs: Sequence[Pair],
    random_pairs: Sequence[Pair],
    encoding: Encoding,
    budget: Budget,
    reference: float,
    estimates: Sequence[Estimate] = (),
) -> dict[str, Any]:
    """How far the predictor can be trusted: out-of-fold over the search's own pairs, and, fitted on all of
    them, on the pairs of random search, none of which it ever saw. From `estimates` it learns, as it did in
    the search, and is not judged by them.

    Beside it the additive line alone, which the predictor corrects, and plain ridge on the same features.
    """
    widths, scores = table(list(pairs), encoding.cost.shape)
    features, load = encoding(widths), budget.load(widths)
    seen = {pair.architecture for pair in pairs} | {each.architecture for each in estimates}
    unseen = [pair for pair in random_pairs if pair.architecture not in seen]
    makers: dict[str, Callable[[], Predictor]] = {
        "chosen": lambda: DamagePredictor(make(name), reference, encoding.errors),
        "ridge": lambda: make("ridge"),
        "additive_line": lambda: DamagePredictor(no_correction(), reference, encoding.errors),
    }
    if len(pairs) < FEWEST_PAIRS:  # too few to hold any out: a budget that hardly anything fits
        nothing = dict.fromkeys(METRICS)
        return {"name": name, **nothing, "ridge": nothing, "additive_line": nothing}

    def judge(plain: Callable[[], Predictor]) -> tuple[dict[str, Any], np.ndarray]:
        def fresh() -> Predictor:
            if not estimates:
                return plain()
            rows, guesses = table(estimates, encoding.cost.shape)
            return AlsoFrom(plain(), encoding(rows), guesses)

        held_out = out_of_fold(fresh, features, scores)
        record: dict[str, Any] = verdict(scores, held_out, load, 1.0)
        if len(unseen) >= FEWEST_PAIRS:
            other, truth = table(unseen, encoding.cost.shape)
            guess = fresh().fit(features, scores).predict(encoding(other))
            record["random_pairs"] = quality(truth, guess)
        return record, held_out[0]

    record, predicted = judge(makers.pop("chosen"))
    columns = zip(scores.tolist(), predicted.tolist(), load.tolist(), strict=True)
    record["held_out"] = [
        {"measured": m, "predicted": p, "inside": abs(part - 1.0) <= record["band"]} for m, p, part in columns
    ]
    return {"name": name, **record, **{line: judge(fresh)[0] for line, fresh in makers.items()}}


def quality(truth: np.ndarray, guess: np.ndarray) -> dict[str, float]:
    """Rank metrics on pairs that all lie at the budget."""
    k = max(1, len(truth) // 5)
    return {
        "pairs": len(truth),
        "k": k,
        "kendall_tau": kendall_tau(truth, guess),
        "precision_at_k": precision_at_k(truth, guess, k),
        "regret": regret(truth, guess, k),
    }


def parent_record(name: str, digest: str, cost: CostModel) -> dict[str, Any]:
    """Who the parent is."""
    shape, whole = cost.shape, cost(cost.shape.parent)
    widths = ("blocks", "kv_groups", "queries_per_group", "ffn", "hidden")
    return {
        "name": name,
        "family": shape.family,
        "digest": digest,
        "parameters": whole["parameters"],
        "block_parameters": whole["block_parameters"],
        **{width: getattr(shape, width) for width in widths},
        "mlp_units": shape.mlp_units,
    }


def protocol_record(
    text: Text,
    seq_len: int,
    dtype: torch.dtype,
    stored: torch.dtype,
    device: torch.device,
    recovery_steps: int,
) -> dict[str, str]:
    """How every number of a report was measured, in words."""
    computed, saved = (str(each).removeprefix("torch.") for each in (dtype, stored))
    return {
        "corpus": text.name,
        **{f"corpus, {split}": where for split, where in text.source.items()},
        "dtype": f"computed in {computed}, subnets with their weights as saved, in {saved}",
        "device": str(device),
        "window": f"{seq_len} tokens, the first of each is not predicted",
        "calibration": f"{len(text.calibration)} training windows",
        "pairs": f"{len(text.pairs)} validation windows, one-pass repair"
        + f", {recovery_steps} steps of recovery" * (recovery_steps > 0),
        "validation": f"{len(text.final)} other validation windows, on which finalists were chosen",
        "test": f"{len(text.test)} test windows; KL is KL(parent || model) on them",
    }


def pairs_record(pairs: Sequence[Pair], cost: CostModel) -> list[dict[str, Any]]:
    """Every pair with the fraction of block parameters it keeps."""
    whole = cost(cost.shape.parent)["block_parameters"]
    return [
        {
            "digest": pair.architecture.digest,
            "score": pair.score,
            "origin": pair.origin,
            "kept": cost(pair.architecture)["block_parameters"] / whole,
        }
        for pair in pairs
    ]


def failures_record(failures: Mapping[Architecture, str]) -> list[dict[str, str]]:
    """Subnets that could not be measured, and why."""
    said = [{"digest": each.digest, "reason": reason} for each, reason in failures.items()]
    return sorted(said, key=lambda one: one["digest"])


def card(report: Mapping[str, Any], architecture: Architecture, shape: Shape, code: bool) -> str:
    """The checkpoint's model card; `code`: loading it takes the checkpoint's own code."""
    settings, own, before = report["settings"], report["subnet"], report["parent_scores"]
    protocol = report["protocol"]
    return model_card(
        architecture,
        shape,
        parent=settings["parent"],
        licence="apache-2.0" if settings["parent"] == "demo" else None,
        method=[
            f"units ranked by {settings['ranking']} on {protocol['calibration']}",
            f"{own['evaluations']} real evaluations of subnets",
            f"searched with {settings['predictor']} and Optuna",
            *[f"among what {ENGINES[settings['target']].words} can run"] * (settings["target"] != "hf"),
            REPAIRS[settings["repair"]].words,
            *[f"trained for {settings['recovery_steps']} steps towards the parent's logits"]
            * bool(settings["recovery_steps"]),
        ],
        protocol=f"{settings['corpus']}: {protocol['validation']}; {protocol['test']}; windows of "
        f"{protocol['window']}; {protocol['dtype']}; parent {report['parent']['digest']}, "
        f"seed {report['seed']}",
        scores={
            f"{name}, {split}": (own["scores"][split][name], before[split][name])
            for split in ("validation", "test")
            for name in ("perplexity", "accuracy")
        },
        costs={name: (own["costs"][name], report["budget"]["parent_costs"][name]) for name in own["costs"]},
        code=code,
    )


def space_record(space: SearchSpace, left: SearchSpace, dropped: Sequence[tuple[int, Any]]) -> dict[str, Any]:
    """Which choices the last pruning left, and the evidence against each that any round dropped."""
    return {
        "choices": {name: list(choices) for name, choices in space.knobs.items()},
        "left": {name: list(choices) for name, choices in left.knobs.items()},
        "dropped": [{"round": number, **asdict(item)} for number, item in dropped],
    }


def versions() -> dict[str, str]:
    """Of Python and the libraries that results depend on."""
    names = ("torch", "transformers", "xgboost", "scikit-learn", "optuna", "numpy", "pandas", "datasets")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def seeded(seed: int) -> Callable[[str], Predictor]:
    """Makes predictors by name with this seed; an unknown name raises `InputError`, and so do they where they
    fail."""

    def make(name: str) -> Predictor:
        try:
            return Guarded(name, make_predictor(name, seed))
        except ValueError as error:
            raise InputError(str(error)) from error

    return make
