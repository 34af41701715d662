"""The table of known sets: every name finds one, counts agree with each other, lost sets say what to pass."""

import re
from pathlib import Path

import pytest

import data.corpus
from data.corpus import load_corpus
from data.errors import InputError
from data.fields import Passages
from data.known import HUB_ID, KNOWN, Known, find, full_id
from data.stdlib import SPLITS


def called(hub: str) -> Known:
    (known,) = (each for each in KNOWN if each.hub == hub)
    return known


@pytest.mark.parametrize(
    ("name", "hub"),
    [
        ("wikitext2", "Salesforce/wikitext:wikitext-2-raw-v1"),
        ("WikiText-2", "Salesforce/wikitext:wikitext-2-raw-v1"),
        ("wikitext", "Salesforce/wikitext:wikitext-2-raw-v1"),
        ("wikitext:wikitext-2-raw-v1", "Salesforce/wikitext:wikitext-2-raw-v1"),
        ("wikitext:wikitext-2-v1", "Salesforce/wikitext:wikitext-2-v1"),
        ("wikitext:wikitext-103-raw-v1", "Salesforce/wikitext:wikitext-103-raw-v1"),
        ("salesforce/wikitext:wikitext-103-v1", "Salesforce/wikitext:wikitext-103-v1"),
        ("c4", "allenai/c4:en"),
        ("allenai/c4", "allenai/c4:en"),
        ("allenai/c4:allenai--c4", "allenai/c4:en"),
        ("HuggingFaceH4/ultrachat_200k", "HuggingFaceH4/ultrachat_200k"),
        ("alpaca", "tatsu-lab/alpaca"),
        ("alpaca-cleaned", "yahma/alpaca-cleaned"),
    ],
)
def test_a_name_finds_the_id_that_loads(name: str, hub: str) -> None:
    assert find(name) is called(hub)


def test_no_name_is_of_two_sets_and_every_id_has_an_owner() -> None:
    names = [name.lower() for known in KNOWN for name in (known.hub, *known.names) if name]
    assert sorted(names) == sorted(set(names))
    assert all(HUB_ID.fullmatch(known.hub) for known in KNOWN if known.hub)
    assert all(known.licence and known.names for known in KNOWN)
    assert all(known.hub or known.instead for known in KNOWN)
    assert find("owner/name") is find("nowhere") is None


def test_another_config_of_an_old_id_gets_its_owner() -> None:
    assert full_id("c4:realnewslike") == "allenai/c4:realnewslike"
    assert full_id("owner/name:config") == "owner/name:config"
    assert full_id("nowhere") == "nowhere"
    assert find("c4:realnewslike") is None


def test_counts_agree_with_each_other() -> None:
    raw, tokenised = (called(f"Salesforce/wikitext:wikitext-2-{form}") for form in ("raw-v1", "v1"))
    large = called("Salesforce/wikitext:wikitext-103-raw-v1")
    for split in SPLITS:
        one, other = raw.counts[split], tokenised.counts[split]
        assert (one.rows, one.words) == (other.rows, other.words), "the forms have the same words"
        # A blank line is a space and its end in the file, and nothing in the Hub's rows.
        assert one.file_bytes - one.row_bytes == other.file_bytes - other.row_bytes
        assert one.file_bytes > other.file_bytes
    assert large.counts["test"] == raw.counts["test"]
    assert large.counts["train"].rows > raw.counts["train"].rows
    # What the Hub's card gives is four bytes a row more than the rows hold.
    card = {"train": 11_061_717, "validation": 1_159_288, "test": 1_305_088}
    assert {s: c.row_bytes + 4 * c.rows for s, c in raw.counts.items()} == card


@pytest.mark.parametrize("name", ["ptb", "PTB_text_only", "ptb-text-only/ptb_text_only", "penn_treebank"])
def test_the_penn_treebank_says_its_licence_and_what_to_pass(name: str) -> None:
    with pytest.raises(
        InputError, match="LDC licence: research use, not to be redistributed.*folder .*ptb.train.txt, ptb.va"
    ):
        load_corpus(name)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("bookcorpus", "BookCorpus needs a script, .* pass c4, wikitext2"),
        ("piqa", "piqa is a task and no text: .* --tasks piqa, "),
        ("ybisk/piqa", "is a task and no text: .* --tasks piqa, "),
        ("Rowan/hellaswag", "is a task and no text: .* --tasks hellaswag, "),
        ("allenai/ai2_arc", "is a task and no text: .* --tasks arc_easy,arc_challenge, "),
        ("lambada", "is a task and no text: .* --tasks lambada_openai --engine harness, "),
        ("wikitxt", "no file or folder 'wikitxt': .* one of wikitext2, .*c4, .*alpaca"),
    ],
)
def test_what_is_no_text_says_what_to_pass(name: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.corpus, "read_hub", lambda *_: pytest.fail("the Hub was asked"))
    with pytest.raises(InputError, match=sentence):
        load_corpus(name)


def test_a_known_name_reads_its_field_and_is_called_by_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read(name: str, field: object, known: Known) -> tuple[dict[str, Passages], dict[str, str]]:
        asked.append((name, getattr(field, "name", ""), known.title))
        return {split: Passages((split,), "document") for split in SPLITS}, dict.fromkeys(SPLITS, "")

    monkeypatch.setattr(data.corpus, "read_hub", read)
    assert load_corpus("wikitext2").name == "Salesforce/wikitext:wikitext-2-raw-v1"
    assert load_corpus("alpaca").name == "tatsu-lab/alpaca"
    assert load_corpus("tatsu-lab/alpaca#text").name == "tatsu-lab/alpaca#text"
    assert asked == [
        ("Salesforce/wikitext:wikitext-2-raw-v1", "text", "WikiText-2, raw"),
        ("tatsu-lab/alpaca", "chat", "Alpaca"),
        ("tatsu-lab/alpaca", "text", "Alpaca"),
    ]


def test_a_folder_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c4").mkdir()
    (tmp_path / "c4" / "part.txt").write_text("a\nb\nc\n")
    assert load_corpus("c4").train == "a\n"


def test_the_guide_has_every_name_and_licence() -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for known in KNOWN:
        line = next(line for line in guide.splitlines() if line.startswith(f"| `{known.names[0]}`"))
        assert known.licence in line
        assert not known.hub or known.hub in line
    assert not re.search(r"`ptb`.*Hub", guide)
