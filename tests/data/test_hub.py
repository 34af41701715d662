"""Data sets of the Hub, played by a folder that `datasets` reads in its place."""

from pathlib import Path

import datasets
import pandas
import pytest

from data import hub
from data.errors import InputError
from data.fields import Field
from data.hub import read_hub

ROWS = {
    "train": ["", " = Title = \n", "words \n", "more"],
    "validation": ["v0", "v1", "v2", "v3"],
    "test": ["t0", "t1", "t2"],
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, in which `owner/name` is a data set; the cache is beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def publish(*splits: str, column: str = "text") -> None:
    Path("owner/name").mkdir(parents=True)
    for split in splits:
        pandas.DataFrame({column: ROWS[split]}).to_parquet(f"owner/name/{split}-00000-of-00001.parquet")


@pytest.mark.parametrize("stream_above", [0, 10**9])
def test_rows_are_joined_by_blank_lines(monkeypatch: pytest.MonkeyPatch, stream_above: int) -> None:
    monkeypatch.setattr(hub, "STREAM_ABOVE_BYTES", stream_above)
    publish("train", "validation", "test")
    passages, source = read_hub("owner/name")
    assert {split: part.text for split, part in passages.items()} == {
        split: "\n\n".join(rows) for split, rows in ROWS.items()
    }
    assert "split test, field text" in source["test"]


def test_a_large_set_is_read_only_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "STREAMED_CHARACTERS", 4)
    publish("train", "validation", "test")
    passages, source = read_hub("owner/name")
    assert passages["validation"].parts == ("v0", "v1")
    assert source["validation"].startswith("first 4 characters: 2 rows of Hub owner/name")


def test_missing_splits_are_cut_from_the_others() -> None:
    publish("train", "validation")
    passages, source = read_hub("owner/name")
    assert (passages["validation"].parts, passages["test"].parts) == (("v0", "v1"), ("v2", "v3"))
    assert "rows halved, second half" in source["test"]


def test_a_single_split_is_cut_in_three() -> None:
    publish("validation")
    passages, source = read_hub("owner/name")
    assert [passages[split].parts for split in ("train", "validation", "test")] == [
        ("v0", "v1"),
        ("v2",),
        ("v3",),
    ]
    assert all("cut 90/5/5 by rows" in sentence for sentence in source.values())


def test_another_field_must_be_named() -> None:
    publish("train", "validation", "test", column="body")
    assert read_hub("owner/name", Field("body"))[0]["test"].parts == ("t0", "t1", "t2")
    with pytest.raises(InputError, match="row 0 of Hub .* has no 'text', only body: .* as ID#FIELD"):
        read_hub("owner/name")


def test_offline_says_what_to_pass_instead() -> None:
    with pytest.raises(
        InputError, match="no local path and could not be read from the Hub .*local file or folder"
    ):
        read_hub("owner/unknown:config")


def test_a_script_based_set_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Dataset scripts are no longer supported, but found ptb_text_only.py")

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(InputError, match="script-based .* pass a folder of its text files"):
        read_hub("ptb-text-only/ptb_text_only")
