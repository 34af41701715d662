"""What others made is data: every parser answers ten thousand damaged files with a result or a sentence."""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

import pytest

from data.errors import InputError
from tests.mutations import mutated
from tests.parsers import FROM_ELSEWHERE
from tests.parsers_of_runs import OF_RUNS

PARSERS = {**FROM_ELSEWHERE, **OF_RUNS}
TIMES = int(os.environ.get("SECATEUR_FUZZ", "10000"))
"""Damaged inputs of each parser."""
FORGIVING = ("streamed text", "token ids", "stage times", "result", "results side by side")
"""What is damaged is made anew, or left out, without a word of refusal."""
LONGEST = 20.0
"""Seconds that one of them may take."""


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
def test_damage_is_answered_with_a_result_or_a_sentence(name: str, tmp_path: Path) -> None:
    parser = PARSERS[name]
    path = parser.make(tmp_path)
    valid = path.read_bytes()
    parser.read(path)
    draw, refused = Random(0), 0
    for number in range(TIMES):
        damaged = mutated(valid, draw, parser.is_json)
        path.unlink(missing_ok=True)  # to write over it makes some file systems wait for the disk
        path.write_bytes(damaged)
        start = time.monotonic()
        try:
            parser.read(path)
        except InputError as error:
            refused += 1
            assert 0 < len(str(error)) < 1000, f"input {number}: {damaged[:500]!r}"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise AssertionError(f"input {number}: {damaged[:500]!r}") from error
        assert time.monotonic() - start < LONGEST, f"input {number}: {damaged[:500]!r}"
    assert refused > TIMES // 20 or name in FORGIVING  # or the edits spoil nothing
