"""The main job with several workers, and on a full disk: nothing is lost, and the report is the same."""

import multiprocessing
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from experiments import compress, workers
from experiments.command_line import parse
from experiments.workers import arguments, environment_of
from nas.pairs import Pairs, Setting
from nas.parent import choose_device
from nas.storage import shown
from tests.experiments.test_compress import read, results
from tests.experiments.toy_job import job, make_toy
from tests.nas.test_workers import KINDS, location, server

__all__ = ["location", "server"]
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def finished(toy: Path) -> Path:
    assert job(toy, toy / "run", latency_repeats=0) == 0
    return toy / "run"


def same(out: Path, finished: Path) -> bool:
    """Whether both reports say the same; who measured, and where that was kept, is no result."""
    ours, theirs = (results(read(each)) for each in (out, finished))
    for report in (ours, theirs):
        for name in ("storage", "workers", "cache"):
            report["settings"].pop(name)
    return bool(ours == theirs)


def check_once(location: str, out: Path) -> None:
    """Every architecture of a report has one completed trial."""
    report = read(out)
    trials = Pairs(location, Setting(report["setting"]["fields"]))._study.get_trials(deepcopy=False)
    complete = [trial.user_attrs["architecture"] for trial in trials if trial.state.name == "COMPLETE"]
    assert len(complete) == len(set(complete)) >= len({pair["digest"] for pair in report["pairs"]})
    assert not [trial for trial in trials if trial.state.name == "RUNNING"]


def start(toy: Path, out: Path, location: str) -> multiprocessing.process.BaseProcess:
    process = FORK.Process(target=lambda: os._exit(job(toy, out, storage=location, latency_repeats=0)))
    process.start()
    return process


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_one_of_four_workers_killed(
    location: str, kind: str, toy: Path, finished: Path, tmp_path: Path
) -> None:
    running = [start(toy, tmp_path / "run", location) for _ in range(4)]
    draw = random.Random(kind)
    while not (tmp_path / "run" / "stages.json").exists():
        time.sleep(0.01)
    time.sleep(draw.uniform(0.0, 3.0))
    running[draw.randrange(4)].kill()
    for process in running:
        process.join()
    assert sorted(process.exitcode or 0 for process in running) == [-signal.SIGKILL, 0, 0, 0]
    assert same(tmp_path / "run", finished)
    check_once(location, tmp_path / "run")


@pytest.mark.slow
def test_workers_are_started_and_end_with_the_same(
    toy: Path, finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert job(toy, tmp_path / "run", workers=2, latency_repeats=0) == 0
    assert same(tmp_path / "run", finished)
    assert "drop layers" in capfd.readouterr().out
    assert "rank and repair" in (tmp_path / "run" / "workers" / "1.log").read_text()
    capfd.readouterr()


@pytest.mark.slow
def test_a_job_that_a_batch_system_ends_goes_on(toy: Path, finished: Path, tmp_path: Path) -> None:
    location = str(tmp_path / "run" / "pairs.journal")
    process = start(toy, tmp_path / "run", location)
    while not Path(location).exists():
        time.sleep(0.01)
    time.sleep(0.3)
    process.terminate()
    process.join()
    assert process.exitcode == 143
    assert not (tmp_path / "run" / "report.json").exists()
    assert job(toy, tmp_path / "run", storage=location, latency_repeats=0) == 0
    assert same(tmp_path / "run", finished)
    check_once(location, tmp_path / "run")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own, of 512 KB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk can be mounted by root only")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("full", ["journal", "sqlite", "out"])
def test_a_disk_that_is_full(
    toy: Path, finished: Path, tmp_path: Path, disk: Path, full: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = disk / "run" if full == "out" else tmp_path / "run"
    location = {
        "journal": str(disk / "pairs.journal"), "sqlite": f"sqlite:///{disk}/pairs.db",
        "out": str(tmp_path / "pairs.journal"),
    }[full]  # fmt: skip
    Pairs(location, Setting({"another": "setting"}))
    room = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(room.f_bavail * room.f_frsize - 16_384))
    capsys.readouterr()
    assert job(toy, out, storage=location, latency_repeats=0) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and ("No space left" in said[0] or "full" in said[0])
    assert not (out / "report.json").exists()
    enlarge(disk)
    assert job(toy, out, storage=location, latency_repeats=0) == 0
    assert same(out, finished)
    check_once(location, out)


@pytest.mark.slow
def test_ray_places_the_workers(toy: Path, finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is an extra that these tests do not install")
    assert job(toy, tmp_path / "run", workers=2, launcher="ray", latency_repeats=0) == 0
    assert same(tmp_path / "run", finished)
    logs = [(tmp_path / "run" / "workers" / f"{number}.log").read_text() for number in range(2)]
    assert all("rank and repair" in log for log in logs)


def test_each_worker_gets_a_gpu_and_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert environment_of(0, 3, "cpu")["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert environment_of(0, 3, "cpu")["OMP_NUM_THREADS"] == "5"
    monkeypatch.setattr(workers, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [environment_of(n, 3, "auto")["CUDA_VISIBLE_DEVICES"] for n in range(3)] == ["4", "6", "4"]
    assert environment_of(0, 3, "cpu")["CUDA_VISIBLE_DEVICES"] == "4,6"


@pytest.mark.parametrize(
    ("environment", "device"),
    [
        ({}, "cuda"),
        ({"LOCAL_RANK": "3"}, "cuda:1"),
        ({"SLURM_LOCALID": "0"}, "cuda:0"),
        ({"LOCAL_RANK": ""}, "cuda"),
    ],
)
def test_a_process_of_torchrun_or_slurm_takes_its_own_gpu(
    environment: dict[str, str], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device(device)


def test_the_arguments_of_a_worker_spell_its_settings(tmp_path: Path) -> None:
    settings = compress.Settings(keep=None, out=tmp_path, random_search=False, max_flops=5, storage="a b")
    assert parse(compress.Settings, arguments(settings)) == settings


def test_a_password_is_not_shown() -> None:
    assert shown("postgresql+psycopg://me:secret@host:5/db") == "postgresql+psycopg://me:***@host:5/db"
    for plain in ("postgresql://me@host/db", "sqlite:////a/b.db", "runs/a@b.journal"):
        assert shown(plain) == plain
