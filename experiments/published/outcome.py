"""From the subnet that a system makes to its checkpoint, what that scores when loaded, and its record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from time import perf_counter
from types import NoneType
from typing import Any, TypeVar

from tqdm import tqdm
from transformers import PreTrainedConfig, PreTrainedModel

from data.errors import InputError, short
from data.json_text import from_json
from experiments.published.card import card
from experiments.published.case import Case, Common, open_case
from experiments.published.table import table
from experiments.results import versions
from experiments.stages import say
from nas.architecture import Architecture
from nas.export import save_again, save_checkpoint
from nas.families import blocks_of, count, plain
from nas.parent import load_checkpoint, stored_dtype
from nas.recovery import Recipe
from nas.recovery.teacher import LiveTeacher
from nas.recovery.training import recover
from nas.report import write_json
from nas.report.record import at, number
from nas.report.words import is_number
from nas.shape import Shape

RESULT, STATE = "result.json", "recovery.safetensors"
S = TypeVar("S", bound="Common")


@dataclass(frozen=True)
class Outcome:
    """What a system made of a case: a subnet of its own, its architecture, how it was made in a few
    sentences, what else is worth a record, and, where the system has saved one itself, the checkpoint and the
    seconds that it took. `basis` is the configuration and the shape of what it was cut out of, where that is
    no longer the parent's: a rotation unties the head."""

    model: PreTrainedModel
    architecture: Architecture
    method: list[str]
    details: dict[str, Any] = field(default_factory=dict)
    saved: Path | None = None
    seconds: float | None = None
    basis: tuple[PreTrainedConfig, Shape] | None = None


KINDS: dict[str, tuple[type, ...]] = {
    "system": (str,), "checkpoint": (str,), "asked": (dict,), "asked.parent": (str,), "architecture": (dict,),
    "costs": (dict,), "details": (dict,), "method": (list,), "recovery": (dict, NoneType),
    "measured": (dict, NoneType),
}  # fmt: skip
NUMBERS = ("keep", "kept", "parameters_kept", "seconds")
"""What every record of a result holds, measured or not yet."""

System = Callable[[Case, float, S], Outcome]
"""Prunes the case's parent to a fraction of its blocks' parameters."""


def produce(case: Case, name: str, keep: float, system: System[S], settings: S) -> Iterator[dict[str, Any]]:
    """The record of a system at one fraction and, with a `recovery`, that of the same subnet trained.

    Checkpoints and records are saved under `--out`. What the same settings made before is not made again, and
    what was measured on the same texts and tasks is not measured again. Raises `InputError` where a folder
    holds what other settings made.
    """
    folder = case.settings.out.absolute() / f"{name}-{keep:g}"
    asked = _asked(case, settings, keep)
    made = produced(folder, asked)
    say(f"{name} at {keep:g}" + ": there already" * (made is not None))
    if made is None:
        made = _make(case, name, keep, system, settings, folder) | {"asked": asked}
        _write(made, folder)
    yield _scored(case, made, folder)
    if settings.recovery is not None:
        folder = folder.with_name(f"{folder.name}-{settings.recovery}{settings.recovery_steps}")
        asked = asked | {"recovery": settings.recovery, "recovery_steps": settings.recovery_steps}
        trained = produced(folder, asked)
        if trained is None:
            trained = _trained(case, made, settings.recovery, folder) | {"asked": asked}
            _write(trained, folder)
            (folder / STATE).unlink(missing_ok=True)
        yield _scored(case, trained, folder)


def read_results(out: Path) -> list[dict[str, Any]]:
    """All finished records under a folder, with the places of their checkpoints."""
    found = []
    for path in sorted(out.absolute().glob(f"*/{RESULT}")):
        try:
            result = checked(from_json(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            say(f"{path} is left out: it is no whole result ({error})")
            continue
        if result["measured"]:
            found.append({**result, "checkpoint": str(path.parent / result["checkpoint"])})
    return found


def checked(result: Any) -> dict[str, Any]:
    """The record of a result; ValueError, which names a part, where what a table, a picture or a card takes
    of it is missing or of another kind."""
    measured = bool(at(result, "measured"))
    wrong = [path for path, kinds in KINDS.items() if not isinstance(at(result, path, ...), kinds)]
    wrong += [path for path in NUMBERS if number(result, path) is None]
    if measured and number(result, "over_parent") is None:
        wrong.append("over_parent")
    for who in ("", "parent.") if measured else ():
        texts, tasks = at(result, f"{who}perplexities"), at(result, f"{who}tasks")
        wrong += [f"{who}perplexities"] * (
            not isinstance(texts, dict) or not all(map(is_number, texts.values()))
        )
        wrong += [f"{who}tasks"] * (
            not isinstance(tasks, dict) or any(number(each, "acc") is None for each in tasks.values())
        )
    place = Path(str(at(result, "checkpoint")))
    if place.is_absolute() or ".." in place.parts:
        wrong.append("checkpoint")  # whose code is run: it is this run's own, or none
    if wrong:
        raise ValueError(f"{wrong[0]} is {str(at(result, wrong[0]))[:60]!r}")
    return dict(result)


def run_system(name: str, system: System[S], settings: S) -> None:
    """The main of a system's own script: every fraction asked for, and a table."""
    case, results = open_case(settings), []
    for keep in dict.fromkeys(settings.keep):
        results += list(produce(case, name, keep, system, settings))
    print(table(results))
    say("\n".join(f"{each['system']} at {each['keep']:g}: {each['checkpoint']}" for each in results))


def _make(case: Case, name: str, keep: float, system: System[S], settings: S, folder: Path) -> dict[str, Any]:
    """Prune, save, and tell what came out; nothing is measured yet."""
    start = perf_counter()
    outcome = system(case, keep, settings)
    seconds = outcome.seconds or perf_counter() - start
    config, shape = outcome.basis or (case.config, case.shape)
    checkpoint = outcome.saved or save_checkpoint(
        outcome.model, config, shape, outcome.architecture, folder / "checkpoint", tokenizer=case.tokenizer,
        generation_config=case.parent.generation_config,
        dtype=stored_dtype(case.settings.parent, case.parent.dtype),
    )  # fmt: skip
    return {
        "system": name,
        "keep": keep,
        "kept": count(blocks_of(outcome.model)) / count(blocks_of(case.parent)),
        "parameters_kept": count([outcome.model]) / count([case.parent]),
        "seconds": seconds,
        "recovery": None,
        "checkpoint": str(checkpoint.absolute()),
        "architecture": asdict(outcome.architecture),
        "costs": replace(case.cost, shape=shape)(outcome.architecture),
        "method": outcome.method,
        "details": outcome.details,
        "measured": None,
        "versions": versions(),
    }


def _trained(case: Case, made: Mapping[str, Any], method: str, folder: Path) -> dict[str, Any]:
    """The same subnet trained towards the parent's logits on training text, its weights the best on the way
    by the windows that results are chosen on. A training that was interrupted goes on."""
    settings, steps = case.settings, case.settings.recovery_steps
    folder.mkdir(parents=True, exist_ok=True)
    say(f"{made['system']} at {made['keep']:g}: recovery, {method}, {steps} steps")
    with tqdm(total=steps, desc="recovery", unit="step", leave=False) as bar:
        after = recover(
            _load(case, made["checkpoint"]), case.text.training, method=method, steps=steps,
            recipe=Recipe(batch_size=settings.batch_size, seed=settings.seed),
            teacher=LiveTeacher(case.parent), validation=case.text.final, state=folder / STATE,
            progress=bar.update,
        )  # fmt: skip
    checkpoint = save_again(after.model, Path(made["checkpoint"]), folder / "checkpoint")
    tokens = steps * settings.batch_size * settings.seq_len
    same = ("keep", "kept", "parameters_kept", "architecture", "costs", "details", "versions")
    return {
        **{name: made[name] for name in same},
        "system": f"{made['system']}+{method}",
        "seconds": made["seconds"] + after.seconds,
        "recovery": {"method": method, "steps": steps, "tokens": tokens, "kept_step": after.kept_step},
        "checkpoint": str(checkpoint),
        "method": [*made["method"], f"recovered: {method}, {steps} steps, {tokens:,} tokens, distilled from "
                   "the parent"],
        "measured": None,
    }  # fmt: skip


def _scored(case: Case, made: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The record with what the checkpoint scores, as anybody would load it; stored and put on its card."""
    protocol = {
        "parent": case.digest,
        "dtype": str(case.parent.dtype),
        "calibration": list(case.text.calibration.shape),
        **case.measures.record,
    }
    if made["measured"] == protocol:
        return made
    dense = case.parent_scores
    own = case.measures.of(_load(case, made["checkpoint"]), case.tokenizer)
    main = case.text.name
    result = {
        **made,
        "perplexity": own["perplexities"][main],
        "over_parent": own["perplexities"][main] / dense["perplexities"][main],
        **own,
        "parent": dense,
        "measured": protocol,
    }
    if Path(made["checkpoint"]).parent == folder:  # one that a system has saved itself has its own card
        (folder / "checkpoint" / "README.md").write_text(card(case, result), encoding="utf-8")
    _write(result, folder)
    return result


def _load(case: Case, checkpoint: str) -> PreTrainedModel:
    model = load_checkpoint(checkpoint, trust=True, dtype=case.parent.dtype)
    return plain(model.to(case.parent.device).requires_grad_(False))


def _asked(case: Case, settings: Common, keep: float) -> dict[str, Any]:
    """All that a checkpoint depends on, as it comes back from JSON."""
    elsewhere = {
        "out", "cache", "device", "dtype", "keep", "more_corpora", "tasks", "task_folder", "task_items",
        "test_windows", "recovery", "recovery_steps",
    }  # fmt: skip
    asked = {
        each.name: getattr(settings, each.name) for each in fields(settings) if each.name not in elsewhere
    }
    asked |= {"keep": keep, "digest": case.digest, "tokens": dict(case.text.digests)}
    asked["dtype"] = str(case.parent.dtype)
    read: dict[str, Any] = json.loads(json.dumps(asked, default=str))
    return read


def produced(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record in a folder, if its checkpoint is there too; `InputError` if other settings made it."""
    try:
        result = checked(from_json((folder / RESULT).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
    theirs = result["asked"]
    result["checkpoint"] = str(folder / result["checkpoint"])
    if theirs != asked:
        name = min(name for name in theirs.keys() | asked if theirs.get(name) != asked.get(name))
        raise InputError(
            f"{folder} was made with {name[:40]} {short(theirs.get(name))}, not {asked.get(name)!r}; give "
            "another --out"
        )
    return result if any(Path(result["checkpoint"]).glob("*.safetensors")) else None


def _write(result: Mapping[str, Any], folder: Path) -> None:
    """The record, with its checkpoint's place below the folder, so that both can be moved."""
    place = Path(result["checkpoint"]).relative_to(folder)
    write_json({**result, "checkpoint": str(place)}, folder / RESULT)
