"""What building pairs needs in memory, against the parent and one forward pass (wanted: parent + 1.3 x pass).

Each measurement is a process of its own. It starts to count when everything was imported: a parent was loaded
once, let go, and the memory given back.

- parent: the loaded model; forward pass: the most that `model(batch)` adds while it runs
- pair stage: prepare the parent as the main job does (orders and repairs already on disk), let the unpermuted
  one go, then build pairs; the most that is held while they are built

On the CPU this counts anonymous pages (RssAnon): the larger of samples taken every half millisecond and of
the kernel's own high-water mark (VmHWM) less the file pages at the end. The repair bank is a file that is
mapped into memory: its pages are counted apart, since the kernel may drop them at any moment. The C library
of Linux keeps some of what was freed, how much depends on what came before; it is told to give everything
back, so that what is needed is counted, and once more left alone, which is what the job holds. On CUDA this
counts what torch has allocated there, in which the bank does have a part. Needs Linux or CUDA.

    python -m benchmarks.memory
    python -m benchmarks.memory --parent ORGANISATION/MODEL --corpus Salesforce/wikitext:wikitext-2-raw-v1
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import optuna
import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks._setup import Common, make_ready, show
from experiments.command_line import option, run
from experiments.stages import Stages
from nas.building import SubnetMeter, build_pairs
from nas.pairs import Pairs, Setting
from nas.parent import choose_device, choose_dtype, load_parent
from nas.sampling import SAMPLERS

Result = TypeVar("Result")
STATUS = Path("/proc/self/status")
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Makes the C library ask the system for every piece above 64 KiB, and give it back at once."""


@dataclass(frozen=True)
class Settings(Common):
    """What is measured."""

    keep: float = option(0.5, "kept fraction of the blocks' parameters", group="input")
    pairs: int = option(24, "pairs that are built", group="run")


def main(settings: Settings) -> None:
    """Measure in fresh processes and print."""
    if not on_cuda(settings) and not STATUS.is_file():
        print("memory is measured on Linux and on CUDA only: nothing done")
        return
    alone(prepare_cache, settings)
    single = alone(parent_and_forward, settings)
    stage = alone(pair_stage, settings)
    kept = alone(pair_stage, settings, frugal=False)
    limit = single["parent"] + 1.3 * single["forward"]
    over = (stage["peak"] - single["parent"]) / single["forward"]
    print(
        f"{settings.parent}: {settings.pairs} pairs of {settings.eval_windows} windows of {settings.seq_len} "
        f"tokens, batches of {settings.batch_size}, {settings.threads} thread(s)"
    )

    def line(what: str, size: float, wanted: str = "") -> list[str]:
        return [what, f"{size / 2**20:.1f}", wanted]

    show(
        "Memory, MiB",
        [
            ["", "MiB", "wanted"],
            line("parent", single["parent"]),
            line("  its parameters", single["parameters"]),
            line("one forward pass of a batch", single["forward"]),
            line("  its logits", single["logits"]),
            line("held before the pairs are built", stage["before"]),
            line("most held while they are built", stage["peak"], f"<= {limit / 2**20:.1f}"),
            ["  less the parent, in forward passes", f"{over:.2f}", "<= 1.30"],
            line("  pages of files (the bank) first touched", stage["files"]),
            line("most held, C library left alone", kept["peak"]),
        ],
    )


def prepare_cache(settings: Settings) -> None:
    """Fill the cache, so that the pair stage finds orders and repairs on disk."""
    make_ready(settings)


def parent_and_forward(settings: Settings) -> dict[str, float]:
    """Bytes of the loaded parent and of one forward pass."""
    torch.set_num_threads(settings.threads)
    device = choose_device(settings.device)
    start = after_imports(settings, device)
    parent, _ = load_parent(settings.parent, device, choose_dtype("auto", device))
    gc.collect()
    before = held(device)
    ids = torch.zeros((settings.batch_size, settings.seq_len), dtype=torch.long, device=device)
    with watched(device) as most:
        size = forward(parent, ids)
    return {
        "parent": before - start,
        "parameters": sum(p.numel() * p.itemsize for p in parent.parameters()),
        "forward": most.peak - before,
        "logits": size,
    }


@torch.no_grad()
def forward(model: PreTrainedModel, ids: Tensor) -> float:
    """One forward pass; bytes of its logits (batch, seq_len, vocab)."""
    logits = model(ids, use_cache=False).logits
    return float(logits.numel() * logits.itemsize)


def pair_stage(settings: Settings) -> dict[str, float]:
    """The most bytes held while pairs are built, over those held before anything was loaded."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    device = choose_device(settings.device)
    start = after_imports(settings, device)
    with Stages()("prepare"):  # as the main job does, and with what it does at the end of a stage
        ready = make_ready(settings)
    gc.collect()
    before, files = held(device), status("RssFile")
    budget = ready.budget("block_parameters", settings.keep)
    measure = SubnetMeter(
        ready.parent, ready.shape, ready.prepared.bank, ready.eval_windows, settings.batch_size
    )
    with tempfile.TemporaryDirectory() as folder, watched(device) as most:
        pairs = Pairs(f"{folder}/pairs.journal", Setting({"benchmark": "memory"}))
        rng = np.random.default_rng(settings.seed)
        rows = SAMPLERS["seeded"](ready.space, budget, settings.pairs, rng, ready.hints)
        build_pairs(pairs, measure, ready.shape, budget, ready.space.widths(rows), "benchmark", quiet=True)
    return {"before": before - start, "peak": most.peak - start, "files": status("RssFile") - files}


def after_imports(settings: Settings, device: torch.device) -> float:
    """Bytes held once a parent was loaded and let go: what the libraries keep for themselves."""
    load_parent(settings.parent, device, choose_dtype("auto", device))
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # the C library of Linux keeps freed memory otherwise
        ctypes.CDLL(None).malloc_trim(0)
    return held(device)


def alone(action: Callable[[Settings], Result], settings: Settings, *, frugal: bool = True) -> Result:
    """The result of an action in a fresh process; its C library keeps nothing freed if `frugal`."""
    if frugal:
        os.environ.update(GIVE_BACK)
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
            return pool.submit(action, settings).result()
    finally:
        for name in GIVE_BACK:
            os.environ.pop(name, None)


def on_cuda(settings: Settings) -> bool:
    """Whether the model will be on CUDA."""
    return choose_device(settings.device).type == "cuda"


def status(name: str) -> float:
    """A line of this process's status in bytes; 0 where there is none."""
    if not STATUS.is_file():
        return 0.0
    lines = [line.split() for line in STATUS.read_text().splitlines()]
    return float(next((1024 * int(line[1]) for line in lines if line[0] == f"{name}:"), 0))


def held(device: torch.device) -> float:
    """Bytes held now."""
    return float(torch.cuda.memory_allocated(device)) if device.type == "cuda" else status("RssAnon")


@dataclass
class Most:
    """The most bytes held so far."""

    peak: float


@contextmanager
def anonymous(every: float = 0.0005) -> Iterator[Most]:
    """The most anonymous memory of the process, looked at `every` so many seconds while what is inside runs;
    known when it has ended."""
    most, done = Most(status("RssAnon")), threading.Event()

    def sample() -> None:
        while not done.wait(every):
            most.peak = max(most.peak, status("RssAnon"))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield most
    finally:
        done.set()
        sampler.join()


@contextmanager
def watched(device: torch.device) -> Iterator[Most]:
    """The most bytes held while what is inside runs; known when it has ended."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        most = Most(held(device))
        yield most
        most.peak = float(torch.cuda.max_memory_allocated(device))
        return
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    with anonymous() as most:
        yield most
    most.peak = max(most.peak, status("VmHWM") - status("RssFile") - status("RssShmem"))


if __name__ == "__main__":
    sys.exit(run(Settings, main))
