"""A copy that is not the released one says which check failed, wherever it was read from."""

from pathlib import Path

import pandas
import pytest

import data.known
import data.released
from data.corpus import load_corpus, load_text
from data.errors import InputError
from data.fields import Passages
from data.files import read_passages
from data.known import Counts, Known
from data.released import confirm, difference, digest_of

LINES = {
    "train": [" ", " = One = ", " ", " the cat sat on ", " a mat . ", " ", " = Two = ", " naïve words "],
    "validation": [" ", " = Three = ", " ", " some more words "],
    "test": [" ", " = Four = ", " ", " these are the last ones . ", " or nearly "],
}
WORDS = {"train": "train", "validation": "valid", "test": "test"}


def text_of(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def rows_of(lines: list[str]) -> list[str]:
    """As the Hub has them."""
    return [f"{line}\n" if line.strip() else "" for line in lines]


def counts_of(lines: list[str], *, digest: bool) -> Counts:
    stripped = [line.strip() for line in lines]
    return Counts(
        rows=len(lines),
        words=sum(len(line.split()) + 1 for line in lines),
        file_bytes=len(text_of(lines).encode()),
        row_bytes=len("".join(rows_of(lines)).encode()),
        digest=digest_of(stripped) if digest else "",
        unordered=digest_of(sorted(stripped)),
        first=next(line for line in stripped if line),
    )


SMALL = Known(
    "Small-2, raw", "owner/small:small-2", "CC0", ("small2", "small-2"), stem="small", ending="raw",
    counts={split: counts_of(lines, digest=split != "train") for split, lines in LINES.items()},
)  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table holds nothing but this set."""
    monkeypatch.setattr(data.released, "KNOWN", (SMALL,))


def write(folder: Path, **changed: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, lines in LINES.items():
        name = f"small.{WORDS[split]}.raw"
        (folder / name).write_bytes(changed.get(split, text_of(lines)).encode())
    return folder


def test_the_released_files_are_told_with_licence_and_counts(tmp_path: Path) -> None:
    corpus = load_corpus(str(write(tmp_path)))
    assert "Small-2, raw, CC0; as released: 5 rows, 16 words with <eos>" in corpus.source["test"]
    assert "Small-2, raw, CC0; counts as released: 8 rows" in corpus.source["train"]
    assert corpus.test == text_of(LINES["test"])
    assert "as released" in load_text(str(tmp_path / "small.test.raw"), "all")[1]
    assert "as released" in load_text(str(tmp_path), "test")[1]


TEST = LINES["test"]
BROKEN = {
    "5 of its 5 lines hold carriage returns": text_of(TEST).replace("\n", "\r\n"),
    "it has 4 lines, not 5;": text_of(TEST[:4]),
    "it has 3 lines, not 5, and none of them is blank": text_of([line for line in TEST if line.strip()]),
    "it has 17 words with one <eos> a row, not 16": text_of([*TEST[:4], " or so nearly "]),
    "its words differ, though there are as many": text_of([*TEST[:4], " or never "]),
    "its rows are in another order": text_of(TEST[::-1]),
    r"its lines hold \d+ bytes, not \d+: spaces or line ends": text_of([line.strip() for line in TEST]),
    "its lines hold 54 bytes, not 55": text_of(TEST)[:-1],
}


@pytest.mark.parametrize("sentence", BROKEN)
def test_a_copy_that_is_another_says_which_check_failed(tmp_path: Path, sentence: str) -> None:
    folder = write(tmp_path, test=BROKEN[sentence])
    for name, split in ((folder, "test"), (folder / "small.test.raw", "all")):
        with pytest.raises(
            InputError, match=f"small.test.raw is not test of Small-2, raw as released: {sentence}"
        ) as caught:
            load_text(str(name), split)
        assert "or rename small.test.raw where it is meant to be another text" in str(caught.value)


def test_train_in_another_order_is_let_pass_and_told(tmp_path: Path) -> None:
    shuffled = text_of(LINES["train"][5:] + LINES["train"][:5])
    assert (
        "IN ANOTHER ORDER than released" in load_corpus(str(write(tmp_path, train=shuffled))).source["train"]
    )
    with pytest.raises(InputError, match="is not train of .* it has 7 lines, not 8"):
        load_corpus(str(write(tmp_path, train=text_of(LINES["train"][:7]))))


def test_another_name_is_another_text(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", test="a\nb\n")
    for split, word in WORDS.items():
        (folder / f"small.{word}.raw").rename(folder / f"part-{word}.raw")
        assert str(folder / f"part-{word}.raw") == load_corpus_source(folder, split)


def load_corpus_source(folder: Path, split: str) -> str:
    return load_text(str(folder), split)[1]


def test_a_folder_called_like_the_set_is_checked_too(tmp_path: Path) -> None:
    folder = tmp_path / "Small-2"
    folder.mkdir()
    for split, lines in LINES.items():
        table = pandas.DataFrame({"text": rows_of(lines)})
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    corpus = load_corpus(str(folder))
    assert all("as released" in source for source in corpus.source.values())
    assert corpus.test == "\n\n".join(rows_of(TEST))
    pandas.DataFrame({"text": rows_of(TEST)[:3]}).to_parquet(folder / "test-00000-of-00001.parquet")
    with pytest.raises(
        InputError, match="it has 3 documents, not 5; .* rename the folder Small-2 where it is meant"
    ):
        load_corpus(str(folder))
    (folder / "test-00000-of-00001.parquet").rename(folder / "test-00000-of-00002.parquet")
    assert "released" not in load_corpus(str(folder)).source["test"], "a shard has no count of its own"


def test_lines_as_rows_are_what_the_hub_has(tmp_path: Path) -> None:
    text, source = load_text(f"{write(tmp_path)}#rows", "test")
    assert text == "\n\n".join(rows_of(TEST))
    assert "small.test.raw, lines as rows (Small-2, raw, CC0; as released" in source


def test_rows_and_lines_have_one_digest() -> None:
    assert digest_of(rows_of(TEST)) == digest_of(text_of(TEST).split("\n")[:-1])
    for kind, parts in (("document", rows_of(TEST)), ("line", [f"{line}\n" for line in TEST])):
        assert difference(Passages(tuple(parts), kind), SMALL.counts["test"]) == ""


def test_a_set_without_counts_is_told_by_name_alone(tmp_path: Path) -> None:
    plain = Known("Other", "owner/other", "MIT", ("other",))
    passages = read_passages(write(tmp_path) / "small.test.raw")
    assert confirm(plain, "test", passages, "here", "mend it") == "Other, MIT"


def test_of_two_sets_of_one_name_the_folder_or_the_nearest_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = LINES["train"] * 50
    large = Known(
        "Small-9, raw", "owner/small:small-9", "CC0", ("small9",), stem="small", ending="raw",
        counts={**SMALL.counts, "train": counts_of(many, digest=False)},
    )  # fmt: skip
    monkeypatch.setattr(data.released, "KNOWN", (SMALL, large))
    assert "Small-9" in load_text(str(write(tmp_path / "a", train=text_of(many))), "train")[1]
    assert "Small-2" in load_text(str(write(tmp_path / "b")), "train")[1]
    with pytest.raises(InputError, match="not train of Small-2, raw as released: it has 400 lines, not 8"):
        load_text(str(write(tmp_path / "small-2", train=text_of(many))), "train")
    with pytest.raises(InputError, match="not train of Small-9, raw as released: it has 390 lines, not 400"):
        load_text(str(write(tmp_path / "c", train=text_of(many[:390]))), "train")
