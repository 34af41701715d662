"""A corpus by name: the demo, a local file or folder, or a data set of the Hub, in three splits of text."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import InputError
from data.fields import BLANK_LINE, Field, Passages
from data.files import FORMS, ROWS, TEXT, cut, join, read_passages
from data.hub import read_hub
from data.known import HUB_ID, KNOWN, find, full_id
from data.released import confirm_file
from data.stdlib import SPLITS, stdlib_documents
from data.tasks.names import task_called

ALL = "all"
"""In place of a split: the whole corpus."""
TEXTS = (
    "a name (wikitext2, c4, alpaca-cleaned; docs/data.md has all), a Hub id[:config], a file "
    f"({', '.join(FORMS)}, the first 90 % of it train, 5 % validation, the last 5 % test), a folder with "
    "train, valid and test in its file names, or demo; #FIELD behind it names the field of json, parquet and "
    "Hub rows [text], #chat their conversation"
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


def load_corpus(name_or_path: str, tokenizer: Any = None) -> Corpus:
    """The corpus that a person named.

    - `demo`: the source text of the running Python's standard library, split by module file
    - a `.txt`, `.raw` or `.tokens` file: kept byte for byte, cut 90/5/5 at line ends; `PATH#rows` reads its
      lines as the Hub has them, blank ones empty, and joins them by blank lines
    - a `.jsonl`, `.json` or `.parquet` file: documents in the field `text`, or another by `PATH#FIELD`,
      joined by blank lines; or conversations (`PATH#chat`, and where there is no `text`) by the tokenizer's
      chat template
    - a folder of such files whose names say train, valid (val, validation, dev) and test
    - a name in `data.known`, or a Hub data set `owner/name[:config]`, rows as in a file; `…#field` as there

    What is named like a released set is checked against its counts; `source` tells. Raises InputError when
    the path is missing, empty or not UTF-8, a split is missing or not as released, or the Hub cannot be read.
    """
    if name_or_path == "demo":
        return _demo()
    path, named = _path_and_field(name_or_path)
    field = Field(named or "text", tokenizer)
    if name_or_path and path.is_dir():
        return _from_folder(name_or_path, path, field)
    if name_or_path and path.exists():
        return _from_file(name_or_path, path, field)
    return _from_hub(name_or_path, path.as_posix(), named, tokenizer)


def load_text(name_or_path: str, split: str, tokenizer: Any = None) -> tuple[str, str]:
    """The text of one split of a corpus, or `all` of it, and a sentence on what it was read from.

    Only what is asked for needs to be there: a folder may lack the other splits, and `all` is a single file
    whole, or every text file of a folder. Raises InputError as `load_corpus` does.
    """
    path, named = _path_and_field(name_or_path)
    field = Field(named or "text", tokenizer)
    if path.is_file() and split == ALL:
        passages, where = _read(path, field)
        return passages.text, f"all of {where}: {len(passages):,} {passages.kind}s"
    if name_or_path and path.is_dir():
        files = _text_files(path)
        chosen = [each for each in files if split == ALL or _splits_in(each) == [split]]
        if chosen:
            return _joined(chosen, field)
    corpus = load_corpus(name_or_path, tokenizer)
    if split == ALL:
        return BLANK_LINE.join(corpus.split(each) for each in SPLITS), "; ".join(corpus.source.values())
    return corpus.split(split), corpus.source[split]


def _from_hub(asked: str, name: str, named: str, tokenizer: Any) -> Corpus:
    """A set of the table by any of its names, or whatever else the Hub has."""
    known = find(name)
    if known is not None and not known.hub:
        raise InputError(
            f"{known.title} ({known.licence}) is read from local files alone, for {known.instead}: pass the "
            f"folder that holds your {known.released_as}"
        )
    place = known.hub if known else full_id(name)
    if known is None and (task := task_called(name)):
        raise InputError(
            f"{name} is a task and no text: give it to experiments.tasks as --tasks {task}, and a text here, "
            "such as wikitext2"
        )
    if known is None and (not HUB_ID.fullmatch(place) or Path(name).suffix.lower() in FORMS):
        raise InputError(
            f"there is no file or folder {asked!r}: pass 'demo', a path, one of {', '.join(_short())}, or a "
            "Hub id OWNER/NAME[:CONFIG] such as Salesforce/wikitext:wikitext-2-raw-v1"
        )
    field = Field(named or (known.column if known else "text"), tokenizer)
    passages, source = read_hub(place, field, known)
    name = f"{place}#{named}" if named else place
    return _corpus(name, {split: passages[split].text for split in SPLITS}, source)


def _short() -> list[str]:
    """The shortest way to name each set of the table that the Hub has."""
    return [known.names[0] for known in KNOWN if known.hub]


def _demo() -> Corpus:
    documents = {split: stdlib_documents(split) for split in SPLITS}
    source = {
        split: f"{len(texts)} modules of the Python standard library" for split, texts in documents.items()
    }
    return _corpus("demo", {split: BLANK_LINE.join(texts) for split, texts in documents.items()}, source)


def _read(path: Path, field: Field) -> tuple[Passages, str]:
    """A file, and its path with what is known of it."""
    passages = read_passages(path, field)
    note = confirm_file(path, passages)
    where = f"{path}, lines as rows" if field.name == ROWS and path.suffix.lower() in TEXT else str(path)
    return passages, f"{where} ({note})" if note else where


def _joined(paths: list[Path], field: Field) -> tuple[str, str]:
    """The text of several files, and where it is from."""
    each = [_read(path, field) for path in paths]
    return join([passages for passages, _ in each]), ", ".join(where for _, where in each)


def _from_file(name: str, path: Path, field: Field) -> Corpus:
    whole, where = _read(path, field)
    splits = cut(whole, str(path))
    text = {split: passages.text for split, passages in zip(SPLITS, splits, strict=True)}
    source = {
        split: f"the {part} % of {where}, cut 90/5/5: {len(own):,} of {len(whole):,} {whole.kind}s"
        for split, part, own in zip(SPLITS, ("first 90", "next 5", "last 5"), splits, strict=True)
    }
    return _corpus(name, text, source)


def _from_folder(name: str, folder: Path, field: Field) -> Corpus:
    files = _text_files(folder)
    by_split = {split: [path for path in files if split in _splits_in(path)] for split in SPLITS}
    if not any(by_split.values()) and len(files) == 1:
        return _from_file(name, files[0], field)
    for path in files:
        if len(_splits_in(path)) > 1:
            raise InputError(
                f"{path} names {' and '.join(_splits_in(path))}: rename it so that it names one split"
            )
    missing = [split for split, paths in by_split.items() if not paths]
    if missing:
        seen = ", ".join(path.name for path in files[:8]) + (", …" if len(files) > 8 else "")
        # A file that is called test is not to be cut into train and test.
        other = "" if any(by_split.values()) else ", or pass a single file"
        raise InputError(
            f"folder {folder} has no file for {' and '.join(missing)} among its {len(files)} text file(s) "
            f"({seen}): name one file for each of train, valid and test{other}"
        )
    both = {split: _joined(paths, field) for split, paths in by_split.items()}
    return _corpus(
        name,
        {split: text for split, (text, _) in both.items()},
        {split: at for split, (_, at) in both.items()},
    )


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
    """What stands before `#`, and the field behind it, empty where none is named."""
    if "#" in name and not Path(name).exists():
        path, _, column = name.rpartition("#")
        return Path(path), column
    return Path(name), ""


def _corpus(name: str, text: dict[str, str], source: dict[str, str]) -> Corpus:
    return Corpus(name, text["train"], text["validation"], text["test"], source)
