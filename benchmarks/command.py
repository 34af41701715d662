"""Where time and memory of the whole main job go, stage by stage, and how much of it is forward passes.

Runs `experiments.compress` once from nothing, in folders of its own that are thrown away, and times every
forward pass in it: those of the parent, of subnets, and the single blocks and modules that repair runs. The
command should take at most 1.5 times as long as they do. Losses and metrics are not forward passes here.

Memory is what a stage had in anonymous pages at the most, over what was held before the command (Linux).

The default is a short run, whose stages split their time as those of a long one do; the second line is the
job in full.

    python -m benchmarks.command
    python -m benchmarks.command --pairs 200 --calibration-windows 128 --finalists 3 \\
        --random-search --parent ORGANISATION/MODEL --corpus Salesforce/wikitext:wikitext-2-raw-v1
"""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from time import perf_counter

import torch

from benchmarks._setup import ForwardClock, forward_clock, show
from benchmarks.memory import STATUS, held, status, watched
from experiments import compress
from experiments.command_line import option, run
from experiments.stages import Stages


@dataclass(frozen=True)
class Settings:
    """What is run."""

    parent: str = option("demo", "model to compress: a Hub id, a local folder or demo", group="input")
    corpus: str = option("demo", "text to calibrate and evaluate on, named as in compress", group="input")
    keep: float = option(0.5, "kept fraction of the blocks' parameters", group="input")
    calibration_windows: int = option(32, "training windows that repair sees", group="input")
    pairs: int = option(48, "pairs of the search", group="input")
    rounds: int = option(3, "rounds of the search", group="input")
    finalists: int = option(1, "subnets compared in the end, and per baseline", group="input")
    random_search: bool = option(False, "run random search too", group="input")
    threads: int = option(1, "threads of torch; one is steadiest where other work runs too", group="run")
    device: str = option("auto", "auto, cpu or cuda", group="run")
    seed: int = option(0, "of the run", group="run")


@dataclass(frozen=True)
class Stage:
    """What one stage took: seconds, of these in forward passes, and the most bytes it held."""

    name: str
    seconds: float
    forward: float
    peak: float


class WatchedStages(Stages):
    """The stages of a script, with a record of each in `log`."""

    log: list[Stage] = []
    clock = ForwardClock()
    base = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start, forward = perf_counter(), self.clock.seconds
        device = torch.device("cpu")
        with (
            watched(device) if STATUS.is_file() else contextlib.nullcontext() as most,
            super().__call__(name),
        ):
            yield
        peak = most.peak - self.base if most else 0.0
        self.log.append(Stage(name, perf_counter() - start, self.clock.seconds - forward, peak))


def main(settings: Settings) -> None:
    """Run the job and print where its time went."""
    start = perf_counter()
    subprocess.run([sys.executable, "-c", "import experiments.compress"], check=True)
    imported = perf_counter() - start
    torch.set_num_threads(settings.threads)
    WatchedStages.base = held(torch.device("cpu")) if STATUS.is_file() else 0.0
    compress.Stages = WatchedStages  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder, forward_clock() as clock:
        WatchedStages.clock = clock
        named = {field.name: getattr(settings, field.name) for field in fields(settings)}
        del named["threads"]
        job = compress.Settings(**named, out=Path(folder) / "out", cache=Path(folder) / "cache")
        with contextlib.redirect_stdout(io.StringIO()) as result:
            compress.main(job)
    spent = perf_counter() - start
    print(result.getvalue())
    times = spent / clock.seconds
    stages = [Stage("imports", imported, 0.0, 0.0), *WatchedStages.log]
    stages.append(
        Stage("the whole command", spent, clock.seconds, max((stage.peak for stage in stages), default=0.0))
    )
    show(
        f"{settings.parent}, keep {settings.keep}, {settings.pairs} pairs, {settings.rounds} rounds, "
        f"{settings.threads} thread(s): {times:.2f} times its forward passes (wanted <= 1.50)",
        [
            ["stage", "seconds", "forward passes", "outside them", "share outside", "peak, MiB"],
            *(
                [
                    stage.name,
                    f"{stage.seconds:.1f}",
                    f"{stage.forward:.1f}",
                    f"{stage.seconds - stage.forward:.1f}",
                    f"{1 - stage.forward / stage.seconds:.0%}" if stage.seconds else "",
                    f"{stage.peak / 2**20:.0f}" if stage.peak else "",
                ]
                for stage in stages
            ),
        ],
    )
    if STATUS.is_file():
        print(f"pages of files at the end, the repair bank among them: {status('RssFile') / 2**20:.0f} MiB")


if __name__ == "__main__":
    sys.exit(run(Settings, main))
