"""What errors of libraries become in sentences of ours."""

import pytest

from data.errors import first_line


@pytest.mark.parametrize(
    "said, line",
    [
        ("", "ValueError"),
        ("\n \n", "ValueError"),
        ("it is broken.\nTry this:", "it is broken"),
        ("It is broken. See https://example.org for more.", "It is broken"),
        ("expected at v1.2: line 3", "expected at v1.2: line 3"),
        ("a" * 200, "a" * 160),
    ],
)
def test_an_error_of_a_library_in_a_sentence_of_ours(said: str, line: str) -> None:
    assert first_line(ValueError(said)) == line
