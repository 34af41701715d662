"""Exporting from the command line, and searching among what an engine can run."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, dynamic_module_utils

from experiments import export, score
from experiments.command_line import run
from tests.experiments.toy_job import job, make_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


def exported(*given: object) -> int:
    return run(export.Settings, export.main, [str(each) for each in given])


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gguf", "vllm"])
def test_a_subnet_found_under_a_target_is_exported_to_it(
    target: str, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job(toy, tmp_path / "run", target=target) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["settings"]["target"] == target
    assert "among what" in (tmp_path / "run" / "checkpoint" / "README.md").read_text()
    choices = report["pruning"]["choices"]
    assert choices["1.ffn"] == ([0, 24] if target == "gguf" else list(range(25)))
    assert choices["1.kv_groups"] == ([0, 1, 2] if target == "gguf" else [0, 2])
    for name in ("uniform", "drop_layers", "random_search"):  # the baselines keep to the rules too
        if found := report["baselines"].get(name):
            for block in found["architecture"]["blocks"]:
                kept = {kind: block[kind] for kind in ("kv_groups", "ffn")}
                assert all(width in choices[f"{block['source']}.{kind}"] for kind, width in kept.items())
    capsys.readouterr()
    out = tmp_path / ("model.gguf" if target == "gguf" else "served")
    assert exported(tmp_path / "run" / "checkpoint", "--to", target, "--out", out, "--no-tokenizer") == 0
    assert f"{out}: " in capsys.readouterr().out

    # The pairs of one target are not gone on with under another.
    assert job(toy, tmp_path / "run", target="hf") == 2
    assert f"a run with --target {target}, and this one has --target hf" in capsys.readouterr().err
    assert job(toy, tmp_path / "run", target=target) == 0


@pytest.mark.slow
def test_a_uniform_baseline_is_found_where_heads_are_whole(toy: Path, tmp_path: Path) -> None:
    assert job(toy, tmp_path / "run", target="vllm", keep=0.8) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    blocks = report["baselines"]["uniform"]["architecture"]["blocks"]
    assert len({(b["kv_groups"], b["queries_per_group"], b["ffn"]) for b in blocks}) == 1
    assert blocks[0]["kv_groups"] == 2 and 0 < blocks[0]["ffn"] < 24


def test_what_a_target_cannot_run_is_refused_at_once(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, sentence in (
        ({"target": "vllm", "repair": "mean_bias"}, "biases that --repair mean_bias adds"),
        ({"target": "onnx"}, "'onnx' is not one of hf, gguf, vllm"),
    ):
        assert job(toy, tmp_path / "run", **options) == 2
        assert sentence in capsys.readouterr().err
    assert not list(tmp_path.glob("run/*.journal"))


def test_parents_can_be_exported_too(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "half"
    assert exported(toy / "parent", "--to", "hf", "--dtype", "f16", "--out", out) == 0
    assert "weights in float16" in capsys.readouterr().out
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == torch.float16
    for given, sentence in (
        ([], "FOLDER is required"),
        ([toy / "parent", "--out", out], "--to is required"),
        ([toy / "parent", "--to", "hf", "--out", out], "is there already"),
        ([toy / "parent", "--to", "hf", "--out", out, "--dtype", "q8_0"], "--dtype is q8_0"),
        ([toy / "parent", "--to", "gguf", "--out", tmp_path / "x"], "is a WordLevel; give --no-tokenizer"),
        ([toy / "gone", "--to", "gguf", "--out", tmp_path / "x"], "cannot be read"),
        ([toy, "--to", "gguf", "--out", tmp_path / "x"], "cannot be read"),
        ([toy / "parent", "more", "--to", "hf", "--out", out], "'more' belongs to no option"),
    ):
        assert exported(*given) == 2
        error = capsys.readouterr().err
        assert sentence in error and "Traceback" not in error


def test_a_gguf_file_is_scored_beside_its_parent(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (the extra llama-cpp)")
    path, record = tmp_path / "parent.gguf", tmp_path / "scores.json"
    assert exported(toy / "parent", "--to", "gguf", "--out", path, "--no-tokenizer") == 0
    given = ["--parent", toy / "parent", "--corpus", toy / "corpus", "--seq-len", 24, "--json", record]
    command = [str(each) for each in [*given, "--models", path]]
    assert run(score.Settings, score.main, command) == 0
    assert ".gguf files as llama.cpp computes them" in capsys.readouterr().out
    scores = json.loads(record.read_text())
    found, expected = scores[str(path)], scores[str(toy / "parent")]
    np.testing.assert_allclose(found["nll"], expected["nll"], rtol=1e-3)
    assert found["tokens"] == expected["tokens"] and found["kl"] < 1e-4
    (tmp_path / "broken.gguf").write_text("no")
    assert run(score.Settings, score.main, [*command[:-1], str(tmp_path / "broken.gguf")]) == 2
    assert "llama.cpp cannot load" in capsys.readouterr().err
