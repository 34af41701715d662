"""What an engine is: a place where a subnet can run, what it can run, and how it is written for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import InputError
from nas.engines.checkpoint import Checkpoint
from nas.space import SearchSpace


@dataclass(frozen=True)
class Choices:
    """How to write a checkpoint: `dtype` is one of the engine's, `form` one of its forms, `auto` what suits;
    `max_shard_size` as transformers takes it; without `tokenizer` an engine's file gets none."""

    dtype: str = "auto"
    max_shard_size: str = "50GB"
    form: str = "auto"
    tokenizer: bool = True


Restrict = Callable[[SearchSpace, Mapping[str, Any], bool], SearchSpace]
"""(space of a parent, its configuration, whether repair adds biases behind output matrices) -> the part of
the space that the engine can run. Raises `InputError` where it runs nothing that is cut from the parent."""

Write = Callable[[Checkpoint, Path, Choices], list[str]]
"""(checkpoint, where to, choices) -> what the user should know, a sentence each. Raises `InputError` for a
checkpoint that the engine cannot run."""


@dataclass(frozen=True)
class Engine:
    """`restrict` is its profile: whatever is cut out of the space it leaves, `write` can write."""

    words: str
    dtypes: tuple[str, ...]
    restrict: Restrict
    write: Write
    forms: tuple[str, ...] = ("auto",)
    shards: bool = True
    """Whether its weights may lie in several files."""

    def check(self, name: str, choices: Choices) -> None:
        """Raise `InputError` for choices that the engine, called `name`, does not have."""
        if not self.shards and choices.max_shard_size != Choices.max_shard_size:
            raise InputError(f"{name} is written as one file; leave --max-shard-size out")
        for flag, value, known in (
            ("--dtype", choices.dtype, self.dtypes),
            ("--form", choices.form, self.forms),
        ):
            if value not in known:
                raise InputError(f"{flag} is {value}, and {name} takes {', '.join(known)}; give one of them")


def every_multiple(space: SearchSpace, of: int) -> dict[str, tuple[int, ...]]:
    """FFN choices that are multiples of `of`, by knob, with 0 and the whole width where they are choices; all
    choices of a knob that would be left with none."""
    kept: dict[str, tuple[int, ...]] = {}
    for name, choices in space.knobs.items():
        if name.endswith(".ffn"):
            fitting = tuple(width for width in choices if width % of == 0 or width == space.shape.ffn)
            kept[name] = fitting or choices
    return kept
