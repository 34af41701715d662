"""Workers on one store: whatever dies, no pair is lost, none is measured twice, and all end with the same."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from optuna.trial import TrialState

from nas import claims
from nas.architecture import Architecture, Block
from nas.claims import Listener, Worker
from nas.evaluate import Scores
from nas.exploration import Explored
from nas.pairs import DIED, Pair, Pairs, Setting
from nas.shape import Widths, architecture_of
from nas.storage import JournalLock
from tests import postgres_server
from tests.nas.small_spaces import damage
from tests.nas.test_exploration import SETTING, TOTAL, run_exploration, small_problem

FORK = multiprocessing.get_context("fork")
NO_SERVER = postgres_server.why_absent()
KINDS = [
    "journal",
    "sqlite",
    pytest.param("postgres", marks=pytest.mark.skipif(bool(NO_SERVER), reason=NO_SERVER)),
]


@pytest.fixture(scope="module")
def server() -> Iterator[postgres_server.Server]:
    with postgres_server.server() as running:
        yield running


@pytest.fixture
def location(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    if kind == "journal":
        return str(tmp_path / "pairs.journal")
    if kind == "sqlite":
        return f"sqlite:///{tmp_path}/pairs.db"
    url: str = request.getfixturevalue("server").url
    from sqlalchemy import create_engine, text

    name = f"p{abs(hash(str(tmp_path)))}"
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return url.replace("/postgres", f"/{name}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Explored:
    folder = tmp_path_factory.mktemp("undisturbed")
    return run_exploration(measuring(folder), str(folder / "pairs.journal"))


def measuring(folder: Path, seconds: float = 0.0) -> Callable[[Widths], Scores]:
    """Measures exactly, takes its time, and notes in a file what it begins."""
    shape = small_problem()[0].shape

    def measure(widths: Widths) -> Scores:
        with (folder / "begun").open("a") as file:
            file.write(architecture_of(widths, shape).digest + "\n")
        time.sleep(seconds)
        return Scores(2.0 + float(damage(widths)), 0.5, 100)

    return measure


def explore_here(location: str, folder: Path, seconds: float) -> None:
    explored = run_exploration(measuring(folder, seconds), location)
    (folder / f"result-{os.getpid()}").write_text(repr(explored.pairs))


def worker(location: str, folder: Path, seconds: float = 0.02) -> BaseProcess:
    process = FORK.Process(target=explore_here, args=(location, folder, seconds))
    process.start()
    return process


def begun(folder: Path) -> list[str]:
    file = folder / "begun"
    return file.read_text().split() if file.exists() else []


def check(location: str, folder: Path, undisturbed: Explored, killed: int, finished: int) -> None:
    """All pairs are there once, as they would be undisturbed; only what was being measured when a worker was
    killed was begun again; each worker that finished ended with the same."""
    stored = Pairs(location, SETTING)
    complete = stored._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    assert len(complete) == len(stored) == TOTAL
    by_architecture = {pair.architecture: pair for pair in stored.all}
    assert [by_architecture[pair.architecture] for pair in undisturbed.pairs] == undisturbed.pairs
    assert stored._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)) == []
    counts = Counter(begun(folder))
    assert counts.keys() == {pair.architecture.digest for pair in undisturbed.pairs}
    assert counts.total() <= TOTAL + killed
    results = [file.read_text() for file in folder.glob("result-*")]
    assert results == [repr(undisturbed.pairs)] * finished
    assert stored.failures == {}


@pytest.mark.slow
def test_the_only_worker_killed_at_twenty_random_moments(tmp_path: Path, undisturbed: Explored) -> None:
    draw, location, killed = random.Random(0), str(tmp_path / "pairs.journal"), 0
    while killed < 20:
        process = worker(location, tmp_path)
        process.join(draw.uniform(0.05, 0.25))
        if process.is_alive():
            process.kill()
            process.join()
            killed += 1
        else:  # it was done before the twentieth: once more from the start
            assert process.exitcode == 0
            check(location, tmp_path, undisturbed, killed, 1)
            location, tmp_path = str(tmp_path / "again" / "pairs.journal"), tmp_path / "again"
            tmp_path.mkdir()
    process = worker(location, tmp_path, 0.0)
    process.join()
    assert process.exitcode == 0
    check(location, tmp_path, undisturbed, killed, 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_one_of_four_workers_killed(
    location: str, kind: str, seed: int, tmp_path: Path, undisturbed: Explored
) -> None:
    draw = random.Random(seed)
    workers = [worker(location, tmp_path, 0.05) for _ in range(4)]
    while len(begun(tmp_path)) < draw.uniform(4, TOTAL - 8):
        time.sleep(0.01)
    victim = draw.choice(workers)
    victim.kill()
    for process in workers:
        process.join()
    assert sorted(process.exitcode or 0 for process in workers) == [-signal.SIGKILL, 0, 0, 0]
    check(location, tmp_path, undisturbed, 1, 3)


@pytest.mark.slow
@pytest.mark.skipif(bool(NO_SERVER), reason=NO_SERVER)
@pytest.mark.parametrize("kind", ["postgres"])
@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_a_database_server_restarted_in_the_middle(
    server: postgres_server.Server, location: str, how: str, tmp_path: Path, undisturbed: Explored
) -> None:
    workers = [worker(location, tmp_path, 0.05) for _ in range(4)]
    for done in (5, 25):
        while len(begun(tmp_path)) < done:
            time.sleep(0.01)
        server.stop(how)
        time.sleep(0.5)
        server.start()
    for process in workers:
        process.join()
    assert [process.exitcode for process in workers] == [0, 0, 0, 0]
    check(location, tmp_path, undisturbed, 0, 4)


def narrow(ffn: int) -> Architecture:
    return Architecture(16, (Block(0, 1, 1, ffn),))


@pytest.mark.slow
def test_a_writer_killed_in_the_middle_of_a_record_beside_others(
    tmp_path: Path, undisturbed: Explored
) -> None:
    location = str(tmp_path / "pairs.journal")
    workers = [worker(location, tmp_path, 0.05) for _ in range(3)]
    for done in (5, 15, 25):
        while len(begun(tmp_path)) < done:
            time.sleep(0.01)
        writer = FORK.Process(target=die_writing, args=(Path(location),))
        writer.start()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
    for process in workers:
        process.join()
    assert [process.exitcode for process in workers] == [0, 0, 0]
    check(location, tmp_path, undisturbed, 0, 3)


def die_writing(journal: Path) -> None:
    lock = JournalLock(journal)
    lock.acquire()
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"x","study_id":0,"user_attrs":{"archi')
    os.kill(os.getpid(), signal.SIGKILL)


def explore_other(location: str, folder: Path) -> None:
    space = small_problem()[0]
    pairs = Pairs(location, Setting({"parent": "another"}))
    for number in range(1, 30):
        claim = pairs.take([narrow(number)], "start")
        assert claim is not None
        with claim:
            claim.store(-float(number))
    (folder / "other").write_text(space.shape.__class__.__name__)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_settings_on_one_storage(location: str, kind: str, tmp_path: Path, undisturbed: Explored) -> None:
    workers = [worker(location, tmp_path) for _ in range(2)]
    other = FORK.Process(target=explore_other, args=(location, tmp_path))
    other.start()
    for process in (*workers, other):
        process.join()
        assert process.exitcode == 0
    check(location, tmp_path, undisturbed, 0, 2)
    theirs = Pairs(location, Setting({"parent": "another"})).all
    assert theirs == [Pair(narrow(number), -float(number), "start") for number in range(1, 30)]


@pytest.mark.slow
def test_a_clock_that_jumps(tmp_path: Path, undisturbed: Explored, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, real = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: real() + draw.choice((-1e9, -3600.0, 0.0, 7200.0, 1e9)))
    location = str(tmp_path / "pairs.journal")
    workers = [worker(location, tmp_path) for _ in range(3)]
    for process in workers:
        process.join()
        assert process.exitcode == 0
    check(location, tmp_path, undisturbed, 0, 3)


def test_only_silence_by_its_own_clock_tells_a_listener_that_a_worker_is_dead() -> None:
    now = [0.0]
    listener = Listener(10.0, clock=lambda: now[0])
    assert not listener.is_dead(1, None)
    for second, beat, dead in (
        (9, None, False),
        (11, None, True),
        (12, 1, False),
        (21, 1, False),
        (23, 1, True),
    ):
        now[0] = second
        assert listener.is_dead(1, beat) is dead
    listener.forget(1)
    assert not listener.is_dead(1, 1)


def measure_elsewhere(location: str, folder: Path, beat: float) -> None:
    """A worker that others take for one on another machine; it stores its pair when it is told to."""
    claims.place = lambda: "elsewhere"
    claim = Pairs(location, SETTING, beat=beat).take([narrow(1)], "there")
    assert claim is not None
    with claim:
        (folder / "held").touch()
        until((folder / "go").exists)
        claim.store(-1.0)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("silent", [False, True])
def test_a_worker_elsewhere_has_its_claim_for_as_long_as_it_beats(
    location: str, kind: str, silent: bool, tmp_path: Path
) -> None:
    here = Pairs(location, SETTING, silence=0.8)
    beat = 3600.0 if silent else 0.05
    process = FORK.Process(target=measure_elsewhere, args=(location, tmp_path, beat))
    process.start()
    until((tmp_path / "held").exists)
    start, claim = time.monotonic(), None
    while claim is None and time.monotonic() < start + 2.0:
        claim = here.take([narrow(1)], "here")
        time.sleep(0.01)
    assert (claim is not None) == silent
    assert not silent or time.monotonic() > start + 0.8
    (tmp_path / "go").touch()  # one that was silent, and lives, comes too late
    process.join()
    assert process.exitcode == 0
    if claim is not None:
        claim.store(-2.0)
    stored = Pairs(location, SETTING)
    assert stored.all == [Pair(narrow(1), -2.0, "here") if silent else Pair(narrow(1), -1.0, "there")]
    assert stored._reasons.get(narrow(1), []) == ([DIED] if silent else [])


def test_a_process_is_known_by_its_start_and_not_by_its_number_alone() -> None:
    me = Worker.here()
    assert me.lives(me.place) is True
    assert me.lives("elsewhere") is None
    assert Worker(me.name, me.place, me.process, "1", me.token).lives(me.place) is False
    gone = FORK.Process(target=int)
    gone.start()
    gone.join()
    assert Worker(me.name, me.place, gone.pid or 0, me.started, me.token).lives(me.place) is False
    assert Worker.read(vars(me)) == me
    for wrong in (None, [], {}, {**vars(me), "process": "1"}, {**vars(me), "more": 1}):
        assert Worker.read(wrong) is None
