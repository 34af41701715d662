"""Several workers on one store of pairs: where that is, and how they are started.

Every worker runs the same command. Those started here are processes of this machine, one for each GPU, or
tasks of a Ray cluster; whatever starts the command elsewhere (ssh, Slurm, torchrun) will do as well, as long
as all share the store, and best the folders `--out` and `--cache` too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from data.errors import InputError
from experiments.command_line import option
from experiments.stages import say
from nas.parent import choose_device

LAUNCHERS = ("processes", "ray")


@dataclass(frozen=True)
class OfWorkers:
    """Settings that say who does the work, and nothing of what is found."""

    storage: str | None = option(
        None,
        "pair store that workers share: a journal file, sqlite:///FILE or a URL postgresql+psycopg://…; a "
        "journal in --out without one",
        group="workers",
    )
    workers: int = option(
        1, "processes that share the work, one for each GPU of this machine", group="workers", least=1
    )
    launcher: str = option(
        "processes", "what starts them; ray places them over its cluster", group="workers", choices=LAUNCHERS
    )


def launch(settings: Any, module: str, folder: Path) -> int:
    """Start `settings.workers` processes of the same command, and wait; the exit code.

    The first shows what it does, the others write it into `folder`/workers. One that dies leaves its work to
    the others, and all end with the same result: 0 if any came to its end.
    """
    words = [*arguments(settings), "--workers", "1", "--launcher", "processes"]
    command = [sys.executable, "-m", module, *words]
    codes = STARTERS[settings.launcher](command, settings, folder)
    for number, code in enumerate(codes):
        if code:
            how = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
            log = folder / "workers" / f"{number}.log"
            say(f"worker {number} {how}" + (f"; see {log}" if log.exists() else ""))
    return 0 if 0 in codes else abs(codes[0])


def arguments(settings: Any) -> list[str]:
    """The command line that spells these settings."""
    words: list[str] = []
    for each in fields(settings):
        value, flag = getattr(settings, each.name), "--" + each.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)]
        else:
            words += [flag, "none" if value is None else str(value)]
    return words


def by_processes(command: Sequence[str], settings: Any, folder: Path) -> list[int]:
    """Their exit codes. Whatever ends this process ends them too."""
    logs = folder / "workers"
    logs.mkdir(parents=True, exist_ok=True)
    running: list[subprocess.Popen[bytes]] = []
    with _passed_on(running):
        for number in range(settings.workers):
            environment = environment_of(number, settings.workers, settings.device)
            if number == 0:
                running.append(subprocess.Popen(command, env=environment))
                continue
            with (logs / f"{number}.log").open("wb") as log:
                running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        return [process.wait() for process in running]


@contextmanager
def _passed_on(running: Sequence[subprocess.Popen[bytes]]) -> Any:
    try:
        yield
    except BaseException:  # Ctrl-C, which they get too where a terminal sent it
        for process in running:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
        for process in running:
            process.wait()
        raise


def environment_of(number: int, workers: int, device: str) -> Mapping[str, str]:
    """One GPU for each worker where there are GPUs, and its share of the cores."""
    environment = dict(os.environ)
    if device in ("auto", "cuda") and choose_device("auto").type == "cuda":
        seen = visible_gpus()
        environment["CUDA_VISIBLE_DEVICES"] = seen[number % len(seen)]
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    if number:
        environment.setdefault("TQDM_MININTERVAL", "30")  # nobody watches the bars in its log
    return environment


def visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def by_ray(command: Sequence[str], settings: Any, folder: Path) -> list[int]:
    """The same as tasks of Ray, each with a GPU of its own where the cluster has any; a task whose machine
    is lost is started again."""
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "--launcher ray needs Ray; run python -m pip install -e '.[ray]', or leave it out"
        ) from error
    ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, include_dashboard=False)
    logs, here = (folder / "workers").absolute(), os.getcwd()
    logs.mkdir(parents=True, exist_ok=True)
    gpus = 1 if ray.cluster_resources().get("GPU") else 0

    def work(number: int) -> int:
        with (logs / f"{number}.log").open("ab") as log:
            return subprocess.run(command, stdout=log, stderr=log, cwd=here, check=False).returncode

    task = ray.remote(num_gpus=gpus, num_cpus=1, max_retries=3)(work)
    try:
        found: list[int] = ray.get([task.remote(number) for number in range(settings.workers)])
    finally:
        ray.shutdown()
    return found


STARTERS: dict[str, Callable[[Sequence[str], Any, Path], list[int]]] = {
    "processes": by_processes,
    "ray": by_ray,
}
