"""What every published system starts from and ends in: a parent on a text, and a subnet with its record."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, TypeVar

import numpy as np
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from data.corpus import load_corpus
from data.errors import InputError
from data.windows import encode, spread, windows
from experiments.command_line import option
from experiments.results import versions
from experiments.stages import say
from experiments.text import Text, read_text
from nas.architecture import Architecture
from nas.card import model_card
from nas.cost import Budget, CostModel, budget_of
from nas.evaluate import evaluate
from nas.evidence import Evidence
from nas.export import needs_code, save_checkpoint
from nas.families import count, shape_of
from nas.finalists import round_weights
from nas.parent import check_seq_len, choose_device, choose_dtype, digest_of, load_parent, stored_dtype
from nas.recovery import Recipe
from nas.recovery.teacher import LiveTeacher
from nas.recovery.training import recover
from nas.report import write_json
from nas.shape import Shape

RESULT = "result.json"
S = TypeVar("S", bound="Common")


@dataclass(frozen=True)
class Common:
    """Settings that all systems share, so that they are compared at equal size, data and evaluation."""

    parent: str = option("demo", "model to compress: a Hub id, a local folder or demo", group="input")
    corpus: str = option(
        "demo",
        "text to calibrate on (train), search on (validation) and report on (test), as in compress",
        group="input",
    )
    more_corpora: tuple[str, ...] = option((), "further texts whose test split is reported on", group="input")
    seq_len: int = option(256, "tokens in a window", group="input")
    calibration_windows: int = option(128, "training windows for criteria and repairs", group="input")
    search_windows: int = option(32, "validation windows that a search measures on", group="input")
    final_windows: int = option(128, "other validation windows, that results are chosen on", group="input")
    test_windows: int = option(256, "test windows of the final scores; 0 takes all", group="input")
    keep: tuple[float, ...] = option(
        (0.8, 0.6, 0.5), "fractions of the blocks' parameters to keep", group="budget"
    )
    recovery: Literal["lora", "full"] = option(
        "lora", "how the subnet is trained afterwards, where it is", group="recovery"
    )
    recovery_steps: int = option(
        0, "steps of distillation from the parent after the cut; 0 for none", group="recovery"
    )

    device: str = option("auto", "auto, cpu or cuda", group="run")
    dtype: str = option("auto", "auto (bfloat16 on CUDA, else float32), float32 or bfloat16", group="run")
    batch_size: int = option(8, "windows in a forward pass", group="run")
    seed: int = option(0, "of everything that is drawn", group="run")
    out: Path = option(Path("runs/published"), "folder of checkpoints and results", group="run")
    cache: Path = option(Path("runs/cache"), "folder of tokens and orders that runs share", group="run")


@dataclass(frozen=True)
class Case:
    """A parent with its text, the evidence on it, and what it scores; read only."""

    settings: Common
    parent: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: PreTrainedConfig
    digest: str
    shape: Shape
    cost: CostModel
    text: Text
    tests: Mapping[str, Tensor]

    @cached_property
    def evidence(self) -> Evidence:
        """On the calibration windows."""
        return Evidence(self.parent, self.shape, self.text.calibration, self.settings.batch_size)

    @cached_property
    def parent_nll(self) -> dict[str, float]:
        """Of the parent on each test text."""
        return self.test(self.parent)

    def budget(self, keep: float) -> Budget:
        """At most this fraction of the blocks' parameters."""
        return budget_of(self.cost, keep)

    def kept(self, architecture: Architecture) -> float:
        """The fraction of the blocks' parameters that an architecture keeps."""
        whole = self.cost(self.shape.parent)["block_parameters"]
        return self.cost(architecture)["block_parameters"] / whole

    def test(self, model: PreTrainedModel) -> dict[str, float]:
        """The negative log-likelihood on each test text."""
        size = self.settings.batch_size
        return {name: evaluate(model, each, batch_size=size).nll for name, each in self.tests.items()}


@dataclass(frozen=True)
class Outcome:
    """What a system made of a case: a subnet of its own, its architecture, how it was made in a few
    sentences, what else is worth a record, and the checkpoint where the system has saved one itself. `basis`
    is the configuration and the shape of what it was cut out of, where that is no longer the parent's: a
    rotation unties the head."""

    model: PreTrainedModel
    architecture: Architecture
    method: list[str]
    details: dict[str, Any] = field(default_factory=dict)
    saved: Path | None = None
    basis: tuple[PreTrainedConfig, Shape] | None = None


System = Callable[[Case, float, S], Outcome]
"""Prunes the case's parent to a fraction of its blocks' parameters."""


def open_case(settings: Common) -> Case:
    """Load what the settings name. Raises `InputError` for whatever cannot be."""
    for keep in settings.keep:
        if not 0 < keep <= 1:
            raise InputError(f"--keep is {keep}; give fractions above 0 and at most 1")
    smallest = {"seq_len": 2, "calibration_windows": 1, "search_windows": 1, "final_windows": 1}
    smallest |= {"batch_size": 1, "seed": 0, "test_windows": 0, "recovery_steps": 0}
    for name, least in smallest.items():
        if getattr(settings, name) < least:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag} is {getattr(settings, name)}; give {least} or more")
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
        settings.cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{error}; give another --out or --cache") from error
    device = choose_device(settings.device)
    parent, tokenizer = load_parent(settings.parent, device, choose_dtype(settings.dtype, device))
    check_seq_len(parent, settings.seq_len)
    shape = shape_of(parent)
    text = read_text(
        settings.corpus, tokenizer, shape.vocab, settings.seq_len, np.random.default_rng(settings.seed),
        settings.cache, calibration=settings.calibration_windows, pairs=settings.search_windows,
        final=settings.final_windows, test=settings.test_windows,
        training=settings.recovery_steps * settings.batch_size,
    )  # fmt: skip
    tests = {text.name: text.test}
    for name in settings.more_corpora:
        found = load_corpus(name)
        split = windows(encode(tokenizer, found.split("test"), settings.cache), settings.seq_len)
        tests[found.name] = spread(split, min(settings.test_windows or len(split), len(split)))
    return Case(
        settings, parent, tokenizer, parent.config, digest_of(parent), shape,
        CostModel(shape, settings.seq_len, parent.dtype.itemsize), text, tests,
    )  # fmt: skip


def produce(case: Case, name: str, keep: float, system: System[S], settings: S) -> dict[str, Any]:
    """Run a system at one fraction, save its checkpoint and its record under `--out`, and return the record;
    what the same settings produced before is returned as it is."""
    folder = case.settings.out / f"{name}-{keep:g}"
    asked = _asked(settings, keep)
    before = _read(folder / RESULT)
    if before is not None and before["asked"] == asked:
        return before
    say(f"{name} at {keep:g}")
    start = perf_counter()
    outcome = system(case, keep, settings)
    if settings.recovery_steps:
        outcome = recovered(case, outcome, settings)
    stored = stored_dtype(settings.parent, case.parent.dtype)
    round_weights(outcome.model, stored)  # what is scored is what is saved
    seconds = perf_counter() - start
    result = record_of(case, name, keep, outcome, seconds, folder / "checkpoint") | {"asked": asked}
    if outcome.saved is None:
        save_checkpoint(
            outcome.model, *_basis(case, outcome), outcome.architecture, folder / "checkpoint",
            tokenizer=case.tokenizer, generation_config=case.parent.generation_config,
            card=_card(case, outcome, result), dtype=stored,
        )  # fmt: skip
    write_json(result, folder / RESULT)  # last: its presence says that all is there
    return result


def recovered(case: Case, outcome: Outcome, settings: Common) -> Outcome:
    """The same subnet after training towards the parent's logits on training text, as good as it was on the
    way by the windows that results are chosen on."""
    training = case.text.training
    with tqdm(total=settings.recovery_steps, desc="recovery", unit="step", leave=False) as bar:
        after = recover(
            outcome.model, training, method=settings.recovery, steps=settings.recovery_steps,
            recipe=Recipe(batch_size=settings.batch_size, seed=settings.seed),
            teacher=LiveTeacher(case.parent), validation=case.text.final, progress=bar.update,
        )  # fmt: skip
    tokens = settings.recovery_steps * settings.batch_size * settings.seq_len
    return replace(
        outcome,
        model=after.model,
        method=[*outcome.method, f"recovered: {settings.recovery}, {settings.recovery_steps} steps, "
                f"{tokens:,} tokens, distilled from the parent"],
        details={**outcome.details, "before_recovery": {
            name: float(np.exp(value)) for name, value in case.test(outcome.model).items()
        }},
    )  # fmt: skip


def record_of(
    case: Case, name: str, keep: float, outcome: Outcome, seconds: float, checkpoint: Path
) -> dict[str, Any]:
    """What is known of a system's subnet, its test scores measured here."""
    nll, dense, main = case.test(outcome.model), case.parent_nll, case.text.name
    return {
        "system": name,
        "keep": keep,
        "kept": case.kept(outcome.architecture),
        "parameters_kept": count([outcome.model]) / count([case.parent]),
        "perplexity": float(np.exp(nll[main])),
        "over_parent": float(np.exp(nll[main] - dense[main])),
        "perplexities": {corpus: float(np.exp(value)) for corpus, value in nll.items()},
        "parent_perplexities": {corpus: float(np.exp(value)) for corpus, value in dense.items()},
        "seconds": seconds,
        "checkpoint": str(outcome.saved or checkpoint),
        "architecture": asdict(outcome.architecture),
        "method": outcome.method,
        "details": outcome.details,
        "protocol": {
            "parent": case.digest,
            "test": {corpus: list(each.shape) for corpus, each in case.tests.items()},
            "calibration": list(case.text.calibration.shape),
            "dtype": str(case.parent.dtype),
        },
        "versions": versions(),
    }


def run_system(name: str, system: System[S], settings: S) -> None:
    """The main of a system's own script: every fraction asked for, and a table."""
    case = open_case(settings)
    results = [produce(case, name, keep, system, settings) for keep in settings.keep]
    print(table(results))


def table(results: list[dict[str, Any]]) -> str:
    """A line for each result."""
    corpora = sorted({corpus for result in results for corpus in result["perplexities"]})
    head = f"{'system':22}{'keep':>6}{'kept':>8}" + "".join(f"{corpus[-16:]:>18}" for corpus in corpora)
    lines = [head + f"{'× parent':>10}{'seconds':>9}"]
    if results:
        dense = results[0]["parent_perplexities"]
        lines.append(
            f"{'parent':22}{'':6}{'1.000':>8}" + "".join(f"{dense[corpus]:18.2f}" for corpus in corpora)
            + f"{1.0:10.3f}"
        )  # fmt: skip
    for result in results:
        lines.append(
            f"{result['system']:22}{result['keep']:6g}{result['kept']:8.3f}"
            + "".join(f"{result['perplexities'].get(corpus, np.nan):18.2f}" for corpus in corpora)
            + f"{result['over_parent']:10.3f}{result['seconds']:9.0f}"
        )
    return "\n".join(lines)


def _asked(settings: Common, keep: float) -> dict[str, Any]:
    """All settings that a result depends on, as they come back from JSON."""
    elsewhere = {"out", "cache", "device", "keep"}
    asked = {
        each.name: getattr(settings, each.name) for each in fields(settings) if each.name not in elsewhere
    }
    read: dict[str, Any] = json.loads(json.dumps({**asked, "keep": keep}, default=str))
    return read


def _read(path: Path) -> dict[str, Any] | None:
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        return result if "asked" in result else None
    except (OSError, ValueError):
        return None


def _card(case: Case, outcome: Outcome, result: Mapping[str, Any]) -> str:
    config, shape = _basis(case, outcome)
    own = replace(case.cost, shape=shape)(outcome.architecture)
    whole = case.cost(case.shape.parent)
    return model_card(
        outcome.architecture,
        case.shape,
        parent=case.settings.parent,
        licence="apache-2.0" if case.settings.parent == "demo" else None,
        method=outcome.method,
        protocol=f"{', '.join(f'{name}: {len(each)} windows' for name, each in case.tests.items())} of "
        f"{case.settings.seq_len} tokens; {case.parent.dtype}; parent {case.digest}; "
        + " ".join(["python -m", _module(), *sys.argv[1:]]),
        scores={
            f"{corpus}, test perplexity": (value, result["parent_perplexities"][corpus])
            for corpus, value in result["perplexities"].items()
        },
        costs={name: (own[name], whole[name]) for name in own},
        code=needs_code(outcome.model, config, shape, outcome.architecture),
    )


def _basis(case: Case, outcome: Outcome) -> tuple[PreTrainedConfig, Shape]:
    return outcome.basis or (case.config, case.shape)


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else "experiments.published.compare"
