"""The super-network of LLM Compression with NAS (arXiv 2410.06479): ordered, with its grid, and trained.

One is made from what its settings say and kept in the cache, so that every fraction and later runs share it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from data.corpus import load_corpus
from data.json_text import from_json
from data.windows import draw, encode, spread, windows
from experiments.command_line import option
from experiments.published.case import Case, Common
from experiments.stages import say
from nas.alone import alone
from nas.architecture import Architecture
from nas.block_importance import BLOCK_CRITERIA
from nas.cost import CostModel
from nas.evaluate import evaluate
from nas.families import plain, shape_of
from nas.importance import CRITERIA
from nas.report import write_json
from nas.shape import Shape
from nas.subnet import cut
from nas.supernet.grids import GRIDS, Grid
from nas.supernet.ordering import STREAMS, order
from nas.supernet.space import UniformSpace, uniform_space
from nas.supernet.strategies import STRATEGIES, Sandwich
from nas.supernet.training import TrainingRecipe, train

FORMAT = 3
"""Raised whenever a super-network is made differently from the same settings."""
RECORD, MODEL, STATE = "supernet.json", "model", "training.safetensors"
WEIGHTS = "plain.safetensors"
"""In the folder `MODEL`, beside the configuration."""


@dataclass(frozen=True)
class Making(Common):
    """What a super-network depends on. The training takes minutes, that of the paper's scripts an epoch of
    batch 64, or five of 16."""

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


def super_network(case: Case, settings: Making) -> SuperNetwork:
    """Ordered, with its grid, and trained; from the cache where the same settings left it there."""
    fields = _fields(case, settings)
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
    folder = case.settings.cache / f"supernet-{digest}"
    with alone(folder, lambda: say(f"super-network {digest} is being made by another process")):
        return _super_network(case, settings, fields, folder, digest)


def _super_network(
    case: Case, settings: Making, fields: dict[str, Any], folder: Path, digest: str
) -> SuperNetwork:
    record = _record(folder / RECORD)
    if record is not None:
        say(f"super-network {digest} from {case.settings.cache}")
        model = _read(folder / MODEL, case.parent)
        shape = shape_of(model)
        space = space_of(shape, record["blocks"], settings)
        grid = Grid(tuple(map(Architecture.from_json, record["grid"])), tuple(record["unreached"]))
        return SuperNetwork(model, shape, _cost(case, shape), space, grid, folder, record)
    start = perf_counter()
    ordered = order(
        case.evidence,
        CRITERIA[settings.criterion],
        stream_of(settings),
        BLOCK_CRITERIA[settings.block_criterion],
    )
    shape = shape_of(ordered.model)
    cost, space = _cost(case, shape), space_of(shape, ordered.blocks, settings)
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
    _write(trained.model, folder / MODEL)
    write_json(record, folder / RECORD)  # last: its presence says that all is there
    (folder / STATE).unlink(missing_ok=True)
    return SuperNetwork(trained.model, shape, cost, space, grid, folder, record)


def _write(model: PreTrainedModel, folder: Path) -> None:
    """As it is in memory: heads of some families have numbers, and projections are apart."""
    model.config.save_pretrained(folder)
    save_model(model, str(folder / WEIGHTS))


def _read(folder: Path, parent: PreTrainedModel) -> PreTrainedModel:
    """What `_write` wrote, in the dtype and on the device of the parent."""
    config = AutoConfig.from_pretrained(folder)
    with torch.random.fork_rng():  # its first values, which are replaced, are drawn
        model = plain(AutoModelForCausalLM.from_config(config, dtype=parent.dtype))
    load_model(model, folder / WEIGHTS)
    return model.to(parent.device).eval().requires_grad_(False)


def space_of(shape: Shape, blocks: list[int] | tuple[int, ...], settings: Making) -> UniformSpace:
    """What can be chosen, the blocks in order of importance."""
    fixed = stream_of(settings) == "none"
    return uniform_space(shape, tuple(blocks), floor=settings.floor, fixed_hidden=fixed)


def stream_of(settings: Making) -> str:
    """How hidden channels are ordered: not at all where all of them stay."""
    return "none" if settings.fixed_hidden else settings.hidden_order


def loss_of(case: Case, whole: SuperNetwork, architecture: Architecture, seen: Tensor) -> float:
    """The mean negative log-likelihood of a subnet on windows (n, seq_len)."""
    subnet = cut(whole.model, whole.shape, architecture)
    return evaluate(subnet, seen, batch_size=case.settings.batch_size).nll


def _grid(case: Case, whole: SuperNetwork, settings: Making) -> Grid:
    seen = spread(case.text.pairs, min(settings.grid_windows, len(case.text.pairs)))
    with tqdm(desc="grid", unit="subnet", leave=False) as bar:

        def score(architecture: Architecture) -> float:
            bar.update()
            return -loss_of(case, whole, architecture, seen)

        return GRIDS[settings.grid](
            whole.space, lambda each: whole.cost(each)["parameters"], score, settings.bins, settings.draws,
            np.random.default_rng(settings.seed),
        )  # fmt: skip


def _training_windows(case: Case, settings: Making) -> Tensor:
    """As many of the training split as the steps see, drawn at random; all, again and again, beyond that."""
    ids = encode(
        case.tokenizer, load_corpus(settings.corpus, case.tokenizer).split("train"), case.settings.cache
    )
    split = windows(ids, settings.seq_len)
    wanted = max(1, settings.steps * settings.train_batch)
    return draw(split, min(wanted, len(split)), np.random.default_rng(settings.seed))


def _recipe(settings: Making) -> TrainingRecipe:
    return TrainingRecipe(
        settings.strategy, Sandwich(settings.sampled, settings.smallest), settings.train_batch,
        settings.learning_rate, rank=settings.rank, alpha=settings.alpha, dropout=settings.dropout,
        ends=settings.adapt_ends, seed=settings.seed,
    )  # fmt: skip


def _cost(case: Case, shape: Shape) -> CostModel:
    return CostModel(shape, case.settings.seq_len, case.parent.dtype.itemsize)


def _fields(case: Case, settings: Making) -> dict[str, Any]:
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
        record: dict[str, Any] = from_json(path.read_text())
        return record if "training" in record else None
    except (OSError, ValueError):
        return None
