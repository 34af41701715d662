"""Scoring saved models: a parent beside itself, and what is refused."""

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from experiments import score
from experiments.command_line import run
from tests.experiments.toy_job import make_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("toy"))


def scored(toy: Path, *more: str) -> int:
    given = ["--parent", str(toy / "parent"), "--corpus", str(toy / "corpus"), "--seq-len", "24"]
    return run(score.Settings, score.main, [*given, *more])


def test_a_parent_beside_itself_has_lost_nothing(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    assert scored(toy, "--models", str(toy / "parent"), "--windows", "6", "--json", str(out)) == 0
    ((name, found),) = json.loads(out.read_text()).items()  # both are the same folder
    assert name == str(toy / "parent")
    assert found["kl"] == 0
    assert found["tokens"] == 6 * 23
    assert 1 < found["perplexity"] < 40


def test_the_table_tells_its_protocol(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scored(toy, "--split", "validation") == 0
    shown = capsys.readouterr().out
    assert "validation" in shown
    assert "windows of 24 tokens" in shown
    assert "torch.float32" in shown


def test_models_that_cannot_be_compared_are_refused(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = LlamaConfig(
        vocab_size=7, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    LlamaForCausalLM(small).save_pretrained(tmp_path / "other")
    LlamaForCausalLM(small).save_pretrained(tmp_path / "run" / "checkpoint")
    LlamaForCausalLM(small).save_pretrained(tmp_path / "coded")
    config = json.loads((tmp_path / "coded" / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Own"}
    (tmp_path / "coded" / "config.json").write_text(json.dumps(config))
    for more, sentence in (
        (["--models", str(tmp_path / "other")], "has a vocabulary of 7, the parent one of"),
        (["--models", str(tmp_path / "gone")], "there is no model folder"),
        (["--models", str(tmp_path / "run")], f"did you mean {tmp_path / 'run' / 'checkpoint'}?"),
        (["--models", str(tmp_path / "coded")], "brings code of its own"),
        (["--seq-len", "65"], "made for 64 positions"),
        (["--windows", "-1"], "--windows is -1"),
    ):
        assert scored(toy, *more) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert "Traceback" not in error


def test_models_spread_over_devices_score_the_same(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for number, more in enumerate(([], ["--device-map", "auto"])):
        out = tmp_path / f"{number}.json"
        assert scored(toy, "--models", str(toy / "parent"), "--windows", "6", "--json", str(out), *more) == 0
        found.append(json.loads(out.read_text()))
    assert found[0] == found[1]
    assert scored(toy, "--device-map", "everywhere") == 2
    assert "--device-map is 'everywhere'; give auto" in capsys.readouterr().err
