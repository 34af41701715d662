"""The one error of this project that is the caller's to mend."""


class InputError(ValueError):
    """What a person gave is wrong: a path, a number, a name.

    The message is one sentence with the numbers in it and what to do instead. Scripts print it without a
    traceback and end with exit code 2.
    """


def first_line(error: Exception) -> str:
    """What an error of a library says, in so far as it fits into a sentence of ours: of its first line the
    first sentence, without the full stop, in at most 160 characters."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.split(". ")[0][:160].rstrip(" .:")
