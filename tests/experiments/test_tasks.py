"""Scoring saved models on tasks: the table, the file, and what is refused."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from data.tasks import TASKS
from experiments import tasks
from experiments.command_line import run
from tests.data.tiny_tasks import expect_tiny, write_tasks
from tests.experiments.toy_job import make_toy
from tests.nas.byte_tokenizer import SIZE, byte_tokenizer
from tests.nas.tiny_models import tiny_parent


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_toy(tmp_path_factory.mktemp("toy"))
    write_tasks(folder / "tasks")
    return folder


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    expect_tiny(monkeypatch)


def scored(toy: Path, out: Path, *more: str) -> int:
    given = ["--models", str(toy / "parent"), "--folder", str(toy / "tasks"), "--out", str(out)]
    return run(tasks.Settings, tasks.main, [*given, *more])


def test_every_task_is_a_line_of_the_table_and_of_the_file(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The toy knows 64 positions and reads every word of these texts as the same unknown one.
    assert scored(toy, tmp_path, "--limit", "2") == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "tasks.json").read_text())
    assert [line["task"] for line in found["results"]] == list(TASKS)
    assert (found["engine"], found["harness"], found["dtype"]) == ("built-in", None, "torch.float32")
    for line in found["results"]:
        assert line["task"] in shown
        assert line["scores"]["n"] == 2
        assert 0 <= line["scores"]["acc"] <= 1
        assert line["shots"] == (5 if line["task"] == "mmlu" else 0)
        assert str(toy / "tasks") in line["source"]


def test_tasks_may_be_parted_by_commas(toy: Path, tmp_path: Path) -> None:
    assert scored(toy, tmp_path, "--tasks", "piqa,copa", "arc_easy", "--limit", "1") == 0
    found = json.loads((tmp_path / "tasks.json").read_text())
    assert [line["task"] for line in found["results"]] == ["piqa", "copa", "arc_easy"]
    assert found["results"][0]["scores"]["acc_stderr"] is None  # of one item


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed")
@pytest.mark.filterwarnings("ignore")  # what third parties warn of is theirs
def test_both_engines_write_the_same_scores(toy: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    for part in (tiny_parent("llama", vocab_size=SIZE, max_position_embeddings=256), byte_tokenizer()):
        part.save_pretrained(model)
    found = []
    for engine in ("built-in", "harness"):
        assert scored(toy, tmp_path, "--models", str(model), "--engine", engine) == 0
        found.append(json.loads((tmp_path / "tasks.json").read_text())["results"])
    for ours, theirs in zip(*found, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_bad_input_is_one_sentence(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for more, sentence in (
        (["--tasks", "piqua"], "there is no task 'piqua'"),
        (["--tasks", ","], "1 models and 0 tasks were given"),
        (["--limit", "-1"], "a limit of -1 items"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--folder", str(tmp_path / "gone")], str(tmp_path / "gone")),
        (["--out", str(tmp_path / "file")], "cannot be used"),
        (["--models", str(tmp_path / "gone"), "--tasks", "copa"], "there is no model folder"),
        (["--engine", "harness"], "pip install 'secateur[eval]'"),
    ):
        assert scored(toy, tmp_path / "out", *more) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert "Traceback" not in error
