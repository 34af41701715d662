"""Text data sets of the Hugging Face Hub, by `owner/name[:config]`."""

import re
from typing import Any

from data.errors import InputError
from data.files import Passages, cut

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(:[\w.-]+)?")
STREAM_ABOVE_BYTES = 2_000_000_000
STREAMED_CHARACTERS = 64_000_000
_SPLITS = ("train", "validation", "test")


def read_hub(name: str, field: str = "text") -> tuple[dict[str, Passages], dict[str, str]]:
    """The rows of each split, and a sentence on where each came from.

    Of a data set of more than 2 GB (or of unknown size) the first 64 million characters of each split are
    streamed instead of downloading it. A split the data set lacks is cut from one it has, which the sentence
    says. Raises InputError when the data set cannot be had: offline, unknown, script-based, without the
    field.
    """
    dataset_id, _, config = name.partition(":")
    try:
        import datasets

        size = datasets.load_dataset_builder(dataset_id, config or None).info.dataset_size
        stream = not size or size > STREAM_ABOVE_BYTES
        loaded: Any = datasets.load_dataset(dataset_id, config or None, streaming=stream)
        rows = {split: _rows(loaded[split], field, stream) for split in _SPLITS if split in loaded}
    except InputError:
        raise
    except Exception as error:  # whatever the many layers below raise, the person's way out is the same
        raise InputError(_sentence(name, error)) from error
    if not rows:
        raise InputError(f"{name} has none of the splits {', '.join(_SPLITS)}, only {', '.join(loaded)}")
    passages = {split: Passages(tuple(texts), "document") for split, texts in rows.items()}
    part = f"first {STREAMED_CHARACTERS:,} characters of the rows" if stream else "rows"
    source = {split: f"{part} of Hub {name}, split {split}, field {field}" for split in passages}
    return _complete(name, passages, source)


def read_rows(name: str, split: str) -> list[dict[str, Any]]:
    """All rows of one split of `owner/name[:config]`; InputError when they cannot be had."""
    dataset_id, _, config = name.partition(":")
    try:
        import datasets

        return list(datasets.load_dataset(dataset_id, config or None, split=split))
    except Exception as error:  # as above
        raise InputError(_sentence(name, error, "give the folder of its files")) from error


def _rows(rows: Any, field: str, stream: bool) -> list[str]:
    texts: list[str] = []
    characters = 0
    for row in rows:
        if not isinstance(row.get(field), str):
            raise InputError(
                f"no text in field {field!r} of the rows, which have {', '.join(row)}: pass ID#FIELD"
            )
        texts.append(row[field])
        characters += len(row[field])
        if stream and characters >= STREAMED_CHARACTERS:
            break
    return texts


def _complete(
    name: str, passages: dict[str, Passages], source: dict[str, str]
) -> tuple[dict[str, Passages], dict[str, str]]:
    """Cut the splits that are missing out of those that are there."""
    if "train" not in passages or len(passages) == 1:
        there = next(iter(passages))
        splits = dict(zip(_SPLITS, cut(passages[there], name), strict=True))
        return splits, {split: f"{source[there]}, cut 90/5/5 by rows" for split in _SPLITS}
    for missing, other in (("test", "validation"), ("validation", "test")):
        if missing not in passages:
            whole, half = passages[other], len(passages[other]) // 2
            first, second = whole[:half], whole[half:]
            passages |= {"validation": first, "test": second}
            halved = f"{source[other]}, rows halved"
            source |= {"validation": f"{halved}, first half", "test": f"{halved}, second half"}
    return passages, source


def _sentence(name: str, error: Exception, instead: str = "pass a local file or folder, or 'demo'") -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    if "scripts are no longer supported" in reason:
        return f"{name} is a script-based data set, which datasets 4 refuses: pass a folder of its text files"
    return f"{name} is no local path and could not be read from the Hub ({reason}): {instead}"
