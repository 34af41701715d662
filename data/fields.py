"""What rows say: a field of text, or a conversation; rows of files and of the Hub as passages."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from data.conversations import CHAT, LISTS, form_of, has_template, spoken, turns_of
from data.errors import InputError

BLANK_LINE = "\n\n"
LINE, DOCUMENT, TEMPLATED, PLAIN = "line", "document", "templated conversation", "plain conversation"
_BETWEEN = {LINE: "", DOCUMENT: BLANK_LINE, TEMPLATED: "", PLAIN: BLANK_LINE}


@dataclass(frozen=True)
class Passages:
    """The parts of a text at which it may be cut, and what stands between two of them.

    Lines keep their own ends and are joined by nothing, so that the whole is the file byte for byte;
    documents are joined by a blank line; conversations by nothing where a chat template ends them, else as
    documents.
    """

    parts: tuple[str, ...]
    kind: str  # one of the four above

    @property
    def text(self) -> str:
        """The whole text."""
        return _BETWEEN[self.kind].join(self.parts)

    def __getitem__(self, span: slice) -> "Passages":
        return Passages(self.parts[span], self.kind)

    def __len__(self) -> int:
        return len(self.parts)


@dataclass(frozen=True)
class Field:
    """What is read of a row: the text in `name`, or by the `tokenizer`'s chat template its conversation.

    The name `chat` asks for the conversation in whichever form the row has, a list of messages by its name is
    one too; and so is `text`, which is asked for where nobody names a field, in rows that have no such field.
    """

    name: str = "text"
    tokenizer: Any = field(default=None, compare=False, repr=False)

    def of(self, columns: Iterable[str]) -> tuple[str, ...]:
        """The columns that are needed of rows with these."""
        return self._form(columns) or (self.name,)

    def passages(self, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Passages:
        """One passage a row; rows come with the words that say where they are from.

        Raises InputError for a row without such a field, or with something else than text in it.
        """
        parts, chat = [], False
        for where, row in rows:
            form = self._form(row)
            chat = chat or bool(form)
            parts.append(
                spoken(turns_of(row, form, where), self.tokenizer, where)
                if form
                else _string(row.get(self.name), self.name, where, list(row))
            )
        kind = (TEMPLATED if has_template(self.tokenizer) else PLAIN) if chat else DOCUMENT
        return Passages(tuple(parts), kind)

    def _form(self, columns: Iterable[str]) -> tuple[str, ...]:
        columns = list(columns)
        if self.name in LISTS and self.name in columns:
            return (self.name,)
        if self.name == CHAT or self.name == "text":
            return () if self.name in columns else form_of(columns)
        return ()


TEXT_FIELD = Field()


def _string(value: object, name: str, where: str, columns: list[str]) -> str:
    if isinstance(value, str):
        return value
    if name in columns:
        raise InputError(
            f"{name!r} in {where} is a {type(value).__name__} and no text: name a text field as PATH#FIELD"
        )
    wanted = "no conversation" if name == CHAT else f"no {name!r}"
    there = ", ".join(column[:40] for column in columns[:12])
    raise InputError(f"{where} has {wanted}, only {there}: name the text field as PATH#FIELD")
