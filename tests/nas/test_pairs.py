"""Pairs: stored the moment they exist, never lost, never measured twice, and never of another setting."""

import copy
import multiprocessing
import os
import re
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from data.errors import InputError
from nas import storage
from nas.architecture import Architecture, Block
from nas.building import SubnetMeter, build_pairs, table
from nas.cost import Budget, CostModel
from nas.evaluate import Scores, evaluate
from nas.families import layers_of
from nas.pairs import Pair, Pairs, Setting
from nas.shape import Shape, Widths, architecture_of, widths_of
from nas.space import SearchSpace
from nas.storage import JournalLock
from nas.subnet import cut
from tests.nas.small_spaces import damage, everything, part_of, score, small_space
from tests.nas.tiny_models import CUTS, architecture_of_cut, permuted_parent, tokens

SETTING = Setting({"parent": "toy", "seed": 0})


def narrow(ffn: int) -> Architecture:
    return Architecture(16, (Block(0, 1, 1, ffn),))


class Meter:
    """Measures exactly and remembers what."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.measured: list[Architecture] = []

    def __call__(self, widths: Widths) -> Scores:
        self.measured.append(architecture_of(widths, self.shape))
        return Scores(2.0 + float(damage(widths)), 0.5, 100)


def small_problem() -> tuple[SearchSpace, Budget]:
    space = small_space(3)
    return space, part_of(space, 0.5)


@pytest.fixture(params=["journal", "sqlite"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "pairs.journal") if request.param == "journal" else f"sqlite:///{tmp_path}/pairs.db"


def test_what_is_stored_is_read_back(location: str) -> None:
    pairs = Pairs(location, SETTING)
    scores = [-0.1, -(0.1 + 0.2), -1e-300, -745.2, 0.0, 1 / 3]
    stored = [pairs.add(narrow(i + 1), value, f"round {i}", accuracy=0.5) for i, value in enumerate(scores)]
    assert stored == [Pair(narrow(i + 1), value, f"round {i}") for i, value in enumerate(scores)]
    for again in (pairs, Pairs(location, SETTING)):
        assert again.all == stored
        assert len(again) == 6


def test_settings_never_mix_in_one_storage(location: str) -> None:
    mine, theirs = Pairs(location, SETTING), Pairs(location, Setting({**SETTING.fields, "seed": 1}))
    mine.add(narrow(1), -1.0, "start")
    theirs.add(narrow(1), -2.0, "start")
    theirs.add(narrow(2), -3.0, "start")
    assert [pair.score for pair in Pairs(location, SETTING).all] == [-1.0]
    assert [pair.score for pair in Pairs(location, Setting({"seed": 1, "parent": "toy"})).all] == [-2.0, -3.0]
    assert len(Pairs(location, Setting({"seed": 2}))) == 0


@given(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), min_size=2, max_size=4))
def test_settings_differ_where_their_fields_do_and_not_by_their_order(fields: dict[str, int | str]) -> None:
    setting = Setting(fields)
    assert Setting(dict(reversed(fields.items()))).digest == setting.digest
    name = next(iter(fields))
    assert Setting({**fields, name: [fields[name]]}).digest != setting.digest
    assert Setting({key: value for key, value in fields.items() if key != name}).digest != setting.digest


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_number_is_refused(location: str, value: float) -> None:
    pairs = Pairs(location, SETTING)
    with pytest.raises(InputError, match="scored -?(nan|inf)"):
        pairs.add(narrow(1), value, "start")
    assert Pairs(location, SETTING).all == pairs.all == []


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "torn inside": lambda whole: whole.replace(b'"architecture"', b'"archi\n', 1),
    "garbage inside": lambda whole: whole.replace(b"\n", b"\ngarbage\n", 4),
    "garbage behind": lambda whole: whole + b"garbage\n",
    "zeros behind": lambda whole: whole + bytes(64),
    "not text": lambda whole: bytes(range(256)) * 4,
    "no records": lambda whole: b"[1, 2]\n",
    "other records": lambda whole: b'{"op_code": 99}\n',
    "an infinite score": lambda whole: whole.replace(b'"value":-2.5', b'"value":-Infinity'),
    "an impossible architecture": lambda whole: whole.replace(rb"\"kv_groups\":1", rb"\"kv_groups\":0"),
    "no architecture": lambda whole: whole.replace(b'"architecture"', b'"something"'),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_store_is_refused_in_a_sentence_and_left_alone(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "pairs.journal"
    pairs = Pairs(str(file), SETTING)
    for i in range(5):
        pairs.add(narrow(i + 1), -0.5 - i, "start")
    damaged = DAMAGES[kind](file.read_bytes())
    assert damaged != file.read_bytes()
    file.write_bytes(damaged)
    with pytest.raises(InputError, match=r"^the pair store .*; move it away to start afresh$") as caught:
        Pairs(str(file), SETTING)
    assert "\n" not in str(caught.value)
    assert file.read_bytes() == damaged


@pytest.mark.parametrize("missing", [1, 2, 20, 80])
def test_what_a_killed_writer_left_unfinished_is_measured_again_and_nothing_else(
    tmp_path: Path, missing: int
) -> None:
    file = tmp_path / "pairs.journal"
    pairs = Pairs(str(file), SETTING)
    for i in range(5):
        pairs.add(narrow(i + 1), -0.5 - i, "start")
    whole = file.read_bytes()
    file.write_bytes(whole[:-missing])
    again = Pairs(str(file), SETTING)
    kept = 5 if missing == 1 else 4  # without its line's end alone the record is whole
    assert again.all == pairs.all[:kept]
    for pair in pairs.all[kept:]:
        again.add(pair.architecture, pair.score, pair.origin)
    assert Pairs(str(file), SETTING).all == pairs.all


@pytest.mark.parametrize("left", [10, 40])
def test_a_writer_killed_at_its_first_record_stored_nothing(tmp_path: Path, left: int) -> None:
    file = tmp_path / "pairs.journal"
    Pairs(str(file), SETTING).add(narrow(1), -0.5, "start")
    file.write_bytes(file.read_bytes()[:left])
    assert len(Pairs(str(file), SETTING)) == 0


def test_a_store_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for location in (
        tmp_path,
        tmp_path / "file" / "pairs.journal",
        "nosuch://somewhere",
        "sqlite:////no/x.db",
    ):
        with pytest.raises(InputError, match="the pair store .* cannot be read"):
            Pairs(str(location), SETTING)


def test_reading_a_store_leaves_it_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "pairs.journal"
    Pairs(str(file), SETTING).add(narrow(1), -1.0, "start")
    before = file.read_bytes()
    assert len(Pairs(str(file), SETTING)) == 1
    assert file.read_bytes() == before


def die_with_the_lock(journal: Path) -> None:
    lock = JournalLock(journal)  # let go, it would be released
    lock.acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_lock_goes_with_the_process_that_held_it(tmp_path: Path) -> None:
    file = tmp_path / "pairs.journal"
    Pairs(str(file), SETTING).add(narrow(1), -1.0, "start")
    holder = multiprocessing.get_context("fork").Process(target=die_with_the_lock, args=(file,))
    holder.start()
    holder.join()
    assert holder.exitcode == -signal.SIGKILL
    start = time.monotonic()
    Pairs(str(file), SETTING).add(narrow(2), -2.0, "start")
    assert len(Pairs(str(file), SETTING)) == 2
    assert time.monotonic() - start < 20  # Optuna's own lock waits 30 seconds


def stop_with_the_lock(location: str) -> None:
    """Stopped with what it holds, until it is told to go on."""
    if location.startswith("sqlite"):
        holder = sqlite3.connect(location.removeprefix("sqlite:///"), isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
    else:
        lock = JournalLock(Path(location))
        lock.acquire()
    os.kill(os.getpid(), signal.SIGSTOP)


def test_who_waits_for_a_process_that_is_stopped_says_so_and_gives_up(
    location: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(storage, "ATTEMPT", 0.1)
    monkeypatch.setattr(storage, "NOTICE", 0.2)
    monkeypatch.setattr("nas.pairs.HASTE", 0.5)
    claim = Pairs(location, SETTING).take([narrow(1)], "start")
    assert claim is not None
    holder = multiprocessing.get_context("fork").Process(target=stop_with_the_lock, args=(location,))
    holder.start()
    assert os.WIFSTOPPED(os.waitpid(holder.pid or 0, os.WUNTRACED)[1])
    try:
        for said in (1, 0):
            with pytest.raises(InputError, match=r"has held the lock of the pair store for [01] .*pairs"):
                claim.give_back()
            assert capsys.readouterr().err.count("waiting for the lock of the pair store") == said
    finally:
        os.kill(holder.pid or 0, signal.SIGCONT)
        holder.join()
    claim.store(-1.0)
    assert [pair.score for pair in Pairs(location, SETTING).all] == [-1.0]


def test_only_the_unknown_are_measured_and_each_once(tmp_path: Path) -> None:
    space, budget = small_problem()
    pairs, meter = Pairs(str(tmp_path / "p"), SETTING), Meter(space.shape)
    rows = everything(space, budget)[100:110]
    twice = np.concatenate([rows[:6], rows[:3], rows[5:]])
    built = build_pairs(pairs, meter, space.shape, budget, twice, "start", quiet=True)
    assert [pair.architecture for pair in built] == [architecture_of(row, space.shape) for row in rows]
    assert meter.measured == [pair.architecture for pair in built]
    again = build_pairs(pairs, meter, space.shape, budget, rows[::-1], "later", quiet=True)
    assert again == built[::-1]
    assert len(meter.measured) == len(pairs) == 10
    widths, scores = table(built, space.shape)
    assert (widths == rows).all()
    assert (scores == score(rows) - 2.0).all()


def test_what_is_over_budget_is_never_measured(tmp_path: Path) -> None:
    space, budget = small_problem()
    pairs, meter = Pairs(str(tmp_path / "p"), SETTING), Meter(space.shape)
    rows = np.stack([everything(space, budget)[0], widths_of(space.shape.parent, space.shape)])
    with pytest.raises(ValueError, match="1 of 2 proposals are over budget"):
        build_pairs(pairs, meter, space.shape, budget, rows, "start", quiet=True)
    assert meter.measured == pairs.all == []


def nan() -> Scores:
    return Scores(float("nan"), 0.5, 100)


def too_large() -> Scores:
    raise torch.OutOfMemoryError("tried to allocate 20.00 GiB")


def on_the_cpu() -> Scores:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")


@pytest.mark.parametrize("fault", [nan, too_large, on_the_cpu])
def test_a_subnet_that_cannot_be_measured_is_left_out_with_its_reason(
    location: str, fault: Callable[[], Scores], capsys: pytest.CaptureFixture[str]
) -> None:
    space, budget = small_problem()
    rows, tried = everything(space, budget)[:5], []

    def measure(widths: Widths) -> Scores:
        tried.append(architecture_of(widths, space.shape))
        return fault() if (widths == rows[3]).all() else Scores(1.0, 0.5, 100)

    pairs, poison = Pairs(location, SETTING), architecture_of(rows[3], space.shape)
    built = build_pairs(pairs, measure, space.shape, budget, rows, "start", quiet=True)
    assert [pair.architecture for pair in built] == [
        architecture_of(row, space.shape) for row in rows[[0, 1, 2, 4]]
    ]
    assert tried.count(poison) == 2 and len(tried) == 6
    reason = {nan: "scored nan", too_large: "out of memory: .*20.00 GiB", on_the_cpu: "out of memory"}[fault]
    again = Pairs(location, SETTING)
    assert [*again.failures] == [poison]
    assert re.search(rf"{reason}.*\(tried 2 times\)", again.failures[poison])
    assert re.search(
        f"1 of 5 subnets could not be measured, {poison.digest} because", capsys.readouterr().err
    )
    assert build_pairs(again, measure, space.shape, budget, rows, "start", quiet=True) == built
    assert len(tried) == 6
    with pytest.raises(InputError, match="its parent or its repair is broken, or too large"):
        build_pairs(again, measure, space.shape, budget, rows[3:4], "start", quiet=True)


def test_an_error_that_is_no_measurement_ends_the_building_and_is_on_record(location: str) -> None:
    space, budget = small_problem()
    rows = everything(space, budget)[:3]

    def measure(widths: Widths) -> Scores:
        if (widths == rows[1]).all():
            raise ZeroDivisionError("a bug")
        return Scores(1.0, 0.5, 100)

    for left in (1, 2):  # what went wrong comes last
        with pytest.raises(ZeroDivisionError):
            build_pairs(Pairs(location, SETTING), measure, space.shape, budget, rows, "start", quiet=True)
        assert len(Pairs(location, SETTING)) == left
    built = build_pairs(Pairs(location, SETTING), measure, space.shape, budget, rows, "start", quiet=True)
    assert len(built) == 2
    assert [*Pairs(location, SETTING).failures.values()] == ["ZeroDivisionError: a bug (tried 2 times)"]


def test_what_was_interrupted_is_no_failure(location: str) -> None:
    pairs = Pairs(location, SETTING)
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt), pairs.take([narrow(1)], "start") or pytest.fail():
            raise KeyboardInterrupt
    assert Pairs(location, SETTING).failures == {}
    claim = pairs.take([narrow(1)], "start")
    assert claim is not None and claim.architecture == narrow(1)
    assert Pairs(location, SETTING).take([narrow(1)], "start") is None


@pytest.mark.parametrize("room", [1, 3, 8])
def test_a_device_that_runs_out_of_memory_halfway_costs_no_pair(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parent, shape = permuted_parent("llama")
    kept = CostModel(shape, 8, 4)
    whole, windows = Budget(kept, kept(shape.parent)), tokens(batch=16)
    rows = np.stack([widths_of(architecture_of_cut(kind, shape), shape) for kind in CUTS[:6]])

    def build(name: str) -> tuple[list[Pair], SubnetMeter]:
        meter = SubnetMeter(parent, shape, None, windows, 8)  # type: ignore[arg-type]
        pairs = Pairs(str(tmp_path / name), SETTING)
        return build_pairs(pairs, meter, shape, whole, rows, "start", quiet=True), meter

    undisturbed, _ = build("undisturbed")
    forward, passes = type(parent).forward, []

    def small(self: PreTrainedModel, ids: torch.Tensor, *given: object, **more: object) -> object:
        passes.append(len(ids))
        if len(passes) > 5 and len(ids) > room:  # in the middle of the third subnet
            raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")
        return forward(self, ids, *given, **more)

    monkeypatch.setattr(type(parent), "forward", small)
    found, meter = build("disturbed")
    assert meter.batch_size == {1: 1, 3: 2, 8: 8}[room]
    assert capsys.readouterr().err.count("out of memory") == {1: 3, 3: 2, 8: 0}[room]
    assert [pair.architecture for pair in found] == [pair.architecture for pair in undisturbed]
    np.testing.assert_allclose(
        [pair.score for pair in found], [pair.score for pair in undisturbed], rtol=1e-6
    )


def test_a_layer_of_nan_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    whole, shape = permuted_parent("llama")
    parent = copy.deepcopy(whole)
    layers_of(parent)[1].down_proj.weight.data[:] = float("nan")
    cost = CostModel(shape, 8, 4)
    rows = np.stack([widths_of(architecture_of_cut(kind, shape), shape) for kind in CUTS])
    dropped = [architecture_of(row, shape) for row in rows if row[1, 2] == 0]
    pairs = Pairs(str(tmp_path / "p"), SETTING)
    meter = SubnetMeter(parent, shape, None, tokens(batch=4), 2)  # type: ignore[arg-type]
    built = build_pairs(pairs, meter, shape, Budget(cost, cost(shape.parent)), rows, "start", quiet=True)
    assert [pair.architecture for pair in built] == dropped != []
    assert {*pairs.failures} == {architecture_of(row, shape) for row in rows} - {*dropped}
    assert all("scored nan" in reason for reason in pairs.failures.values())


def test_a_meter_scores_the_subnet_itself() -> None:
    parent, shape = permuted_parent("llama")
    meter = SubnetMeter(parent, shape, None, tokens(batch=3), 2)  # type: ignore[arg-type]
    for kind in CUTS[:3]:
        architecture = architecture_of_cut(kind, shape)
        expected = evaluate(cut(parent, shape, architecture), tokens(batch=3), batch_size=2)
        assert meter(widths_of(architecture, shape)) == expected
