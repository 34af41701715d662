"""JSON that others wrote."""

from __future__ import annotations

import json
from typing import Any


def said(error: ValueError) -> str:
    """What is wrong with a text, without the place, which readers name in their own way."""
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def from_json(text: str | bytes) -> Any:
    """What a JSON text says; ValueError for whatever is none, one that is nested too deep included."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def rows_from_json(text: str) -> Any:
    """The same of rows whose strings are read as text; ValueError, too, where one is none: half of a
    surrogate pair, as an emoji that was cut in two leaves it, cannot be encoded."""
    found = from_json(text)
    if "\\ud" in text.lower():
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError) as error:
            raise ValueError("a string in it holds half of a surrogate pair") from error
    return found
