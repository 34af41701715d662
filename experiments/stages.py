"""Stage times of a script: one line a stage on the terminal, and the seconds for the report."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from data.json_text import from_json
from nas.report import write_json


class Stages:
    """Seconds by stage, in order; a stage that is entered twice adds up.

    With a `file`, the seconds are kept there after every stage and added to those that are there, so that an
    interrupted script that goes on knows what it took in all.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self.seconds = _read(file)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        start = perf_counter()
        try:
            yield
        finally:
            spent = perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
            if self._file is not None:
                write_json(self.seconds, self._file)
        say(f"{name}: {spent:.1f} s")


def _read(file: Path | None) -> dict[str, float]:
    """The seconds in a file; none where there is no such file or it is damaged, which costs nothing else."""
    try:
        found = from_json(file.read_text()) if file is not None else {}
        return {str(name): float(seconds) for name, seconds in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def say(text: str) -> None:
    """A line of progress on the terminal, apart from the results."""
    print(text, file=sys.stderr, flush=True)
