"""A multiple-choice item as text: a context and a continuation for each choice, and which is right."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
"""A question as a data set holds it, in the fields that the Hub's data set has."""


@dataclass(frozen=True)
class Item:
    """One question: choice `i` is `continuations[i]` after `contexts[i]`, choice `gold` is right.

    `lengths` are the characters of each choice, by which acc_norm divides its log-likelihood, or None where
    lm-evaluation-harness reports no acc_norm. Raises ValueError where gold is none of two or more choices.
    """

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int
    lengths: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        n = len(self.continuations)
        if n < 2 or not 0 <= self.gold < n:
            raise ValueError(f"the right choice is number {self.gold} of {n}")
        if not all(self.continuations) or 0 in (self.lengths or ()):
            raise ValueError("a choice is empty")


@dataclass(frozen=True)
class Task:
    """Items of one task; `source` says what they were read from, `rows` and, for the shots, `examples` are
    the questions that the items were made of."""

    name: str
    source: str
    shots: int
    items: tuple[Item, ...] = field(repr=False)
    rows: tuple[Row, ...] = field(repr=False, compare=False)
    examples: tuple[Row, ...] = field(default=(), repr=False, compare=False)

    @property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return sum(1 / len(item.continuations) for item in self.items) / len(self.items)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits over the items' text; equal in another process."""
        seen = hashlib.sha256()
        for item in self.items:
            text = repr((tuple(dict.fromkeys(item.contexts)), item.continuations, item.gold))
            seen.update(text.encode("utf-8", "surrogatepass"))
        return seen.hexdigest()[:16]


def choose(context: str, choices: Sequence[str], gold: int, *, normalised: bool) -> Item:
    """Choices that all continue one context, after a space."""
    return Item(
        contexts=(context,) * len(choices),
        continuations=tuple(f" {choice}" for choice in choices),
        gold=gold,
        lengths=tuple(map(len, choices)) if normalised else None,
    )


def after(preamble: str, item: Item) -> Item:
    """The item with a text before every context."""
    contexts = tuple(preamble + context for context in item.contexts)
    return Item(contexts, item.continuations, item.gold, item.lengths)


def solved(item: Item) -> str:
    """The item with its right choice, as an example before others."""
    return f"{item.contexts[item.gold]}{item.continuations[item.gold]}\n\n"
