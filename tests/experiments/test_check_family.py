"""The laws from the command line: a table, and an exit code that says whether one is broken."""

import json
from pathlib import Path

import pytest

from experiments import check_family
from experiments.check_family import Settings, main, with_flag
from experiments.command_line import run
from nas.families import FAMILIES


def checked(*words: str) -> int:
    return run(Settings, main, with_flag(words))


def test_a_model_is_checked_by_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = dict(model_type="qwen3", hidden_size=4096, num_attention_heads=32, num_key_value_heads=8)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert checked(str(tmp_path), "--laws", "layout", "cut is masked") == 0
    shown = capsys.readouterr().out
    assert "hidden_size               4096 -> 32" in shown
    assert "cut is masked         holds" in shown and "qwen3 keeps all 2 laws." in shown


def test_a_broken_law_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    right = FAMILIES["glm4"]
    monkeypatch.setitem(FAMILIES, "glm4", type(right)(right.layout._replace(mlp_post="")))
    assert checked("glm4", "--laws", "layout", "keep everything") == 1
    shown = capsys.readouterr().out
    assert "layout                broken" in shown and "a norm or a projection is not named" in shown
    assert "glm4 breaks 1 of 2 laws: layout." in shown


def test_a_family_like_llama_is_tried_before_it_is_added(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(FAMILIES, "helium")
    assert checked("helium", "--laws", "layout") == 0
    assert 'its line in nas/families/table.py is "helium": Family().' in capsys.readouterr().out
    assert "helium" not in FAMILIES


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("persimmon", "no module 'self_attn.q_proj'"),
        ("mpt", "built inside"),
        ("/no/such/folder", "there is no model folder"),
    ],
)
def test_what_cannot_be_checked_is_said(name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(name) == 2
    assert words in capsys.readouterr().err


def test_no_weights_are_needed() -> None:
    assert "load_parent" not in vars(check_family)
