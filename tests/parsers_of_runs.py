"""Every reader of what runs leave, with a small valid file for each: pairs, tables, records, reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from experiments import build_pairs, compare_predictors, ranking_flips, search_subnets
from experiments.published.compare import with_others
from experiments.published.outcome import RESULT, produced
from experiments.published.table import table
from experiments.results import REPORT, claim
from experiments.stages import Stages
from nas.architecture import Architecture
from nas.latency_table import read_latency, write_latency
from nas.pair_table import read_pairs, write_pairs
from nas.pairs import Pairs, Setting
from nas.recovery.state import read_state, write_state
from nas.report import read_report, terminal_table, write_json
from tests.nas.example_report import synthetic_report
from tests.nas.small_spaces import small_space
from tests.nas.test_latency_table import small_latency
from tests.nas.test_pair_table import small_table
from tests.nas.test_pairs import narrow
from tests.parsers import Parser, text


def pair_store(folder: Path) -> Path:
    pairs = Pairs(str(folder / "pairs.journal"), Setting({"seed": 0}))
    for number in (1, 2):
        claim = pairs.take([narrow(number)], "start")
        assert claim is not None
        claim.store(-float(number), accuracy=0.5)
    assert pairs.take([narrow(3)], "start") is not None
    return folder / "pairs.journal"


def store(path: Path) -> object:
    pairs = Pairs(str(path), Setting({"seed": 0}))
    return pairs.all, pairs.failures


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


def report(folder: Path) -> Path:
    """As small as one can be: tables are of scores, not of pairs."""
    content = synthetic_report(2, 2)
    write_json({**content, "pruning": {}, "front": [], "ablation": {}}, folder / REPORT)
    return folder / REPORT


def settings_of_a_run(folder: Path) -> Path:
    (folder / REPORT).touch()
    claim(folder, BUILT)
    return folder / "settings.json"


def result(folder: Path) -> Path:
    scores = {"perplexities": {"text": 3.0}, "tasks": {"piqa": {"acc": 0.5, "acc_stderr": 0.1}}}
    record: dict[str, Any] = {
        "system": "a", "keep": 0.5, "kept": 0.5, "parameters_kept": 0.6, "seconds": 3.0, "recovery": None,
        "checkpoint": "checkpoint", "architecture": {}, "costs": {}, "method": [], "details": {},
        "over_parent": 1.2, "parent": scores, "measured": {"x": 1}, "asked": ASKED, **scores,
    }  # fmt: skip
    write_json(record, folder / "a-0.5" / RESULT)
    (folder / "a-0.5" / "checkpoint").mkdir()
    (folder / "a-0.5" / "checkpoint" / "model.safetensors").touch()
    return folder / "a-0.5" / RESULT


ASKED = {"parent": "demo", "keep": 0.5, "seeds": [1, 2]}
ANYWHERE = {"device": "cpu", "out": "x", "cache": "y"}
FLIPS = {"parent_score": [-1.0, -2.0], "scores": {"abc": {"0": [-1.0, -2.0], "100": [-1.0, -2.0]}}}
BUILT = build_pairs.Settings(out=Path("pairs.parquet"))
OF_RUNS = {
    "architecture": Parser(
        text("a.json", narrow(3).to_json()),
        lambda path: Architecture.from_json(path.read_text("latin-1")), True,
    ),
    "pair store": Parser(pair_store, store),
    "pair table": Parser(pair_table, read_pairs),
    "latency table": Parser(latency, lambda path: read_latency(path, small_space(3).shape), True),
    "training state": Parser(state, lambda path: read_state(path, "x")),
    "report": Parser(report, lambda path: terminal_table(read_report(path)), True),
    "settings of a run": Parser(settings_of_a_run, lambda path: claim(path.parent, BUILT), True),
    "stage times": Parser(text("s.json", '{"a": 1.5, "b": 2}'), lambda path: Stages(path).seconds, True),
    "result": Parser(result, lambda path: produced(path.parent, ASKED), True),
    "results side by side": Parser(
        result, lambda path: table(with_others({"x": 1}, path.parents[1])), True
    ),
    "search": Parser(
        text("s.json", json.dumps(ASKED)), lambda path: search_subnets.refuse_other(path, ASKED), True
    ),
    "settings of pairs": Parser(
        text("p.json", json.dumps(build_pairs.mine(BUILT))),
        lambda path: build_pairs.refuse_other(path, BUILT), True,
    ),
    "fits of predictors": Parser(
        text("p.json", json.dumps([{"protocol": "x", "code": "y", "predictor": "z"}])),
        lambda path: compare_predictors.earlier(path, "x", []), True,
    ),
    "orders of subnets": Parser(
        text("f.json", json.dumps({"settings": {**ASKED, **ANYWHERE}, "protocol": ASKED, **FLIPS})),
        lambda path: ranking_flips.earlier(path, {**ASKED, **ANYWHERE}, ASKED), True,
    ),
}  # fmt: skip
