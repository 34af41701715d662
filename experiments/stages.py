"""Stage times of a script: one line a stage on the terminal, and the seconds for the report."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class Stages:
    """Seconds by stage, in order; a stage that is entered twice adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        start = perf_counter()
        try:
            yield
        finally:
            spent = perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
        say(f"{name}: {spent:.1f} s")


def say(text: str) -> None:
    """A line of progress on the terminal, apart from the results."""
    print(text, file=sys.stderr, flush=True)
