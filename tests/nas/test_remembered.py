"""What is remembered is what was computed, for the very same inputs, or it is computed anew."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import pytest

from nas.evaluate import Scores
from nas.latency import Latency
from nas.remembered import Remembered

INPUTS = {"parent": "abc", "windows": 4, "knobs": {"0.ffn": (1, 2)}}
SCORES = Scores(0.1 + 0.2, 1 / 3, 100, 1e-300)


def never() -> Scores:
    raise AssertionError("computed again")


def kept(folder: Path) -> Remembered[Scores]:
    scores = Remembered(folder, Scores, INPUTS)
    assert scores(lambda: SCORES, architecture="a") == SCORES
    return scores


def test_what_is_there_is_not_computed_again(tmp_path: Path) -> None:
    kept(tmp_path)
    again = Remembered(tmp_path, Scores, dict(reversed(INPUTS.items())))
    assert again(never, architecture="a") == SCORES
    latency = Latency(0.1, 0.2, 1, 8, (0.1, 0.3), (0.2,))
    times = Remembered(tmp_path, Latency, INPUTS)
    assert times.find() is None
    assert times.keep(latency) == times.find() == latency
    assert [file.suffix for file in tmp_path.iterdir()] == [".json", ".json"]


@pytest.mark.parametrize("name", [*INPUTS, "architecture", "more"])
def test_with_any_other_input_it_is(name: str, tmp_path: Path) -> None:
    kept(tmp_path)
    inputs = {**INPUTS, "architecture": "a", name: "other"}
    other = Scores(2.0, 0.5, 100)
    assert Remembered(tmp_path, Scores, inputs)(lambda: other) == other
    assert kept(tmp_path).find(architecture="a") == SCORES


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{", "["), ('"nll"', '"loss"'), ('"kl"', '"more": 1, "kl"'), ('"value": {', '"value": [], "no": {'),
        ("100", '"100"'), ("100", "true"), ("100", "1.5"), ("1e-300", "NaN"), ("1e-300", '"x"'),
        ('"abc"', '"abd"'),
    ],
)  # fmt: skip
def test_a_damaged_file_counts_as_none(old: str, new: str, tmp_path: Path) -> None:
    scores = kept(tmp_path)
    (file,) = tmp_path.iterdir()
    words = file.read_text()
    assert old in words
    file.write_text(words.replace(old, new))
    assert scores.find(architecture="a") is None
    assert kept(tmp_path).find(architecture="a") == SCORES
    file.write_bytes(words.encode()[:-9] + b"\xff")
    assert scores.find(architecture="a") is None


def test_what_is_not_finite_is_not_kept(tmp_path: Path) -> None:
    scores = Remembered(tmp_path, Scores, INPUTS)
    broken = scores.keep(Scores(math.nan, 0.5, 100))
    assert math.isnan(broken.nll) and list(tmp_path.iterdir()) == []
    assert asdict(scores.keep(Scores(1.0, 0.5, 100)))["kl"] is None
    assert scores.find() == Scores(1.0, 0.5, 100)
