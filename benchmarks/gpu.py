"""What a large parent costs on one GPU: building pairs, latencies of cuts, ranking and repairs.

Random weights of the shapes of LLaMA-7B (attention of 32 heads of their own) and Llama-3.1-8B (8 KV groups,
128,256 tokens), in bfloat16: only sizes matter here, and nothing is downloaded. Made for one call of at most
eight minutes. FLOPs are those of `nas.cost`: two per weight and token, attention counted full.

- pairs a minute of random cuts at half of the block parameters, 32 windows of 2,048 tokens each, the share
  of the time in forward passes, FLOP/s against those of one large product of matrices on this device, and the
  most memory; the repaired output matrices have the sizes of prefixes, so prefixes of the parent stand in
- the same subnet by hooks that zero units of the whole parent, and by a deep copy that is pruned
- blocks under `torch.compile`, where asked for: what it takes for each subnet, and what it gives
- prefill and decode of uniform cuts at 0.8 and 0.5 beside the parent
- ranking, the bank and a repair front to back, on a parent of the same widths and fewer blocks

    python -m benchmarks.gpu --table runs/gpu.md
    python -m benchmarks.gpu --shapes tiny --windows 4 --seq-len 64 --device cpu
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks._random_parent import SIZES, Size, clear, random_parent
from benchmarks._setup import forward_clock, in_turn, now, show
from benchmarks.memory import held, watched
from benchmarks.subnets import deepcopy_and_prune, masked
from experiments.command_line import option, run
from nas.baselines import random_cuts, uniform_cuts
from nas.building import SubnetMeter, build_pairs
from nas.calibration import calibrate
from nas.cost import Budget, CostModel, budget_of
from nas.evaluate import evaluate
from nas.evidence import Evidence
from nas.families import blocks_of, shape_of
from nas.importance import CRITERIA
from nas.latency import measure_latency
from nas.pairs import Pair, Pairs, Setting
from nas.parent import choose_device
from nas.prepare import prepare
from nas.repair.sequential import repair_front_to_back
from nas.repair.stream import Stream
from nas.shape import Shape, Widths, architecture_of
from nas.space import SearchSpace, default_space
from nas.subnet import cut


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    shapes: tuple[str, ...] = option(
        (), "parents, one after the other; none: the two large ones on CUDA, else tiny", group="input",
        choices=SIZES,
    )  # fmt: skip
    windows: int = option(32, "windows in an evaluation, and to calibrate on", group="input")
    seq_len: int = option(2048, "tokens in a window", group="input")
    keep: float = option(0.5, "kept fraction of the block parameters of pairs", group="input")
    batch_size: int = option(4, "windows in a forward pass", group="run")
    pairs: int = option(10, "pairs that are built", group="run")
    prepared_blocks: int = option(2, "blocks of the parent that is ranked and repaired", group="run")
    parts: tuple[str, ...] = option(
        ("pairs", "forms", "latency", "prepare"), "what is measured; compile takes minutes more", group="run",
        choices=("pairs", "forms", "compile", "latency", "prepare"),
    )  # fmt: skip
    device: str = option("auto", "auto, cpu or cuda", group="run")
    table: Path | None = option(None, "Markdown file that the tables are appended to", group="run")


@dataclass(frozen=True)
class Loaded:
    """A parent of random weights with what is measured of it."""

    parent: PreTrainedModel
    shape: Shape
    space: SearchSpace
    cost: CostModel
    windows: Tensor
    rate: float
    """FLOP/s of one large product of matrices on this device."""

    def budget(self, keep: float) -> Budget:
        """This fraction of the block parameters."""
        return budget_of(self.cost, keep)


def main(settings: Settings) -> None:
    """Measure and print."""
    device, start = choose_device(settings.device), now()
    rate = matrix_rate(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    print(
        f"{name}: {rate / 1e12:.2f} TFLOP/s in a bfloat16 product; {settings.windows} windows of "
        f"{settings.seq_len} tokens in batches of {settings.batch_size}; torch {torch.__version__}"
    )
    measures: dict[str, Callable[[Settings, Loaded, str], None]] = {
        "pairs": building, "forms": forms, "compile": compiling, "latency": latencies
    }  # fmt: skip
    for shape in settings.shapes or (("llama-7b", "llama-3.1-8b") if device.type == "cuda" else ("tiny",)):
        wanted = [part for part in settings.parts if part in measures]
        if wanted:
            loaded = load(settings, SIZES[shape], device, rate)
            for part in wanted:
                measures[part](settings, loaded, shape)
            del loaded
            clear()
        if "prepare" in settings.parts:
            few = replace(SIZES[shape], blocks=min(settings.prepared_blocks, SIZES[shape].blocks))
            preparing(settings, load(settings, few, device, rate), shape, SIZES[shape].blocks)
            clear()
        print(f"\n{shape}: ended after {now() - start:.0f} s", flush=True)


def matrix_rate(device: torch.device) -> float:
    """FLOP/s of the product of two square bfloat16 matrices, random ones: a median of ten."""
    n = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(13):
        start = now()
        left @ right
        seconds.append(now() - start)
    return 2 * n**3 / median(seconds[3:])


def load(settings: Settings, size: Size, device: torch.device, rate: float) -> Loaded:
    """A parent of this size and windows of random tokens."""
    parent = random_parent(size, device, torch.bfloat16)
    shape = shape_of(parent)
    ids = torch.randint(size.vocab, (settings.windows, settings.seq_len))
    return Loaded(
        parent, shape, default_space(shape), CostModel(shape, settings.seq_len, 2), ids.to(device), rate
    )


def random_widths(settings: Settings, loaded: Loaded) -> Widths:
    """As random search proposes them, (pairs, blocks, 3)."""
    rng = np.random.default_rng(0)
    return loaded.space.widths(random_cuts(loaded.space, loaded.budget(settings.keep), settings.pairs, rng))


def building(settings: Settings, loaded: Loaded, name: str) -> None:
    """Pairs a minute, and where the time goes."""
    parent, shape, device = loaded.parent, loaded.shape, loaded.parent.device
    meter = SubnetMeter(parent, shape, None, loaded.windows, settings.batch_size)
    rows, budget = random_widths(settings, loaded), loaded.budget(settings.keep)
    evaluate(parent, loaded.windows[: settings.batch_size], batch_size=settings.batch_size)  # warms up
    before = held(device)

    def build(folder: str, what: str) -> tuple[list[Pair], float]:
        store, start = Pairs(f"{folder}/pairs.journal", Setting({"benchmark": what})), now()
        return build_pairs(store, meter, shape, budget, rows, "benchmark", quiet=True), now() - start

    with tempfile.TemporaryDirectory() as folder:
        with watched(device) as most:
            built, spent = build(folder, "plain")
        with forward_clock() as clock:  # which waits for the device before and behind every pass
            _, watched_for = build(folder, "clock")
    work = settings.windows * sum(loaded.cost(pair.architecture)["flops"] for pair in built)
    start = now()
    evaluate(parent, loaded.windows, batch_size=settings.batch_size)
    whole = now() - start
    show(
        f"{name}: building {len(built)} pairs at {settings.keep}",
        [
            ["", "value"],
            ["pairs a minute", f"{60 * len(built) / spent:.1f}"],
            ["seconds a pair; of the parent itself", f"{spent / len(built):.2f}; {whole:.2f}"],
            ["share in forward passes", f"{clock.seconds / watched_for:.1%}"],
            ["TFLOP/s", f"{work / spent / 1e12:.2f}"],
            ["of one large product of matrices", f"{work / spent / loaded.rate:.1%}"],
            ["weights, GiB", f"{before / 2**30:.2f}"],
            ["most beside them, GiB", f"{(most.peak - before) / 2**30:.2f}"],
        ],
        settings.table,
    )


def forms(settings: Settings, loaded: Loaded, name: str) -> None:
    """One subnet as views, by masks, and as a pruned deep copy; each once, after the views have warmed up."""
    parent, shape = loaded.parent, loaded.shape
    subnet, device = architecture_of(random_widths(settings, loaded)[0], shape), parent.device
    score = partial(evaluate, windows=loaded.windows, batch_size=settings.batch_size)

    def masking() -> float:
        with masked(parent, shape, subnet):
            return score(parent).nll

    ways: dict[str, Callable[[], float]] = {
        "cut and views": lambda: score(cut(parent, shape, subnet)).nll,
        "masks on the parent": masking,
        "deep copy, pruned": lambda: score(deepcopy_and_prune(parent, shape, subnet)).nll,
    }
    ways["cut and views"]()
    rows = [["", "seconds", "over views", "most beside the weights, GiB", "score"]]
    first = 0.0
    for way, action in ways.items():
        before = held(device)
        with watched(device) as most:
            start = now()
            found = action()
            spent = now() - start
        first = first or spent
        rows.append(
            [
                way,
                f"{spent:.2f}",
                f"{spent / first:.2f}",
                f"{(most.peak - before) / 2**30:.2f}",
                f"{found:.4f}",
            ]
        )
        clear()
    show(f"{name}: one subnet in three forms", rows, settings.table)


@torch.no_grad()
def compiling(settings: Settings, loaded: Loaded, name: str) -> None:
    """Whether compiled blocks are worth their compilation, for models that are run a few times each."""
    torch._dynamo.config.recompile_limit = 64  # type: ignore[attr-defined]
    ids = loaded.windows[: settings.batch_size]
    batches = -(-settings.windows // settings.batch_size)
    few = [architecture_of(row, loaded.shape) for row in random_widths(settings, loaded)[:3]]
    subnets = [cut(loaded.parent, loaded.shape, each) for each in few]
    rows = [
        ["", "eager, s a pass", "compiled, s a pass", "times as fast", "first pass, s", "pays after pairs"]
    ]
    for number, model in enumerate([loaded.parent, *subnets]):
        run_once = partial(model, ids, use_cache=False)
        run_once()
        plain = timed(run_once)
        for block in blocks_of(model):
            block.compile(dynamic=True if number else None)
        start = now()
        run_once()
        first = now() - start
        fast = timed(run_once)
        for block in blocks_of(model):
            block._compiled_call_impl = None
        won = batches * (plain - fast)
        rows.append(
            [
                "parent" if not number else f"subnet {number}",
                f"{plain:.4f}", f"{fast:.4f}", f"{plain / fast:.2f}", f"{first:.1f}",
                f"{first / won:.0f}" if won > 0 else "never",
            ]
        )  # fmt: skip
    show(f"{name}: blocks under torch.compile, shapes dynamic for subnets", rows, settings.table)


def timed(action: Callable[[], object]) -> float:
    """Median seconds."""
    return median(in_turn({"": action}, 4)[""])


def latencies(settings: Settings, loaded: Loaded, name: str) -> None:
    """Prefill and decode of uniform cuts beside the parent."""
    parent, shape = loaded.parent, loaded.shape
    models = {"parent": parent}
    for keep in (0.8, 0.5):
        rows = loaded.space.widths(uniform_cuts(loaded.space, loaded.budget(keep)))
        square = min(rows, key=lambda row: abs(row[0, 0] / shape.kv_groups - row[0, 2] / shape.ffn))
        models[f"{keep}"] = cut(parent, shape, architecture_of(square, shape), own=True)
    lines = [["", "batch", "prefill, ms", "parent / cut", "decode, ms a token", "parent / cut"]]
    for batch in (1, 16):
        found = measure_latency(
            [*models.values()], batch=batch, context=settings.seq_len, tokens=16, repeats=3
        )
        for kept, each in zip(models, found, strict=True):
            lines.append(
                [
                    kept, str(batch), f"{each.prefill_ms:.1f}",
                    f"{found[0].prefill_ms / each.prefill_ms:.2f}",
                    f"{each.decode_ms_per_token:.2f}",
                    f"{found[0].decode_ms_per_token / each.decode_ms_per_token:.2f}",
                ]
            )  # fmt: skip
    show(f"{name}: latency of even cuts, {settings.seq_len} tokens of context", lines, settings.table)


def preparing(settings: Settings, loaded: Loaded, name: str, all_blocks: int) -> None:
    """Seconds a block of what is done once."""
    parent, shape, space, device = loaded.parent, loaded.shape, loaded.space, loaded.parent.device
    ids, blocks = loaded.windows, loaded.shape.blocks
    rows = [["", "seconds a block", f"{all_blocks} blocks, minutes", "most beside the weights, GiB"]]

    def stage(what: str, action: Callable[[], object], passes: int = blocks) -> None:
        clear()
        before = held(device)
        with watched(device) as most:
            start = now()
            action()
            spent = (now() - start) / passes
        print(f"{what}: {spent:.1f} s a block", flush=True)
        rows.append(
            [
                what, f"{spent:.2f}", f"{spent * all_blocks / 60:.1f}",
                f"{(most.peak - before) / 2**30:.2f}",
            ]
        )  # fmt: skip

    stage("calibration", lambda: calibrate(parent, ids, batch_size=settings.batch_size))
    evidence = Evidence(parent, shape, ids, settings.batch_size)
    evidence.statistics  # noqa: B018  # computed here, so that the rankings are timed alone
    for criterion in ("output_energy", "elimination"):
        stage(f"ranking by {criterion}", partial(CRITERIA[criterion], evidence, 0), 1)
    del evidence
    with tempfile.TemporaryDirectory() as folder:
        kept = []
        stage(
            "all of it, and the bank, to files",
            lambda: kept.append(
                prepare(
                    parent, shape, space, ids, "elimination", Path(folder), {},
                    batch_size=settings.batch_size, quiet=True,
                )
            ),
        )  # fmt: skip
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
        prepared = kept.pop()
    half = architecture_of(space.widths(uniform_cuts(space, loaded.budget(settings.keep)))[0], shape)

    def repair() -> None:
        dense = Stream(prepared.parent, ids, settings.batch_size)
        repair_front_to_back(prepared.parent, shape, half, prepared.bank, dense)

    stage("one repair front to back", repair)
    show(f"{name}: what is done once, on {blocks} blocks of it", rows, settings.table)
    each = size / blocks / 2**30
    print(f"  the bank: {each:.2f} GiB a block, {each * all_blocks:.0f} GiB in all")


if __name__ == "__main__":
    sys.exit(run(Settings, main))
