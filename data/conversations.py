"""Conversations as text: rows of messages or of instructions and answers, by the parent's chat template.

Three forms of rows are taken: a list of messages (`messages` of `role` and `content`, or `conversations` of
`from` and `value`), an instruction with or without an input and an answer, a prompt and an answer. Where the
tokenizer has a chat template, the text is what it makes of the turns; where it has none, it is

    User: …

    Assistant: …

with a blank line between turns and `System: …` first where there is such a turn.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from data.errors import InputError, first_line

CHAT = "chat"
"""In place of a field: the conversation of a row, in whichever form it has."""
LISTS = ("messages", "conversations")
PAIRS = (
    ("instruction", "input", "output"),
    ("instruction", "context", "response"),
    ("instruction", "", "output"),
    ("instruction", "", "response"),
    ("prompt", "", "response"),
    ("prompt", "", "completion"),
)
"""Question, what it is about, answer; the first whose fields are all there is taken."""
_ROLES = {"human": "user", "gpt": "assistant"}

Turns = list[dict[str, str]]


def form_of(columns: Iterable[str]) -> tuple[str, ...]:
    """The fields that hold a conversation in rows of these columns, none where there is none."""
    there = set(columns)
    for name in LISTS:
        if name in there:
            return (name,)
    for form in PAIRS:
        needed = tuple(name for name in form if name)
        if there.issuperset(needed):
            return needed
    return ()


def turns_of(row: Mapping[str, Any], form: tuple[str, ...], where: str) -> Turns:
    """The turns of a row, each a `role` and a `content`. Raises InputError where they are none."""
    if len(form) == 1:
        listed = row.get(form[0])
        if not isinstance(listed, list) or not listed:
            raise InputError(
                f"{form[0]!r} in {where} is a {type(listed).__name__} and no list of messages: each row "
                "needs one, of role and content"
            )
        return [_turn(turn, where) for turn in listed]
    question, *about, answer = (row.get(name) for name in form)
    asked = [part for part in (question, *about) if part]
    if not asked or not all(isinstance(part, str) for part in (*asked, answer)):
        raise InputError(
            f"{' and '.join(form)} in {where} are not text: each row needs a question and an answer"
        )
    return [
        {"role": "user", "content": "\n\n".join(map(str, asked))},
        {"role": "assistant", "content": str(answer)},
    ]


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer (or None) brings a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def spoken(turns: Turns, tokenizer: Any, where: str) -> str:
    """The text of a conversation, special tokens of the template included.

    A template that knows no system turn gets it at the head of the first user's. Raises InputError where the
    template refuses the turns.
    """
    if not has_template(tokenizer):
        return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception as error:  # a template raises whatever its author wrote
        first, *rest = turns
        if first["role"] == "system" and rest and rest[0]["role"] == "user":
            asked = {"role": "user", "content": f"{first['content']}\n\n{rest[0]['content']}"}
            return spoken([asked, *rest[1:]], tokenizer, where)
        raise InputError(
            f"the tokenizer's chat template refuses the conversation in {where} ({first_line(error)}): leave "
            "it out, or give text instead"
        ) from error


def _turn(turn: Any, where: str) -> dict[str, str]:
    if isinstance(turn, dict):
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if isinstance(role, str) and isinstance(content, str):
            return {"role": _ROLES.get(role, role), "content": content}
    raise InputError(f"a message in {where} has no role and content that are text: {str(turn)[:60]!r}")
