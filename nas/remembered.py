"""Values that take long to compute, each kept in a file under the digest of all that it depends on.

What is read back is what was computed, to the last bit. A file that is damaged, or of other inputs, counts as
none: the value is computed anew. What is not finite is not kept.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from data.json_text import from_json

Value = TypeVar("Value")


@dataclass(frozen=True)
class Remembered(Generic[Value]):
    """Values of one dataclass of numbers, in `folder`; `inputs`, plain values, are what all depend on."""

    folder: Path
    kind: type[Value]
    inputs: Mapping[str, Any]

    def __call__(self, compute: Callable[[], Value], **more: Any) -> Value:
        """The value that also depends on `more`: the one that is there, or what `compute` returns."""
        found = self.find(**more)
        return self.keep(compute(), **more) if found is None else found

    def find(self, **more: Any) -> Value | None:
        """The value of these inputs, if it is there."""
        path, inputs = self._place(more)
        try:
            stored = from_json(path.read_text(encoding="utf-8"))
            return _made(self.kind, stored["value"]) if stored["inputs"] == inputs else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, value: Value, **more: Any) -> Value:
        """The same value, kept for these inputs."""
        path, inputs = self._place(more)
        try:
            words = json.dumps({"inputs": inputs, "value": asdict(value)}, indent=1, allow_nan=False)  # type: ignore[call-overload]
        except ValueError:  # not finite
            return value
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{uuid.uuid4().hex[:12]}.part")
        try:
            beside.write_text(words, encoding="utf-8")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        return value

    def _place(self, more: Mapping[str, Any]) -> tuple[Path, Any]:
        """The file, and all inputs as they are read back from it."""
        words = json.dumps({**self.inputs, **more, "kind": self.kind.__name__}, sort_keys=True)
        digest = hashlib.sha256(words.encode()).hexdigest()[:16]
        return self.folder / f"{digest}.json", from_json(words)


def _made(kind: type[Value], record: Mapping[str, Any]) -> Value:
    """The dataclass that `asdict` made a record of; ValueError where that does not fit it."""
    hints = get_type_hints(kind)
    names = [each.name for each in fields(kind)]  # type: ignore[arg-type]
    if sorted(record) != sorted(names) or not all(_fits(record[name], hints[name]) for name in names):
        raise ValueError(f"this is no {kind.__name__}")
    return kind(**{name: tuple(each) if isinstance(each, list) else each for name, each in record.items()})


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value that JSON holds is of a field's type: numbers, None, and tuples of such."""
    if get_origin(hint) is tuple:
        return isinstance(value, list) and all(_fits(each, get_args(hint)[0]) for each in value)
    if isinstance(hint, UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    return type(value) is hint and (hint is not float or math.isfinite(value))
