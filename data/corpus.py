"""A corpus by name: the demo, a local file or folder, or a data set of the Hub, in three splits of text."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from data.errors import InputError
from data.files import BLANK_LINE, FORMS, cut, join, read_passages
from data.hub import HUB_ID, read_hub
from data.stdlib import SPLITS, stdlib_documents

ALL = "all"
"""In place of a split: the whole corpus."""
TEXTS = (
    f"a Hub id[:config], a file ({', '.join(FORMS)}, the first 90 % of it train, 5 % validation, the "
    "last 5 % test), a folder with train, valid and test in its file names, or demo; #FIELD behind it names "
    "the field of jsonl, parquet and Hub rows [text]"
)
"""What a person may name a corpus by."""
_WORDS = {
    "train": ("train", "training"),
    "validation": ("valid", "validation", "val", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Corpus:
    """Text in three splits; `source` says for each split what it was read from."""

    name: str
    train: str = field(repr=False)
    validation: str = field(repr=False)
    test: str = field(repr=False)
    source: dict[str, str] = field(compare=False)

    def split(self, name: str) -> str:
        """The text of `train`, `validation` or `test`."""
        if name not in SPLITS:
            raise InputError(f"{name!r} is no split: use one of {', '.join(SPLITS)}")
        text: str = getattr(self, name)
        return text


def load_corpus(name_or_path: str) -> Corpus:
    """The corpus that a person named.

    - `demo`: the source text of the running Python's standard library, split by module file
    - a `.txt`, `.raw` or `.tokens` file: kept byte for byte, cut 90/5/5 at line ends
    - a `.jsonl` or `.parquet` file: documents in the field `text`, or another by `PATH#FIELD`, joined by
      blank lines
    - a folder of such files whose names say train, valid (val, validation, dev) and test
    - a Hub data set `owner/name[:config]`, rows joined by blank lines; `owner/name:config#field` for another
      field

    Raises InputError when the path is missing, empty or not UTF-8, a split is missing, or the Hub cannot be
    read.
    """
    if name_or_path == "demo":
        return _demo()
    path, column = _path_and_field(name_or_path)
    if name_or_path and path.is_dir():
        return _from_folder(name_or_path, path, column)
    if name_or_path and path.exists():
        return _from_file(name_or_path, path, column)
    if HUB_ID.fullmatch(path.as_posix()) and path.suffix.lower() not in FORMS:
        passages, source = read_hub(path.as_posix(), column)
        return _corpus(name_or_path, {split: passages[split].text for split in SPLITS}, source)
    raise InputError(
        f"there is no file or folder {name_or_path!r}: pass 'demo', a path, or a Hub id OWNER/NAME[:CONFIG] "
        "such as Salesforce/wikitext:wikitext-2-raw-v1"
    )


def load_text(name_or_path: str, split: str) -> tuple[str, str]:
    """The text of one split of a corpus, or `all` of it, and a sentence on what it was read from.

    Only what is asked for needs to be there: a folder may lack the other splits, and `all` is a single file
    whole, or every text file of a folder. Raises InputError as `load_corpus` does.
    """
    path, column = _path_and_field(name_or_path)
    if path.is_file() and split == ALL:
        passages = read_passages(path, column)
        return passages.text, f"all of {path}: {len(passages):,} {passages.kind}s"
    if name_or_path and path.is_dir():
        files = _text_files(path)
        chosen = [each for each in files if split == ALL or _splits_in(each) == [split]]
        if chosen:
            return join([read_passages(each, column) for each in chosen]), ", ".join(map(str, chosen))
    corpus = load_corpus(name_or_path)
    if split == ALL:
        return BLANK_LINE.join(corpus.split(each) for each in SPLITS), "; ".join(corpus.source.values())
    return corpus.split(split), corpus.source[split]


def _demo() -> Corpus:
    documents = {split: stdlib_documents(split) for split in SPLITS}
    source = {
        split: f"{len(texts)} modules of the Python standard library" for split, texts in documents.items()
    }
    return _corpus("demo", {split: BLANK_LINE.join(texts) for split, texts in documents.items()}, source)


def _from_file(name: str, path: Path, column: str) -> Corpus:
    whole = read_passages(path, column)
    splits = cut(whole, str(path))
    text = {split: passages.text for split, passages in zip(SPLITS, splits, strict=True)}
    source = {
        split: f"the {part} % of {path}, cut 90/5/5: {len(own):,} of {len(whole):,} {whole.kind}s"
        for split, part, own in zip(SPLITS, ("first 90", "next 5", "last 5"), splits, strict=True)
    }
    return _corpus(name, text, source)


def _from_folder(name: str, folder: Path, column: str) -> Corpus:
    files = _text_files(folder)
    by_split = {split: [path for path in files if split in _splits_in(path)] for split in SPLITS}
    if not any(by_split.values()) and len(files) == 1:
        return _from_file(name, files[0], column)
    for path in files:
        if len(_splits_in(path)) > 1:
            raise InputError(
                f"{path} names {' and '.join(_splits_in(path))}: rename it so that it names one split"
            )
    missing = [split for split, paths in by_split.items() if not paths]
    if missing:
        seen = ", ".join(path.name for path in files[:8]) + (", …" if len(files) > 8 else "")
        raise InputError(
            f"folder {folder} has no file for {' and '.join(missing)} among its {len(files)} text file(s) "
            f"({seen}): name one file for each of train, valid and test, or pass a single file"
        )
    text = {split: join([read_passages(path, column) for path in paths]) for split, paths in by_split.items()}
    return _corpus(name, text, {split: ", ".join(map(str, paths)) for split, paths in by_split.items()})


def _text_files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in FORMS)
    if not files:
        raise InputError(
            f"folder {folder} holds 0 files of the forms {', '.join(FORMS)}: pass a folder of text files"
        )
    return files


def _splits_in(path: Path) -> list[str]:
    """The splits that a file name speaks of in whole words: `wiki.valid.tokens`, `train-00000.parquet`."""
    words = re.findall("[a-z]+", path.name.lower())
    return [split for split, names in _WORDS.items() if any(word in names for word in words)]


def _path_and_field(name: str) -> tuple[Path, str]:
    if "#" in name and not Path(name).exists():
        path, _, column = name.rpartition("#")
        return Path(path), column or "text"
    return Path(name), "text"


def _corpus(name: str, text: dict[str, str], source: dict[str, str]) -> Corpus:
    return Corpus(name, text["train"], text["validation"], text["test"], source)
