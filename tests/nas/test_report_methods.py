"""Search and random search are told apart in a report, and speeds come with their spread."""

import json
from pathlib import Path

import numpy as np
import pytest

from nas.report import terminal_table, verdict, write_html
from nas.report.compare import rows
from nas.report.plots import best_so_far, origins, pair_points
from tests.nas.example_report import PARENT_NLL, synthetic_report


def test_random_search_has_its_own_line_and_is_not_counted_as_search(tmp_path: Path) -> None:
    report = synthetic_report(3, 12)
    lucky = {"digest": "0", "kept": 0.4, "score": -PARENT_NLL, "origin": "random_search"}
    unlucky = {**lucky, "score": -PARENT_NLL - 3}
    before = best_so_far(report)["search"]
    report["pairs"] += [unlucky, lucky]
    best = best_so_far(report)
    assert np.array_equal(best["search"], before)
    assert len(best["random_search"]) == 2 and best["random_search"][1] < best["random_search"][0]
    assert origins(pair_points(report)[2])["random_search"] == "random_search"
    write_html(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "of its 12." in page
    assert "random search, 2" in page and "random_search, 2" not in page


def test_a_choice_that_two_rounds_dropped_is_counted_once(tmp_path: Path) -> None:
    report = synthetic_report(3, 12)
    pruning = report["pruning"]
    gone = len(pruning["dropped"])
    pruning["dropped"].append({**pruning["dropped"][0], "round": 9})
    knob = pruning["dropped"][1]["knob"]
    pruning["left"][knob] = sorted([*pruning["left"][knob], pruning["dropped"][1]["choice"]])  # it came back
    write_html(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    every, left = (sum(map(len, pruning[key].values())) for key in ("choices", "left"))
    assert every - left == gone - 1
    assert f"of {every} choices the last round left {left}," in page
    assert f"The {gone} choices that some round dropped" in page
    assert "1 did and is left in the end" in page


def test_speeds_have_the_quartiles_of_their_turns() -> None:
    report = synthetic_report(3, 12)
    assert rows(report)[1].prefill_faster.low is None  # an earlier report has medians alone
    report["parent_scores"]["latency"] |= {
        "prefill_ms": 12.0,
        "prefill_turns": [10.0, 12.0, 14.0, 12.0, 12.0],
    }
    report["subnet"]["latency"] |= {"prefill_ms": 8.0, "prefill_turns": [8.0, 8.0, 8.0, 6.0, 8.0]}
    speed = rows(report)[1].prefill_faster
    assert (speed.low, speed.times, speed.high) == (1.5, 1.5, 1.75)
    assert "1.5 ±0.1" in terminal_table(report)
    assert "quartiles 1.50 to 1.75" in verdict(report).text


def test_a_speed_lies_within_its_quartiles() -> None:
    report = synthetic_report(3, 12)  # the machine was half as fast in three of the turns, not the same three
    report["parent_scores"]["latency"] |= {
        "prefill_ms": 30.0,
        "prefill_turns": [20.0, 20.0, 40.0, 40.0, 30.0],
    }
    report["subnet"]["latency"] |= {"prefill_ms": 16.0, "prefill_turns": [16.0, 15.0, 30.0, 32.0, 15.0]}
    speed = rows(report)[1].prefill_faster
    assert speed.low <= speed.times <= speed.high < 30.0 / 16.0


def test_the_verdict_and_the_table_tell_every_cost() -> None:
    report = synthetic_report(3, 12)
    whole = {"parameters": 100, "block_parameters": 80, "flops": 1000, "kv_cache_bytes": 64}
    report["budget"]["parent_costs"] = whole
    report["subnet"]["costs"] = {"parameters": 60, "block_parameters": 40, "flops": 550, "kv_cache_bytes": 16}
    own = rows(report)[1]
    assert (own.flops_kept, own.kv_kept) == pytest.approx((0.55, 0.25))
    assert "55 % of the FLOPs and 25 % of the KV cache" in verdict(report).text.replace("\u202f", " ")
    subnet = next(line for line in terminal_table(report).splitlines() if line.startswith("subnet"))
    assert subnet.split()[5:9] == ["55", "%", "25", "%"]


def test_a_report_says_the_same_before_it_is_written_and_after() -> None:
    report = synthetic_report(3, 12)
    for latency in (report["parent_scores"]["latency"], report["subnet"]["latency"]):
        latency["prefill_turns"] = (30.0, 31.0, 35.0)
    assert rows(report) == rows(json.loads(json.dumps(report)))
    assert rows(report)[1].prefill_faster.low is not None
