"""The main job on a toy: what it promises at its end, and after an interruption."""

import json
import math
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, dynamic_module_utils

from data.corpus import load_corpus
from data.windows import encode, spread, spread_apart, windows
from experiments import compress, finals
from nas import finalists
from nas.architecture import Architecture
from nas.evaluate import evaluate
from nas.pairs import Claim
from nas.repair import REPAIRS
from nas.report.record import check_report
from tests.experiments.toy_job import KEEP, PAIRS, SEQ_LEN, WORDS, everything_in, job, make_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Code that checkpoints carry is run from a cache in the home folder: here from another.
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def finished(toy: Path) -> Path:
    """The folder of a run that nothing disturbed."""
    assert job(toy, toy / "run") == 0
    return toy / "run"


def results(report: Any) -> Any:
    """A report without what differs from run to run: times and places."""
    if isinstance(report, dict):
        fleeting = {"created", "command", "stages", "latency", "seconds", "out"}
        return {key: results(value) for key, value in report.items() if key not in fleeting}
    return [results(item) for item in report] if isinstance(report, list) else report


def test_the_report_holds_all_that_is_promised(finished: Path, toy: Path) -> None:
    report = read(finished)
    check_report(report)
    assert report["parent"]["name"] == str(toy / "parent")
    assert report["seed"] == 0 and report["failures"] == []
    assert {pair["origin"] for pair in report["pairs"]} >= {"start", "round 1", "random_search"}
    explored = [pair for pair in report["pairs"] if pair["origin"] != "random_search"]
    assert len(explored) == len({pair["digest"] for pair in explored}) == PAIRS
    assert set(report["stages"]) >= {"load", "parent", "pairs and search", "finalists", "evaluate"}
    assert [item["round"] for item in report["search"]["rounds"]] == [1, 2]
    parent = report["parent_scores"]
    assert parent["validation"]["perplexity"] < WORDS / 3
    assert "<html" in (finished / "report.html").read_text()


def test_nothing_in_the_report_is_over_budget(finished: Path) -> None:
    report = read(finished)
    limit = report["budget"]["limits"]["block_parameters"]
    assert limit <= KEEP * report["parent"]["block_parameters"]
    for name in ("uniform", "random_search", "drop_layers"):
        assert report["baselines"][name]["block_parameters_kept"] <= KEEP
    assert report["subnet"]["block_parameters_kept"] <= KEEP
    assert report["subnet"]["costs"]["block_parameters"] <= limit
    assert all(pair["kept"] <= KEEP for pair in report["pairs"])


def test_the_checkpoint_scores_what_is_reported(finished: Path, toy: Path) -> None:
    report = read(finished)
    model = AutoModelForCausalLM.from_pretrained(finished / "checkpoint", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(finished / "checkpoint")
    corpus = load_corpus(str(toy / "corpus"))
    test, validation = (
        windows(encode(tokenizer, corpus.split(split)), SEQ_LEN) for split in ("test", "validation")
    )
    searched, chosen_on = spread_apart(validation, 4, 6)
    assert not any(torch.equal(a, b) for a in searched for b in chosen_on)
    for name, texts in (("test", spread(test, 6)), ("validation", chosen_on)):
        scores = evaluate(model.eval(), texts)
        assert scores.perplexity == report["subnet"]["scores"][name]["perplexity"]
        assert scores.accuracy == report["subnet"]["scores"][name]["accuracy"]
    inside = sum(weight.numel() for weight in model.model.layers.parameters())
    assert inside == report["subnet"]["costs"]["block_parameters"]
    architecture = Architecture.from_json(json.dumps(report["subnet"]["architecture"]))
    assert architecture.digest == report["subnet"]["digest"]
    assert len(model.model.layers) == len(architecture.blocks)
    assert (finished / "checkpoint" / "README.md").is_file()


def test_the_same_command_again_shows_the_result_and_does_no_work(
    finished: Path, toy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything_in(finished)
    monkeypatch.setattr(compress, "open_parent", lambda *_: pytest.fail("the parent was loaded"))
    monkeypatch.setattr(compress, "evaluate", lambda *_, **__: pytest.fail("something was evaluated"))
    capsys.readouterr()
    assert job(toy, finished) == 0
    shown = capsys.readouterr().out
    assert "uniform" in shown
    assert "finished before" in shown
    assert everything_in(finished) == before


# Pairs are stored in this order: the first ones, two rounds, uniform cuts and so on.
@pytest.mark.parametrize("after", [0, 5, 13, PAIRS + 2, PAIRS + 8, "finalists", "save"])
def test_an_interrupted_run_ends_with_the_same_report(
    finished: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int | str
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        assert job(toy, tmp_path / "run") == 130
    before = (tmp_path / "run" / "pairs.journal").read_bytes()
    assert not (tmp_path / "run" / "report.json").exists()
    assert job(toy, tmp_path / "run") == 0
    assert (tmp_path / "run" / "pairs.journal").read_bytes().startswith(before)
    assert results(read(tmp_path / "run")) == results(read(finished))
    ours, theirs = ((out / "pairs.journal").read_text() for out in (tmp_path / "run", finished))
    assert ours.count('"state":1,') == theirs.count('"state":1,') > PAIRS  # none measured twice


def test_pairs_by_halving_are_reported_as_what_they_are(finished: Path, toy: Path, tmp_path: Path) -> None:
    assert job(toy, tmp_path / "run", fidelity="halving") == 0
    report = read(tmp_path / "run")
    check_report(report)
    found = re.search(r"^(\d+) subnets on all of these, (\d+) more on a part", report["protocol"]["search"])
    assert found
    assert len(report["pairs"]) == int(found[1]) < 2 * PAIRS
    assert int(found[1]) + int(found[2]) == 2 * PAIRS  # random search has as many
    last = report["search"]["rounds"][-1]
    assert (last["pairs"], last["pairs"] + last["estimates"]) == (report["subnet"]["evaluations"], PAIRS)
    digests = {pair["digest"] for pair in report["pairs"]}
    assert all(each["digest"] in digests for each in report["subnet"]["finalists"])
    whole = {pair["digest"]: pair["score"] for pair in read(finished)["pairs"]}
    both = [pair for pair in report["pairs"] if pair["digest"] in whole]
    assert both
    assert all(pair["score"] == pytest.approx(whole[pair["digest"]], rel=1e-5) for pair in both)


def test_halving_is_refused_where_pairs_are_trained(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job(toy, tmp_path / "run", fidelity="halving", recovery_steps=2) == 2
    assert "give --fidelity full" in capsys.readouterr().err


def interrupt(patch: pytest.MonkeyPatch, after: int | str) -> None:
    """Ctrl-C while the pair after so many is measured, behind the third finalist, or while the checkpoint is
    saved."""
    at: dict[Any, tuple[Any, str, int]] = {
        "finalists": (finals.Remembered, "keep", 2),
        "save": (compress, "save_checkpoint", 0),
    }
    counted(patch, *at.get(after, (Claim, "store", after)))


def counted(patch: pytest.MonkeyPatch, place: Any, name: str, most: float = math.inf) -> list[str]:
    """Grows with every call of a function; Ctrl-C at the one after so many."""
    real, calls = getattr(place, name), []

    def call(*given: Any, **more: Any) -> Any:
        if len(calls) == most:
            raise KeyboardInterrupt
        calls.append(name)
        return real(*given, **more)

    patch.setattr(place, name, call)
    return calls


def test_what_was_repaired_and_scored_is_kept_for_these_settings_alone(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With its pairs elsewhere a folder may be given other settings, beside what was kept for those before.
    given: dict[str, Any] = {"storage": tmp_path / "pairs.journal", "latency_repeats": 0}

    def done_until_the_report(**changed: Any) -> Counter[str]:
        with monkeypatch.context() as patch:
            counted(patch, compress, "predictor_record", 0)
            repair = REPAIRS["front_to_back"]
            named = SimpleNamespace(repair=repair.make)
            places = ((named, "repair"), (finalists, "evaluate"), (finals, "evaluate_all"))
            calls = [counted(patch, *place) for place in (*places, (finals, "measure_latency"))]
            patch.setitem(REPAIRS, "front_to_back", replace(repair, make=named.repair))
            assert job(toy, tmp_path / "run", **given, **changed) == 130
        return Counter(name for each in calls for name in each)

    everything = {"repair": 4, "evaluate": 4, "evaluate_all": 1, "measure_latency": 1}
    assert done_until_the_report() == everything
    assert done_until_the_report() == {}
    assert done_until_the_report(test_windows=5) == {"repair": 4, "evaluate_all": 1}
    everything.pop("repair")  # by the one that is counted
    assert done_until_the_report(repair="least_squares") == everything


@pytest.mark.slow
def test_other_limits_hold_too(toy: Path, tmp_path: Path) -> None:
    limits = {"keep": "none", "max_kv_cache": 4000, "max_flops": 900_000, "max_parameters": 14_000}
    assert job(toy, tmp_path / "run", **limits, predictor="xgboost") == 0
    report = read(tmp_path / "run")
    assert set(report["budget"]["limits"]) == {"kv_cache_bytes", "flops", "parameters"}
    assert report["baselines"]["uniform"] is None  # it would need three KV groups
    for model in (report["subnet"], report["baselines"]["random_search"], report["baselines"]["drop_layers"]):
        for name, limit in report["budget"]["limits"].items():
            assert model["costs"][name] <= limit


@pytest.mark.parametrize("keep", [1.0, 0.1])
def test_a_budget_at_the_end_of_its_range_is_met(toy: Path, tmp_path: Path, keep: float) -> None:
    assert job(toy, tmp_path / "run", keep=keep) == 0
    report = read(tmp_path / "run")
    check_report(report)
    assert report["subnet"]["block_parameters_kept"] <= keep


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_a_parent_that_is_not_on_the_device_ends_in_the_same_subnet(
    place: str, toy: Path, tmp_path: Path
) -> None:
    given = {"latency_repeats": 0, "cache": tmp_path / "cache"}
    for where in ("device", place):
        assert job(toy, tmp_path / where, parent_on=where, **given) == 0
    mine, expected = (read(tmp_path / where) for where in (place, "device"))
    for key in ("subnet", "baselines", "parent_scores", "pairs", "predictor"):
        assert results(mine[key]) == results(expected[key]), key
    weights = [(tmp_path / where / "checkpoint" / "model.safetensors") for where in (place, "device")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_what_a_parent_that_is_not_on_the_device_cannot_have_is_said(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, sentence in (
        ({"latency_repeats": 1}, "the time of a choice would be that of fetching weights"),
        ({"latency_repeats": 0, "recovery_steps": 2}, "--recovery-steps 2 trains whole models"),
        ({"latency_repeats": 0, "ranking": "taylor_mix"}, "needs gradients of the whole parent"),
    ):
        assert job(toy, tmp_path / "out", parent_on="disk", **options) == 2
        assert sentence in capsys.readouterr().err
