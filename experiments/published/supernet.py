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

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel

from data.corpus import load_corpus
from data.errors import InputError
from data.windows import draw, encode, spread, windows
from experiments.command_line import option, run
from experiments.published.case import Case, Common
from experiments.published.outcome import Outcome, run_system
from experiments.stages import say
from nas.architecture import Architecture
from nas.block_importance import BLOCK_CRITERIA
from nas.cost import CostModel
from nas.evaluate import evaluate
from nas.families import shape_of
from nas.importance import CRITERIA
from nas.latency import device_name, measure_latency
from nas.pairs import Pairs, Setting
from nas.report import write_json
from nas.shape import Shape
from nas.subnet import cut
from nas.supernet.front import Point, front_of, search_front
from nas.supernet.grids import GRIDS, Grid
from nas.supernet.ordering import STREAMS, order
from nas.supernet.space import UniformSpace, uniform_space
from nas.supernet.strategies import STRATEGIES, Sandwich
from nas.supernet.training import TrainingRecipe, train

FORMAT = 2
"""Raised whenever a super-network is made differently from the same settings."""
RECORD, MODEL, PAIRS, STATE = "supernet.json", "model", "pairs.journal", "training.pt"


@dataclass(frozen=True)
class Settings(Common):
    """The scripts' settings, with a training of minutes; theirs is an epoch of batch 64, or five of 16."""

    criterion: str = option(
        "activation", "order of heads and FFN channels in a block", group="order", choices=CRITERIA
    )
    block_criterion: str = option("influence", "order of blocks", group="order", choices=BLOCK_CRITERIA)
    hidden_order: str = option(
        "activation",
        "order of hidden channels; rotation unties a tied head, none keeps all",
        group="order",
        choices=STREAMS,
    )
    fixed_hidden: bool = option(False, "keep all hidden channels", group="space")
    floor: float = option(0.5, "smallest share of each width and of the depth", group="space")
    grid: str = option("calibrated", "subnets that are trained", group="space", choices=GRIDS)
    bins: int = option(22, "bins of size of the grid", group="space", least=1)
    draws: int = option(4, "random subnets in a bin (the scripts: 10 to 50)", group="space", least=1)
    grid_windows: int = option(8, "search windows that these are scored on", group="space", least=1)
    steps: int = option(400, "training steps; 0 for none", group="training", least=0)
    strategy: str = option("sandwich-kd", "what a step passes through", group="training", choices=STRATEGIES)
    sampled: int = option(2, "random subnets in a sandwich", group="training")
    smallest: bool = option(True, "the smallest subnet in every sandwich", group="training")
    train_batch: int = option(4, "windows in a step", group="training")
    learning_rate: float | None = option(
        None, "highest rate; none for 1e-4, and 1e-3 with adapters", group="training"
    )
    rank: int = option(
        0, "rank of adapters that are trained alone; 0 trains all weights", group="training", least=0
    )
    alpha: float = option(16.0, "scale of the adapters, over their rank", group="training")
    dropout: float = option(0.05, "of what goes into adapters", group="training")
    adapt_ends: bool = option(False, "adapters for embeddings and head, too", group="training")
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


@dataclass(frozen=True)
class SuperNetwork:
    """A super-network with its space and grid; `folder` is where it is kept, `record` how it came about."""

    model: PreTrainedModel
    shape: Shape
    cost: CostModel
    space: UniformSpace
    grid: Grid
    folder: Path
    record: dict[str, Any]


def prune(case: Case, keep: float, settings: Settings) -> Outcome:
    """The best subnet within the budget of a super-network that is trained once."""
    _check(settings)
    limit = case.budget(keep).limits["block_parameters"]
    smallest = _space(case.shape, list(range(case.shape.blocks)), settings).smallest
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
        point.architecture: _loss(case, whole, point.architecture, case.text.final)
        for point in finalists[: settings.finalists]
    }
    best = min(final, key=final.__getitem__)
    trained = whole.record["training"]
    return Outcome(
        cut(whole.model, whole.shape, best, own=True),
        best,
        [
            f"a super-network ordered by {settings.criterion}, hidden channels by {_stream(settings)}, "
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


def super_network(case: Case, settings: Settings) -> SuperNetwork:
    """Ordered, with its grid, and trained; from the cache where the same settings left it there."""
    fields = _fields(case, settings)
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
    folder = case.settings.cache / f"supernet-{digest}"
    record = _record(folder / RECORD)
    if record is not None:
        say(f"super-network {digest} from {case.settings.cache}")
        model = AutoModelForCausalLM.from_pretrained(folder / MODEL, dtype=case.parent.dtype)
        model = model.to(case.parent.device).eval().requires_grad_(False)
        shape = shape_of(model)
        space = _space(shape, record["blocks"], settings)
        grid = Grid(tuple(map(Architecture.from_json, record["grid"])), tuple(record["unreached"]))
        return SuperNetwork(model, shape, _cost(case, shape), space, grid, folder, record)
    start = perf_counter()
    ordered = order(
        case.evidence,
        CRITERIA[settings.criterion],
        _stream(settings),
        BLOCK_CRITERIA[settings.block_criterion],
    )
    shape = shape_of(ordered.model)
    cost, space = _cost(case, shape), _space(shape, ordered.blocks, settings)
    ordering_seconds, start = perf_counter() - start, perf_counter()
    untrained = SuperNetwork(ordered.model, shape, cost, space, Grid((space.largest,)), folder, {})
    grid = _grid(case, untrained, settings)
    say(f"{settings.grid} grid of {len(grid.architectures)} in {perf_counter() - start:.0f} s")
    grid_seconds, start = perf_counter() - start, perf_counter()
    with tqdm(total=settings.steps, desc="training", unit="step", leave=False) as bar:
        trained = train(
            ordered.model, shape, grid, _training_windows(case, settings), settings.steps, _recipe(settings),
            bar.update, state=folder / STATE, fingerprint=digest,
        )  # fmt: skip
    seconds = perf_counter() - start
    say(f"{settings.steps} training steps in {seconds:.0f} s")
    record = {
        "settings": fields,
        "blocks": list(ordered.blocks),
        "grid": [architecture.to_json() for architecture in grid.architectures],
        "unreached": [list(bin) for bin in grid.unreached],
        "training": {
            "steps": settings.steps, "windows": settings.steps * settings.train_batch, "seconds": seconds,
            "ordering_seconds": ordering_seconds, "grid_seconds": grid_seconds,
            "history": [list(each) for each in trained.history],
        },
    }  # fmt: skip
    trained.model.save_pretrained(folder / MODEL)
    write_json(record, folder / RECORD)  # last: its presence says that all is there
    (folder / STATE).unlink(missing_ok=True)
    return SuperNetwork(trained.model, shape, cost, space, grid, folder, record)


def _measured(
    case: Case, whole: SuperNetwork, settings: Settings, load: Callable[[Architecture], float]
) -> list[Point]:
    """Subnets within the budget as measured, each once for all fractions and runs."""
    store = Pairs(
        str(whole.folder / PAIRS),
        Setting({"objective": settings.objective, "windows": len(case.text.pairs),
                 "device": device_name(case.parent.device)}),
    )  # fmt: skip
    known = {pair.architecture: pair for pair in store.all}
    bar = tqdm(total=settings.measurements, desc="search", unit="subnet", leave=False)

    def measure(architecture: Architecture) -> Point:
        if architecture not in known:
            subnet = cut(whole.model, whole.shape, architecture)
            cost = float(whole.cost(architecture)["parameters"])
            if settings.objective == "latency":
                own, parent = measure_latency([subnet, case.parent], context=settings.seq_len)
                cost = own.prefill_ms / parent.prefill_ms
            loss = evaluate(subnet, case.text.pairs, batch_size=settings.batch_size).nll
            known[architecture] = store.add(architecture, -loss, settings.searcher, cost=cost)
        bar.update()
        pair = known[architecture]
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


def _grid(case: Case, whole: SuperNetwork, settings: Settings) -> Grid:
    seen = spread(case.text.pairs, min(settings.grid_windows, len(case.text.pairs)))
    with tqdm(desc="grid", unit="subnet", leave=False) as bar:

        def score(architecture: Architecture) -> float:
            bar.update()
            return -_loss(case, whole, architecture, seen)

        return GRIDS[settings.grid](
            whole.space, lambda each: whole.cost(each)["parameters"], score, settings.bins, settings.draws,
            np.random.default_rng(settings.seed),
        )  # fmt: skip


def _loss(case: Case, whole: SuperNetwork, architecture: Architecture, seen: Tensor) -> float:
    subnet = cut(whole.model, whole.shape, architecture)
    return evaluate(subnet, seen, batch_size=case.settings.batch_size).nll


def _parent_loss(case: Case) -> float:
    return evaluate(case.parent, case.text.final, batch_size=case.settings.batch_size).nll


def _training_windows(case: Case, settings: Settings) -> Tensor:
    """As many of the training split as the steps see, drawn at random; all, again and again, beyond that."""
    ids = encode(case.tokenizer, load_corpus(settings.corpus).split("train"), case.settings.cache)
    split = windows(ids, settings.seq_len)
    wanted = max(1, settings.steps * settings.train_batch)
    return draw(split, min(wanted, len(split)), np.random.default_rng(settings.seed))


def _recipe(settings: Settings) -> TrainingRecipe:
    return TrainingRecipe(
        settings.strategy, Sandwich(settings.sampled, settings.smallest), settings.train_batch,
        settings.learning_rate, rank=settings.rank, alpha=settings.alpha, dropout=settings.dropout,
        ends=settings.adapt_ends, seed=settings.seed,
    )  # fmt: skip


def _space(shape: Shape, blocks: list[int] | tuple[int, ...], settings: Settings) -> UniformSpace:
    fixed = _stream(settings) == "none"
    return uniform_space(shape, tuple(blocks), floor=settings.floor, fixed_hidden=fixed)


def _stream(settings: Settings) -> str:
    """How hidden channels are ordered: not at all where all of them stay."""
    return "none" if settings.fixed_hidden else settings.hidden_order


def _cost(case: Case, shape: Shape) -> CostModel:
    return CostModel(shape, case.settings.seq_len, case.parent.dtype.itemsize)


def _fields(case: Case, settings: Settings) -> dict[str, Any]:
    """All that a super-network depends on."""
    names = (
        "seq_len", "seed", "criterion", "block_criterion", "hidden_order", "fixed_hidden", "floor", "grid",
        "bins", "draws", "grid_windows", "steps", "strategy", "sampled", "smallest", "train_batch",
        "learning_rate", "rank", "alpha", "dropout", "adapt_ends",
    )  # fmt: skip
    return {
        "format": FORMAT, "parent": case.digest, "tokens": dict(case.text.digests),
        "calibration_windows": len(case.text.calibration), "search_windows": len(case.text.pairs),
        "dtype": str(case.parent.dtype), **{name: getattr(settings, name) for name in names},
    }  # fmt: skip


def _record(path: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        return record if "training" in record else None
    except (OSError, ValueError):
        return None


def _check(settings: Settings) -> None:
    if not 0 <= settings.front_from <= 1:
        raise InputError(f"--front-from is {settings.front_from}; give 0 to 1")


def main(settings: Settings) -> None:
    """One result for each fraction asked for."""
    run_system("supernet", prune, settings)


if __name__ == "__main__":
    sys.exit(run(Settings, main))
