"""Does the order of subnets change when they are trained?

Measures structured architectures of one size, and mutations of them, as they are after one-pass repair and
after some steps of distillation from the parent, all on the same validation windows, and compares the orders:
Kendall's tau, where the best before ends, and what choosing it costs. How far the same subnets keep their
order on other validation windows says how much of that is noise.

    python -m experiments.ranking_flips --parent demo --corpus demo --keep 0.5 --steps 20 60

Every score is kept as soon as it exists; the same command again goes on where it stopped.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedModel

from data.errors import InputError, short
from data.json_text import from_json
from experiments.command_line import check_least, option, run
from experiments.results import usable, versions
from experiments.stages import Stages
from experiments.subject import OfSubject, open_parent, prepared_of
from nas.building import SubnetMeter
from nas.cost import Budget, CostModel, budget_of
from nas.evaluate import evaluate
from nas.proposals import Indices, check_reachable, fit, mutate
from nas.recovery import METHODS, Recipe
from nas.recovery.teacher import stored_teacher
from nas.recovery.training import recover
from nas.report import write_json
from nas.sampling import Hints, starts
from nas.shape import architecture_of
from nas.space import SearchSpace
from predictors.metrics import kendall_tau, regret

RESULT = "ranking_flips.json"


@dataclass(frozen=True)
class Settings(OfSubject):
    """All that the answer depends on."""

    seq_len: int = option(128, "tokens in a window", group="input", least=2)
    pair_windows: int = option(64, "validation windows that subnets are ordered by", group="input", least=1)
    other_windows: int = option(
        64, "others, on which the order is compared with itself", group="input", least=1
    )

    keep: float = option(0.5, "fraction of the blocks' parameters to keep", group="subnets")
    architectures: int = option(24, "how many", group="subnets")
    steps: tuple[int, ...] = option((20, 60), "recovery steps to compare", group="training")
    method: str = option("full", "which weights are trained", group="training", choices=METHODS)
    training_batch: int = option(4, "windows in a step", group="training", least=1)
    top_k: int = option(64, "of the parent's logits, stored once", group="training")
    learning_rate: float | None = option(None, "the highest; none: the method's own", group="training")

    out: Path = option(Path("runs/ranking_flips"), f"folder of {RESULT}", group="run")


def main(settings: Settings) -> None:
    """Cut, train, score, compare."""
    check(settings)
    usable(settings.cache)
    usable(settings.out, "--out")
    stages, rng = Stages(), np.random.default_rng(settings.seed)
    recipe = Recipe(
        batch_size=settings.training_batch, learning_rate=settings.learning_rate, seed=settings.seed
    )
    with stages("load"):
        opened = open_parent(
            settings, rng, final=settings.other_windows,
            training=max(settings.steps) * settings.training_batch,
        )  # fmt: skip
        parent, shape, space, text = opened.parent, opened.shape, opened.space, opened.text
        budget = budget_of(CostModel(shape, settings.seq_len, parent.dtype.itemsize), settings.keep)
        check_reachable(space, budget)
    with stages("rank and repair"):
        prepared = prepared_of(opened, settings)
    with stages("teacher"):
        teacher = stored_teacher(
            parent, text.training, settings.top_k, settings.cache, batch_size=settings.batch_size
        )
    widths = space.widths(around_starts(space, budget, settings.architectures, rng, prepared.hints))
    meter = SubnetMeter(prepared.parent, shape, prepared.bank, text.pairs, settings.batch_size)

    def score(model: PreTrainedModel) -> list[float]:
        """On the windows that order subnets, and on the others."""
        return [
            evaluate(model, each, batch_size=settings.batch_size).score for each in (text.pairs, text.final)
        ]

    path = settings.out / RESULT
    mine = json.loads(json.dumps(asdict(settings), default=str))
    protocol = {
        **opened.calibrated, "pair_windows": len(text.pairs), "other_windows": len(text.final),
        "training_windows": len(text.training), "recipe": asdict(recipe),
    }  # fmt: skip
    record: dict[str, Any] = earlier(path, mine, json.loads(json.dumps(protocol))) or {
        "settings": mine,
        "protocol": protocol,
        "parent_score": score(parent),
        "scores": {},
    }  # fmt: skip
    found = {architecture_of(row, shape).digest: row.tolist() for row in widths}
    record["widths"] = found  # KV groups, queries per group and FFN channels, block by block
    counts = (0, *settings.steps)
    with stages("subnets"), tqdm(total=len(widths) * sum(settings.steps), unit="step", leave=False) as bar:
        for row, digest in zip(widths, found, strict=True):
            known = record["scores"].setdefault(digest, {})
            for steps in counts:
                if str(steps) not in known:
                    recovered = recover(
                        meter.subnet(row), text.training, method=settings.method, steps=steps, recipe=recipe,
                        teacher=teacher,
                    )  # fmt: skip
                    known[str(steps)] = score(recovered.model)
                    write_json(record, path)
                bar.update(steps)
    record["comparison"] = compare(record["scores"], record["parent_score"], counts)
    record["command"] = " ".join(["python -m experiments.ranking_flips", *sys.argv[1:]])
    record["seconds"], record["versions"] = stages.seconds, versions()
    write_json(record, path)
    print(table(record))


def check(settings: Settings) -> None:
    """Refuse numbers that cannot mean anything, before any work."""
    if settings.architectures < 4 or not settings.steps or min(settings.steps) < 1:
        raise InputError(
            f"--architectures is {settings.architectures} and --steps {settings.steps}; give at least 4, and "
            "one or more numbers of at least 1"
        )
    check_least(settings)


def around_starts(
    space: SearchSpace, budget: Budget, count: int, rng: np.random.Generator, hints: Hints
) -> Indices:
    """Structured architectures at the budget and, for the second half or more, mutations of them."""
    first = starts(space, budget, rng, hints)[: count // 2]
    near = fit(space, budget, mutate(space, first[rng.integers(0, len(first), 4 * count)], rng), rng)
    rows = np.concatenate([first, near])
    _, places = np.unique(rows, axis=0, return_index=True)
    return rows[np.sort(places)[:count]]


def earlier(path: Path, settings: dict[str, Any], protocol: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier run of the same settings on the same parent and text left; `InputError` if it was one
    of others."""
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = from_json(path.read_text(encoding="utf-8"))
        theirs = {**record["settings"], **{name: settings[name] for name in ("device", "out", "cache")}}
        before = {**record["protocol"]}
        record["parent_score"] = _two(record["parent_score"])
        record["scores"] = {
            digest: {steps: _two(scores) for steps, scores in found.items()}
            for digest, found in record["scores"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}); delete it to start afresh"
        ) from error
    if theirs != settings:
        name = min(name for name in theirs.keys() | settings if theirs.get(name) != settings.get(name))
        raise InputError(
            f"{path} belongs to a run with {name[:40]} {short(theirs.get(name))}, not "
            f"{settings.get(name)!r}; give another --out"
        )
    if before != protocol:
        name = min(name for name in before.keys() | protocol if before.get(name) != protocol.get(name))
        raise InputError(
            f"{path} belongs to a run whose {name[:40]} was {short(before.get(name))}, not "
            f"{protocol.get(name)!r}: the parent, the text or the dtype has changed; give another --out"
        )
    return record


def _two(scores: Any) -> list[float]:
    """The scores of a subnet on the windows that order subnets, and on the others."""
    own, other = map(float, scores)
    return [own, other]


def compare(
    scores: dict[str, dict[str, list[float]]], parent: list[float], counts: tuple[int, ...]
) -> list[dict[str, Any]]:
    """For each number of steps, how its order of the subnets relates to that before training."""
    table = np.array([[each[str(steps)] for steps in counts] for each in scores.values()])  # (n, steps, 2)
    before = table[:, 0, 0]
    better = np.argsort(-before)[: (len(before) + 1) // 2]
    best = int(before.argmax())
    rows = []
    for index, steps in enumerate(counts):
        after, other = table[:, index, 0], table[:, index, 1]
        rows.append(
            {
                "steps": steps,
                "mean_damage": float(parent[0] - after.mean()),
                "least_damage": float(parent[0] - after.max()),
                "spread": float(after.std()),
                "tau": kendall_tau(after, before),
                "tau_of_better_half": kendall_tau(after[better], before[better]),
                "tau_on_other_windows": kendall_tau(after, other),
                "tau_of_better_half_on_other_windows": kendall_tau(after[better], other[better]),
                "rank_of_best_before": int((after > after[best]).sum()) + 1,
                "regret_of_best_before": regret(after, before),
            }
        )
    return rows


def table(record: dict[str, Any]) -> str:
    """One line for each number of steps."""
    found = len(record["scores"])
    lines = [
        f"{found} subnets; damage in nats; tau with the order before training, and in brackets among the "
        f"{(found + 1) // 2} best before; the same order on other windows: noise",
        "steps  least damage  mean damage   spread             tau    other windows  best before  it costs",
        "                                                                              is now no.      nats",
    ]
    for row in record["comparison"]:
        lines.append(
            f"{row['steps']:5}  {row['least_damage']:12.4f}  {row['mean_damage']:11.4f}  "
            f"{row['spread']:7.4f}  "
            f"{row['tau']:5.2f} ({row['tau_of_better_half']:5.2f})   "
            f"{row['tau_on_other_windows']:5.2f} ({row['tau_of_better_half_on_other_windows']:5.2f})  "
            f"{row['rank_of_best_before']:11}  {row['regret_of_best_before']:8.4f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(Settings, main))
