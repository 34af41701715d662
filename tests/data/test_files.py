"""Every form of local file, and the cut of a single file into splits."""

import json
from pathlib import Path

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import InputError
from data.fields import Field, Passages
from data.files import cut, join, read_passages


@pytest.mark.parametrize("suffix", [".txt", ".raw", ".tokens", ".TXT"])
@pytest.mark.parametrize(
    "text", ["one\ntwo\n", "no end", "\n = Title = \n\n body \n", "a\r\nb\x0bc\u2028d\n"]
)
def test_text_is_kept_byte_for_byte(tmp_path: Path, suffix: str, text: str) -> None:
    path = tmp_path / f"corpus{suffix}"
    path.write_bytes(text.encode())
    passages = read_passages(path)
    assert passages.text.encode() == path.read_bytes()
    assert len(passages) == len(text.rstrip("\n").split("\n")) or text.endswith("\n")


def test_json_lines_are_documents_parted_by_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    rows = [{"text": "one\ntwo", "body": "x"}, {"text": "été", "body": "y"}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert read_passages(path).text == "one\ntwo\n\nété"
    assert read_passages(path, Field("body")).parts == ("x", "y")


def test_parquet_is_documents_parted_by_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "corpus.parquet"
    pandas.DataFrame({"text": ["one", "two"], "body": ["x", "y"], "size": [1, 2]}).to_parquet(path)
    assert read_passages(path).text == "one\n\ntwo"
    assert read_passages(path, Field("body")).parts == ("x", "y")
    with pytest.raises(InputError, match="'size' in row 0 of .* is a int and no text"):
        read_passages(path, Field("size"))
    with pytest.raises(
        InputError, match="has no 'story', only text, body, size: name the text field as PATH#"
    ):
        read_passages(path, Field("story"))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"", r"a.txt holds no text \(0 bytes\)"),
        ("a.txt", b" \n\n", r"a.txt holds no text \(3 bytes\)"),
        ("a.txt", b"abc\xff", "a.txt is not UTF-8: byte 3 of 4 is 0xff; convert"),
        ("a.jsonl", b"", r"a.jsonl holds no text \(0 bytes\)"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "line 2 of .*a.jsonl is no JSON"),
        ("a.jsonl", b'["x"]', "line 1 of .*a.jsonl is a list: one JSON object a line"),
        ("a.jsonl", b'{"body": "x"}', "line 1 of .*a.jsonl has no 'text', only body: name the text field"),
        ("a.jsonl", b'{"text": null}', "'text' in line 1 of .*a.jsonl is a NoneType and no text"),
        ("a.jsonl", b'{"text": "\xff"}', "a.jsonl is not UTF-8: byte 10 of 13 is 0xff"),
        ("a.parquet", b"PAR1 and no more", "a.parquet is no Parquet file that can be read"),
        ("a.csv", b"text\nx", "a.csv ends in '.csv': pass a file of one of the forms .txt, .raw, .tokens"),
        ("a", b"x", "ends in 'nothing'"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=sentence) as caught:
        read_passages(path)
    assert "\n" not in str(caught.value)


parts = st.lists(st.text(alphabet="ab c", min_size=1, max_size=9).map(lambda text: "x" + text), min_size=3)


@given(parts, st.sampled_from(["line", "document"]))
def test_a_cut_loses_nothing_and_leaves_no_split_empty(texts: list[str], kind: str) -> None:
    whole = Passages(tuple(texts), kind)
    splits = cut(whole, "it")
    assert tuple(part for split in splits for part in split.parts) == whole.parts
    assert all(len(split) >= 1 and split.text.strip() for split in splits)
    assert all(split.kind == kind for split in splits)


@given(st.integers(100, 3000))
def test_a_cut_is_90_5_5(lines: int) -> None:
    splits = cut(Passages(tuple("0123456789\n" for _ in range(lines)), "line"), "it")
    shares = [len(split.text) / (11 * lines) for split in splits]
    assert shares == pytest.approx([0.90, 0.05, 0.05], abs=1.1 / lines)


def test_too_few_passages_are_an_input_error() -> None:
    with pytest.raises(InputError, match=r"it holds 2 document\(s\), which cannot be cut .* at least 3"):
        cut(Passages(("a", "b"), "document"), "it")
    with pytest.raises(InputError, match="last tenth has too little text"):
        cut(Passages(("a\n", "\n", "\n"), "line"), "it")


def test_shards_of_lines_touch_and_others_are_parted() -> None:
    lines, documents = Passages(("a\n", "b\n"), "line"), Passages(("c", "d"), "document")
    assert join([lines, lines]) == "a\nb\na\nb\n"
    assert join([documents, documents]) == "c\n\nd\n\nc\n\nd"
