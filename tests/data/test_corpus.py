"""A corpus by every kind of name, and a sentence for every name that is none."""

import json
from pathlib import Path

import pandas
import pytest

import data.corpus
from data.corpus import Corpus, load_corpus, load_text
from data.errors import InputError
from data.fields import Field, Passages
from data.stdlib import SPLITS, stdlib_documents


def texts(corpus: Corpus) -> list[str]:
    return [corpus.train, corpus.validation, corpus.test]


def fill(folder: Path, **contents: str) -> Path:
    for name, text in contents.items():
        (folder / name.replace("__", ".")).write_bytes(text.encode())
    return folder


def test_the_demo_is_the_standard_library() -> None:
    corpus = load_corpus("demo")
    assert corpus == load_corpus("demo")
    assert corpus.validation == "\n\n".join(stdlib_documents("validation"))
    assert [corpus.split(split) for split in SPLITS] == texts(corpus)
    assert set(corpus.source) == set(SPLITS)
    with pytest.raises(InputError, match="'dev' is no split"):
        corpus.split("dev")


def test_a_text_file_is_cut_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {number}\n" for number in range(1000)))
    corpus = load_corpus(str(path))
    assert "".join(texts(corpus)) == path.read_text()
    assert [len(text.splitlines()) for text in texts(corpus)] == pytest.approx([900, 50, 50], abs=2)
    assert all("90/5/5" in source and str(path) in source for source in corpus.source.values())


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_documents_are_cut_between_documents(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"corpus.{form}"
    rows = [{"text": f"t{number}", "body": f"b{number}"} for number in range(40)]
    if form == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pandas.DataFrame(rows).to_parquet(path)
    assert "\n\n".join(texts(load_corpus(str(path)))) == "\n\n".join(row["text"] for row in rows)
    assert "\n\n".join(texts(load_corpus(f"{path}#body"))) == "\n\n".join(row["body"] for row in rows)
    assert len(load_corpus(str(path)).test.split("\n\n")) == 2


def test_a_sharp_in_a_file_name_is_no_field(tmp_path: Path) -> None:
    path = tmp_path / "c#.txt"
    path.write_text("a\nb\nc\n")
    assert texts(load_corpus(str(path))) == ["a\n", "b\n", "c\n"]


@pytest.mark.parametrize(
    "names",
    [
        ("news__train__tokens", "news__valid__tokens", "news__test__tokens"),
        ("ptb_train__txt", "ptb_val__txt", "ptb_test__txt"),
        ("TRAIN__raw", "validation__raw", "Test__raw"),
        ("train-00000-of-00001__txt", "dev-0__txt", "test-0__txt"),
    ],
)
def test_a_folder_is_read_byte_for_byte(tmp_path: Path, names: tuple[str, str, str]) -> None:
    fill(tmp_path, **dict(zip(names, (" \n a \n", "b", "c\r\n\n"), strict=True)), README__txt="latest news")
    corpus = load_corpus(str(tmp_path))
    assert texts(corpus) == [" \n a \n", "b", "c\r\n\n"]
    assert corpus.source["test"] == str(tmp_path / names[2].replace("__", "."))


def test_shards_follow_their_names(tmp_path: Path) -> None:
    fill(tmp_path, train_1__txt="b\n", train_0__txt="a\n", valid__txt="v", test__jsonl='{"body": "t"}')
    assert texts(load_corpus(f"{tmp_path}#body")) == ["a\nb\n", "v", "t"]


def test_a_folder_with_one_file_is_that_file(tmp_path: Path) -> None:
    fill(tmp_path, book__txt="a\nb\nc\n", notes__md="not text here")
    assert texts(load_corpus(str(tmp_path))) == ["a\n", "b\n", "c\n"]


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        ({}, "holds 0 files of the forms .txt"),
        ({"notes__md": "x"}, "holds 0 files of the forms .txt"),
        ({"train__txt": "a", "valid__txt": "b"}, r"no file for test among its 2 text file\(s\)"),
        ({"train__txt": "a", "test__txt": "b"}, "no file for validation among its 2"),
        ({"train__txt": "a"}, "no file for validation and test among its 1"),
        ({"a__txt": "a", "b__txt": "b"}, r"no file for train and validation and test .*\(a.txt, b.txt\)"),
        ({"train_test__txt": "a", "valid__txt": "b"}, "train_test.txt names train and test: rename it"),
        ({"train__txt": "a", "valid__txt": "", "test__txt": "c"}, r"valid.txt holds no text \(0 bytes\)"),
    ],
)
def test_a_folder_that_is_no_corpus_says_what_is_missing(
    tmp_path: Path, contents: dict[str, str], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        load_corpus(str(fill(tmp_path, **contents)))


@pytest.mark.parametrize("name", ["nowhere", "no/such/folder/file.txt", "folder/file.txt", "../wiki", ""])
def test_what_is_not_there_is_an_input_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data.corpus, "read_hub", lambda *_: pytest.fail("the Hub was asked"))
    with pytest.raises(InputError, match="no file or folder .*OWNER/NAME|holds 0 files"):
        load_corpus(name)


def test_an_id_goes_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read(name: str, field: Field, known: object) -> tuple[dict[str, Passages], dict[str, str]]:
        asked.append((name, field.name))
        return {s: Passages((s, "b"), "document") for s in SPLITS}, dict.fromkeys(SPLITS, "Hub")

    monkeypatch.setattr(data.corpus, "read_hub", read)
    corpus = load_corpus("Salesforce/wikitext:wikitext-2-raw-v1")
    load_corpus("owner/name#body")
    assert asked == [("Salesforce/wikitext:wikitext-2-raw-v1", "text"), ("owner/name", "body")]
    assert (corpus.name, corpus.test) == ("Salesforce/wikitext:wikitext-2-raw-v1", "test\n\nb")


def test_a_split_is_read_without_the_others_and_all_is_all(tmp_path: Path) -> None:
    (folder := tmp_path / "folder").mkdir()
    fill(folder, **{"wiki.test.txt": "t\n"})
    assert load_text(str(folder), "test") == ("t\n", str(folder / "wiki.test.txt"))
    with pytest.raises(InputError, match="no file for train"):
        load_text(str(folder), "train")
    (folder / "notes.txt").write_text("n\n")
    assert load_text(str(folder), "all")[0] == "n\nt\n"
    file = tmp_path / "book.txt"
    file.write_text("".join(f"{line}\n" for line in range(100)))
    assert load_text(str(file), "all") == (file.read_text(), f"all of {file}: 100 lines")
    text, source = load_text(str(file), "test")
    assert file.read_text().endswith(text)
    assert source.startswith(f"the last 5 % of {file}, ")
    assert load_text("demo", "all")[0] == "\n\n".join(texts(load_corpus("demo")))
