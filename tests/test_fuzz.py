"""What others made is data: every parser answers ten thousand damaged files with a result or a sentence."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st

from data.errors import InputError
from data.files import Field, read_passages
from experiments import command_line, compress
from nas.architecture import Architecture
from nas.engines.checkpoint import open_checkpoint
from nas.export import save_checkpoint
from nas.latency_table import read_latency, write_latency
from nas.pair_table import read_pairs, write_pairs
from nas.pairs import Pairs, Setting
from nas.parent import read_config
from nas.recovery.state import read_state, write_state
from nas.subnet import cut
from tests.mutations import mutated
from tests.nas.small_spaces import small_space
from tests.nas.test_latency_table import small_latency
from tests.nas.test_pair_table import small_table
from tests.nas.test_pairs import narrow
from tests.nas.tiny_models import architecture_of_cut, permuted_parent

TIMES = int(os.environ.get("SECATEUR_FUZZ", "10000"))
"""Damaged inputs of each parser."""
EACH = 100
"""Of these that follow from one seed: hypothesis draws seeds, which costs less than drawing every edit."""
LONGEST = 20.0
"""Seconds that one of them may take."""


class Parser(NamedTuple):
    """`make(folder)` writes a valid file there and returns it; `read` reads one."""

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    is_json: bool = False


def text(name: str, content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return make


def pair_store(folder: Path) -> Path:
    pairs = Pairs(str(folder / "pairs.journal"), Setting({"seed": 0}))
    for number in (1, 2):
        claim = pairs.take([narrow(number)], "start")
        assert claim is not None
        claim.store(-float(number), accuracy=0.5)
    assert pairs.take([narrow(3)], "start") is not None
    return folder / "pairs.journal"


def pair_table(folder: Path) -> Path:
    write_pairs(small_table(3), folder / "pairs.parquet")
    return folder / "pairs.parquet"


def latency(folder: Path) -> Path:
    write_latency(small_latency(small_space(3).shape), folder / "latency.json")
    return folder / "latency.json"


def state(folder: Path) -> Path:
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 0.99)}]}
    write_state(folder / "state", "x", {"step": 3, "optimizer": optimizer, "history": [(1.0, None)]})
    return folder / "state"


def checkpoint(file: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        parent, shape = permuted_parent("llama")
        architecture = architecture_of_cut("narrow", shape)
        save_checkpoint(cut(parent, shape, architecture), parent.config, shape, architecture, folder / "c")
        return folder / "c" / file

    return make


def blocks(path: Path) -> object:
    found = open_checkpoint(path.parent)
    return found.blocks, found.tied, found.shapes, [found.tensor(name) for name in found.places]


def store(path: Path) -> object:
    pairs = Pairs(str(path), Setting({"seed": 0}))
    return pairs.all, pairs.failures


def passages(path: Path) -> object:
    return read_passages(path, Field("text", None))


ROWS = [{"text": "one two", "more": 1}, {"text": "three\n\nfour"}, {"text": "five"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
YAML = "keep: 0.5\nparent: demo\nseed: 3\nrandom-search: false\nmax-flops: null\nout: runs/x\n"
OPTIONS = command_line._options(compress.Settings)
PARSERS = {
    "architecture": Parser(
        text("a.json", narrow(3).to_json()),
        lambda path: Architecture.from_json(path.read_text("latin-1")), True,
    ),
    "pair store": Parser(pair_store, store),
    "pair table": Parser(pair_table, read_pairs),
    "latency table": Parser(latency, lambda path: read_latency(path, small_space(3).shape), True),
    "training state": Parser(state, lambda path: read_state(path, "x")),
    "checkpoint's configuration": Parser(checkpoint("config.json"), blocks, True),
    "checkpoint's weights": Parser(checkpoint("model.safetensors"), blocks),
    "parent's configuration": Parser(
        lambda folder: Path(shutil.copy("data/demo/config.json", folder)),
        lambda path: read_config(str(path.parent)), True,
    ),
    "settings": Parser(
        text("s.yaml", YAML), lambda path: command_line._from_file(path, OPTIONS)
    ),
    "text": Parser(text("a.txt", "one two\n\nthree\n"), read_passages),
    "JSON lines": Parser(text("a.jsonl", LINES), passages, True),
    "JSON": Parser(text("a.json", json.dumps(ROWS)), passages, True),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
def test_damage_is_answered_with_a_result_or_a_sentence(name: str, tmp_path: Path) -> None:
    parser = PARSERS[name]
    path = parser.make(tmp_path)
    valid = path.read_bytes()
    parser.read(path)
    refused = 0

    @settings(max_examples=TIMES // EACH, deadline=None, database=None, derandomize=True)
    @given(st.integers(0, 2**32 - 1))
    def damage(seed: int) -> None:
        nonlocal refused
        draw = Random(seed)
        for number in range(EACH):
            path.write_bytes(mutated(valid, draw, parser.is_json))
            note(f"input {number}: {path.read_bytes()[:500]!r}")
            start = time.monotonic()
            try:
                parser.read(path)
            except InputError as error:
                refused += 1
                assert 0 < len(str(error)) < 1000, f"input {number}"
            assert time.monotonic() - start < LONGEST, f"input {number}"

    damage()
    assert refused > TIMES // 20  # or the edits spoil nothing
