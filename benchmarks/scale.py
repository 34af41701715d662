"""What a search of a large parent takes: a model of cost, fitted to one parent and held against another.

The constants are those of `benchmarks.gpu` on one H200 at LLaMA-7B's shape. The first table holds what they
say of Llama-3.1-8B's shape against what was measured there; the others say what 70 B and 405 B take. Nothing
is run. The formulas, with T calibration tokens, stream d, o_proj's inputs i, FFN n:

- a pair: FLOPs of its windows over the rate at which pairs were built; with weights that come from the host
  block by block, no faster than these are copied
- calibration of a block: its forward FLOPs at that rate, and Gram matrices, 2 T (n^2 + i^2), in float32
- elimination of a block's channels: n steps that read half of a (d, n) matrix in float64 on average, and
  launch some 40 kernels
- the bank: bytes of all choices at the rate at which files were written
- repair front to back: as d n

    python -m benchmarks.scale
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks._random_parent import SIZES, Size, random_parent
from benchmarks._setup import show
from experiments.command_line import option, run
from nas.cost import CostModel
from nas.families import shape_of
from nas.space import default_space

GIB = 2**30
MEASURED: dict[str, Mapping[str, float]] = {
    "llama-7b": {"pair": 1.17, "calibration": 0.45, "elimination": 4.94, "bank": 2.68, "repair": 6.23},
    "llama-3.1-8b": {"pair": 1.27, "calibration": 0.64, "elimination": 6.57, "bank": 5.34, "repair": 7.56},
}
"""Seconds a pair and seconds a block, by `benchmarks.gpu` on one H200, 32 windows of 2,048 tokens."""
WINDOWS, SEQ_LEN, BYTES = 32, 2048, 2
TOKENS = WINDOWS * SEQ_LEN
COPIED, READ, SHARED = 25e9, 4.3e12, 10e9
"""Bytes a second from the host to the device and from a file system that all share, neither measured, and,
between them, from the device's own memory."""
SQUARES = 8
"""Matrices of the FFN's width squared, float64, at the most: 8.0 and 7.3 where it was measured."""
LARGE = {
    "70b": Size(8192, 80, 64, 8, 28672, 128256),
    "405b": Size(16384, 126, 128, 8, 53248, 128256),
}


@dataclass(frozen=True)
class Settings:
    """What is planned."""

    pairs: int = option(10_000, "pairs of a search", group="run")
    nodes: int = option(100, "machines of eight GPUs", group="run")
    finalists: int = option(3, "subnets of each contender that are repaired front to back", group="run")
    contenders: int = option(4, "the search and its baselines", group="run")
    ffn_choices: int = option(32, "least number of FFN widths in the space", group="run")
    table: Path | None = option(None, "Markdown file that the tables are appended to", group="run")


@dataclass(frozen=True)
class Work:
    """What there is to do for a parent, in FLOPs, elements and bytes: of a pair at half of the block
    parameters, and of a block."""

    pair: float
    weights: float
    block: float
    forward: float
    gram: float
    elimination: float
    steps: int
    bank: float
    squares: float


def work_of(size: Size, ffn_choices: int) -> Work:
    """In closed form, of a parent on no device."""
    shape = shape_of(random_parent(size, torch.device("meta"), torch.bfloat16))
    space, cost = default_space(shape, ffn_choices), CostModel(shape, SEQ_LEN, BYTES)
    whole, none = cost(shape.parent), SEQ_LEN * 2 * shape.vocab * shape.hidden
    inner, hidden, ffn = shape.kv_groups * shape.queries_per_group * shape.head_dim, shape.hidden, shape.ffn
    choices = [g * q * shape.head_dim for g in space.choices[0] for q in space.choices[1] if g]
    channels = [int(width) for width in space.choices[2] if width]
    block = whole["block_parameters"] / shape.blocks
    return Work(
        pair=WINDOWS * (none + (whole["flops"] - none) / 2),
        weights=BYTES * whole["parameters"],
        block=BYTES * block,
        forward=2 * TOKENS * block,
        gram=2 * TOKENS * (ffn**2 + inner**2),
        elimination=ffn * hidden / 2 * 8,
        steps=ffn,
        bank=BYTES * hidden * (sum(int(c) for c in choices) + sum(channels)),
        squares=8 * ffn**2,
    )


@dataclass(frozen=True)
class Rates:
    """Fitted to one parent: FLOP/s of forward passes and of Gram matrices, seconds of launching a step of
    elimination, bytes of the bank a second, and the seconds of repair for each byte of a block."""

    forward: float
    gram: float
    step: float
    bank: float
    repair: float

    def seconds(self, work: Work) -> dict[str, float]:
        """Of a pair, and of each thing that is done once for each block."""
        return {
            "pair": work.pair / self.forward,
            "calibration": work.forward / self.forward + work.gram / self.gram,
            "elimination": work.steps * (self.step + work.elimination / READ),
            "bank": work.bank / self.bank,
            "repair": work.block * self.repair,
        }


def fitted(work: Work, measured: Mapping[str, float]) -> Rates:
    """The rates that give back what was measured of a parent."""
    forward = work.pair / measured["pair"]
    return Rates(
        forward=forward,
        gram=work.gram / (measured["calibration"] - work.forward / forward),
        step=measured["elimination"] / work.steps - work.elimination / READ,
        bank=work.bank / measured["bank"],
        repair=measured["repair"] / work.block,
    )


def main(settings: Settings) -> None:
    """Fit, hold against what was measured, and plan."""
    rates = fitted(work_of(SIZES["llama-7b"], 32), MEASURED["llama-7b"])
    print(
        f"fitted to LLaMA-7B: {rates.forward / 1e12:.0f} TFLOP/s in pairs, {rates.gram / 1e12:.0f} in Gram "
        f"matrices, {1e3 * rates.step:.2f} ms to launch a step, bank {rates.bank / GIB:.2f} GiB/s"
    )
    said, found = rates.seconds(work_of(SIZES["llama-3.1-8b"], 32)), MEASURED["llama-3.1-8b"]
    rows = [["Llama-3.1-8B", "said, s", "measured, s", "said / measured"]]
    rows += [[k, f"{said[k]:.2f}", f"{found[k]:.2f}", f"{said[k] / found[k]:.2f}"] for k in said]
    show("The model against another parent", rows, settings.table)
    plans = [planned(settings, rates, size) for size in LARGE.values()]
    lines = [[name, *(f"{plan[name]:,.1f}" for plan in plans)] for name in plans[0]]
    show(
        f"{settings.pairs:,} pairs on {settings.nodes} machines of eight GPUs",
        [["", *LARGE], *lines],
        settings.table,
    )


def planned(settings: Settings, rates: Rates, size: Size) -> dict[str, float]:
    """What it takes, by name."""
    work, gpus = work_of(size, settings.ffn_choices), 8 * settings.nodes
    spent = rates.seconds(work)
    copied = work.weights / 2 / COPIED
    pair = max(spent["pair"], copied)
    once = spent["calibration"] + spent["elimination"] + spent["bank"]
    # Whoever ranks a block sends the windows through all others.
    shared = size.blocks * (work.forward / rates.forward) + -(-size.blocks // gpus) * once
    repairs = settings.finalists * settings.contenders * size.blocks * spent["repair"]
    bank = work.bank * size.blocks
    return {
        "weights, GiB": work.weights / GIB,
        "bank, GiB": bank / GIB,
        "most beside the weights while a block is ranked, GiB": SQUARES * work.squares / GIB,
        "a pair, s": pair,
        "half of the weights from the host, s": copied,
        "all pairs, GPU hours": settings.pairs * pair / 3600,
        "all pairs, minutes": settings.pairs * pair / gpus / 60,
        "rank and repair, hours of one GPU": size.blocks * once / 3600,
        "the same, shared by all workers, minutes": shared / 60,
        "the permuted parent to files, by one process, minutes": work.weights / rates.bank / 60,
        "repairs front to back, hours of one GPU": repairs / 3600,
        "claims a second in the store": gpus / pair,
        "every machine reads the parent, minutes": settings.nodes * work.weights / SHARED / 60,
        "every machine reads the bank, hours": settings.nodes * bank / SHARED / 3600,
    }


if __name__ == "__main__":
    sys.exit(run(Settings, main))
