"""The one error of this project that is the caller's to mend."""

from typing import Any


class InputError(ValueError):
    """What a person gave is wrong: a path, a number, a name.

    The message is one sentence with the numbers in it and what to do instead. Scripts print it without a
    traceback and end with exit code 2.
    """


def short(value: Any) -> str:
    """A value as it may stand in a sentence: at most 120 characters of it."""
    words = repr(value)
    return words if len(words) <= 120 else f"{words[:120]}…"


def first_line(error: BaseException) -> str:
    """What an error of a library says, in so far as it fits into a sentence of ours: of its first line the
    first sentence, without the full stop, in at most 160 characters."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.split(". ")[0][:160].rstrip(" .:")
