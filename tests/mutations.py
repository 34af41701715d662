"""Files that were changed by accident or on purpose: a valid one, with a few edits."""

from __future__ import annotations

import json
from random import Random
from typing import Any

TOKENS = (
    b"", b"null", b"NaN", b"-1", b"1e999", b"0", b"[]", b"{}", b'""', b"true", b"9" * 30, b"9" * 5000,
    b"[" * 1100, b"\0", b"\xff", b'"\\u0000"', b"\n", b",", b":", b"- &a [*a]", b"1.5", b'"x"',
    b"!!python/object/apply:os.system [true]", b'"\\ud800"', b"\r", b'"',
)  # fmt: skip
VALUES = (
    None, True, -1, 0, 1, 2, 7, 10**30, 1.5, float("nan"), float("inf"), "", "x", "1", [], [0], {}, {"a": 1},
    [[]], "\0", "\ud800", "$\\frac$", [1, "a"],
)  # fmt: skip


def mutated(content: bytes, draw: Random, is_json: bool) -> bytes:
    """The content after one to three edits; of JSON mostly of its values, so that what is behind the syntax
    is reached."""
    for _ in range(draw.randint(1, 3)):
        content = _value(content, draw) if is_json and draw.random() < 0.75 else _bytes(content, draw)
    return content


def _bytes(content: bytes, draw: Random) -> bytes:
    at, kind = draw.randrange(len(content) + 1), draw.randrange(5)
    if kind == 0:
        return content[:at] + draw.choice(TOKENS) + content[at + draw.randint(0, 8) :]
    if kind == 1:
        return content[:at] + draw.randbytes(draw.randint(0, 6)) + content[at + draw.randint(0, 40) :]
    if kind == 2:
        return content[:at]
    if kind == 3:
        return content[: at + draw.randint(1, 60)] + content[at:]
    return (
        content[:at]
        + bytes(byte ^ 1 << draw.randrange(8) for byte in content[at : at + 1])
        + content[at + 1 :]
    )


def _value(content: bytes, draw: Random) -> bytes:
    """JSON in which one of all values is another one or left out."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        return content
    places: list[tuple[Any, Any]] = []
    waiting = [record] if isinstance(record, dict | list) else []
    while waiting:
        holder = waiting.pop()
        for key in [*holder] if isinstance(holder, dict) else range(len(holder)):
            places.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    if places:
        holder, key = draw.choice(places)
        if draw.random() < 0.3:
            del holder[key]
        else:
            holder[key] = draw.choice(VALUES)
    return json.dumps(record).encode()
