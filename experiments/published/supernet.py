"""LLM Compression with NAS (arXiv 2410.06479): does one trained super-network hold all good small models?

The parent's units are put in order of importance once: heads and FFN channels in every block by mean
activation, hidden channels by activation or rotated onto their principal directions, blocks by influence. A
subnet is a prefix of all of them, the same in every block. A grid of subnets over all sizes is
chosen, the shared weights are trained on it by the sandwich rule with in-place distillation, and NSGA-II
searches the trained super-network for the Pareto front of validation loss against parameters or measured
latency. The best within the budget is taken out as a plain model. One super-network serves every `--keep` and
later runs.

Against the authors' scripts: every block has an order of its own, distillation is over the vocabulary, a
grid's bins are tried a bounded number of times, latency is wall-clock time in turn with the parent's, and
head width is left alone, since a prefix of a head would tear its rotary pairs.

    python -m experiments.published.supernet --parent FOLDER --corpus FOLDER --keep 0.8 0.5
    python -m experiments.published.supernet --hidden-order rotation --steps 400 --rank 32 --objective latency
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from data.errors import InputError
from experiments.command_line import option, run
from experiments.published.case import Case
from experiments.published.outcome import Outcome, run_system
from experiments.published.super_network import (
    MODEL,
    Making,
    SuperNetwork,
    loss_of,
    space_of,
    stream_of,
    super_network,
)
from nas.architecture import Architecture
from nas.building import measure_each
from nas.evaluate import evaluate
from nas.latency import device_name, measure_latency
from nas.pairs import Pairs, Setting
from nas.subnet import cut
from nas.supernet.front import Point, front_of, search_front
from nas.supernet.space import UniformSpace

PAIRS = "pairs.journal"


@dataclass(frozen=True)
class Settings(Making):
    """The making of the super-network, and the search in it."""

    searcher: Literal["nsga2", "grid"] = option(
        "nsga2", "search with NSGA-II, or measure the grid alone", group="search"
    )
    objective: Literal["parameters", "latency"] = option(
        "parameters", "what the front weighs loss against: all parameters, or prefill time over the parent's",
        group="search",
    )  # fmt: skip
    measurements: int = option(40, "subnets measured at each fraction", group="search", least=1)
    front_from: float = option(
        0.6, "smallest share of the budget that the front goes down to; 0 for all", group="search"
    )
    finalists: int = option(4, "best of them compared on the final windows", group="search", least=1)


def prune(case: Case, keep: float, settings: Settings) -> Outcome:
    """The best subnet within the budget of a super-network that is trained once."""
    _check(settings)
    limit = case.budget(keep).limits["block_parameters"]
    smallest = space_of(case.shape, list(range(case.shape.blocks)), settings).smallest
    least = case.cost(smallest)["block_parameters"] / limit
    if least > 1:
        raise InputError(
            f"the smallest subnet keeps {keep * least:.3f} of the blocks, more than --keep {keep:g}; give a "
            f"--floor below {settings.floor:g}"
        )
    whole = super_network(case, settings)

    def load(architecture: Architecture) -> float:
        return whole.cost(architecture)["block_parameters"] / limit

    points = _measured(case, whole, settings, load)
    finalists = sorted((p for p in points if load(p.architecture) <= 1), key=lambda point: point.loss)
    final = {
        point.architecture: loss_of(case, whole, point.architecture, case.text.final)
        for point in finalists[: settings.finalists]
    }
    best = min(final, key=final.__getitem__)
    trained = whole.record["training"]
    return Outcome(
        cut(whole.model, whole.shape, best, own=True),
        best,
        [
            f"a super-network ordered by {settings.criterion}, hidden channels by {stream_of(settings)}, "
            f"blocks by {settings.block_criterion}",
            f"trained for {settings.steps} steps of {settings.train_batch} windows, {settings.strategy} on "
            f"{len(whole.grid.architectures)} subnets of a {settings.grid} grid, "
            + (f"adapters of rank {settings.rank}" if settings.rank else "all weights"),
            f"{len(points)} subnets measured by {settings.searcher}, {len(final)} on final windows",
        ],
        {
            "front": [_told(case, whole, point, settings.objective) for point in front_of(points)],
            "finalists": [
                {"architecture": a.to_json(), "perplexity": float(np.exp(v))} for a, v in final.items()
            ],
            "final_over_parent": float(np.exp(final[best] - _parent_loss(case))),
            "training": trained,
            "unreached_bins": whole.record["unreached"],
            "subnets": whole.space.size,
            "super_network": str(whole.folder / MODEL),
        },
        basis=(whole.model.config, whole.shape),
    )


def _measured(
    case: Case, whole: SuperNetwork, settings: Settings, load: Callable[[Architecture], float]
) -> list[Point]:
    """Subnets within the budget as measured, each once for all fractions and runs."""
    store = Pairs(
        str(whole.folder / PAIRS),
        Setting({"objective": settings.objective, "windows": len(case.text.pairs),
                 "device": device_name(case.parent.device)}),
    )  # fmt: skip
    bar = tqdm(total=settings.measurements, desc="search", unit="subnet", leave=False)

    def measured(architecture: Architecture) -> tuple[float, dict[str, float]]:
        subnet = cut(whole.model, whole.shape, architecture)
        cost = float(whole.cost(architecture)["parameters"])
        if settings.objective == "latency":
            own, parent = measure_latency([subnet, case.parent], context=settings.seq_len)
            cost = own.prefill_ms / parent.prefill_ms
        loss = evaluate(subnet, case.text.pairs, batch_size=settings.batch_size).nll
        return -loss, {"cost": cost}

    def measure(architecture: Architecture) -> Point:
        (pair,) = measure_each(store, [architecture], measured, settings.searcher, quiet=True)
        bar.update()
        return Point(architecture, -pair.score, pair.measured["cost"])

    def excess(architecture: Architecture) -> float:
        relative = load(architecture)
        return max(relative - 1, settings.front_from - relative)

    within = [each for each in reversed(whole.grid.architectures) if load(each) <= 1]
    with bar:
        if settings.searcher == "grid":
            return [measure(each) for each in within]
        found = search_front(
            whole.space, excess, measure, starts=[*_tight(whole.space, load), *within],
            measurements=settings.measurements, seed=settings.seed,
        )  # fmt: skip
    if not found:
        raise InputError(
            f"no subnet keeps {settings.front_from:g} to 1 times the budget; give a smaller --front-from"
        )
    return found


def _tight(space: UniformSpace, load: Callable[[Architecture], float]) -> list[Architecture]:
    """Where a search starts: the largest within the budget of all knobs together, of each knob alone, and of
    heads and FFN channels together at each depth."""
    parts = np.linspace(1, 0, max(map(len, space.knobs.values())))
    full = space.choice_of(space.largest)
    lines = [[space.at(part) for part in parts]]
    for name, choices in space.knobs.items():
        lines.append([space.build({**full, name: value}) for value in reversed(choices)])
    for depth in reversed(space.knobs["depth"]):
        less = [space.choice_of(space.at(part)) for part in parts]
        lines.append([space.build({**each, "hidden": full["hidden"], "depth": depth}) for each in less])
    fitting = [[each for each in line if load(each) <= 1] for line in lines]
    return [line[0] for line in fitting if line]


def _told(case: Case, whole: SuperNetwork, point: Point, objective: str) -> dict[str, Any]:
    return {
        "architecture": json.loads(point.architecture.to_json()),
        "kept": case.kept(point.architecture),
        "parameters": whole.cost(point.architecture)["parameters"],
        "perplexity": float(np.exp(point.loss)),
        **({"prefill_over_parent": point.cost} if objective == "latency" else {}),
    }


def _parent_loss(case: Case) -> float:
    return evaluate(case.parent, case.text.final, batch_size=case.settings.batch_size).nll


def _check(settings: Settings) -> None:
    if not 0 <= settings.front_from <= 1:
        raise InputError(f"--front-from is {settings.front_from}; give 0 to 1")


def main(settings: Settings) -> None:
    """One result for each fraction asked for."""
    run_system("supernet", prune, settings)


if __name__ == "__main__":
    sys.exit(run(Settings, main))
