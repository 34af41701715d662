"""How a script ends: its exit code, and one sentence instead of a traceback, but for bugs."""

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TextIO

from data.errors import InputError

INTERRUPTED, UNREAD, TERMINATED = 130, 141, 143
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
RESUMES = "running the same command again resumes"


def ended(action: Callable[[], object]) -> int:
    """What `action` returns where that is an int, else 0.

    One sentence and no traceback for an InputError (2), a full disk (2), Ctrl-C (130), the signal that batch
    systems end a job with (143) and an output that nobody reads any more (141). Any other exception is a bug
    and keeps its traceback.
    """
    try:
        with _terminable():
            code = action()
        sys.stdout.flush()
        return code if type(code) is int else 0
    except InputError as error:
        _say(f"error: {error}")
        return 2
    except _Terminated:
        _say(f"terminated: what was finished is kept, and {RESUMES}.")
        return TERMINATED
    except KeyboardInterrupt:
        _say(f"interrupted: what was finished is kept, and {RESUMES}.")
        return INTERRUPTED
    except BrokenPipeError:
        if not [stream for stream in (sys.stdout, sys.stderr) if _unread(stream)]:
            raise
        _say(f"stopped: nobody reads the output any more; {RESUMES}.")
        return UNREAD
    except Exception as error:
        # Libraries that write in other languages say it in words alone.
        if getattr(error, "errno", None) not in FULL and "No space left on device" not in str(error):
            raise
        _say(
            f"error: no room is left to write ({error}); make some: what was finished is kept, and {RESUMES}."
        )
        return 2


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which is cleaned up after as Ctrl-C is."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Have SIGTERM raise in the main thread."""

    def stop(*_: Any) -> NoReturn:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(sentence: str) -> None:
    """On one line whatever the sentence holds; said to nobody if standard error is closed too."""
    with contextlib.suppress(OSError):
        print(" ".join(sentence.split()), file=sys.stderr, flush=True)


def _unread(stream: TextIO) -> bool:
    """Whether nobody reads `stream`: one more line finds out. It is let go then, or the exit would fail."""
    try:
        print(file=stream, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return True
    return False
