"""The command line of every experiment, derived from its settings.

A script declares one flat frozen dataclass, whose fields say in place what they mean, and ends in one line:

    @dataclass(frozen=True)
    class Settings:
        parent: str = option("demo", "model to compress: a Hub id, a local folder or demo", group="input")
        keep: float = option(0.5, "fraction of the blocks' parameters to keep", group="budget")

    if __name__ == "__main__":
        raise SystemExit(run(Settings, main))

Fields may be int, float, str, bool, Path, a Literal, one of these or None, or a tuple of one of these.
`--config FILE` sets the same names from YAML or JSON; the command line wins over it, it over the defaults.
"""

import argparse
import contextlib
import difflib
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml

from data.errors import InputError, short
from experiments.ending import ended

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")
T = TypeVar("T")

WANTED = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def option(
    default: T,
    help: str,
    *,
    group: str = "options",
    choices: Iterable[str] = (),
    metavar: str = "",
    least: float | None = None,
) -> T:
    """A field with its default and its line of `--help`; `choices` for the names in a registry, `least` for a
    number's smallest value that means anything (see `check_least`).

    Typed as its default, so that `keep: float = option(0.5, …)` checks like `keep: float = 0.5`.
    """
    return field(default=default, metadata={**_metadata(help, group, choices, metavar), "least": least})


def required(
    help: str,
    *,
    group: str = "options",
    choices: Iterable[str] = (),
    metavar: str = "",
    positional: bool = False,
) -> Any:
    """A field that has no default and must be given; it may stand after fields that have one. A `positional`
    one is given without its name."""
    metadata = {**_metadata(help, group, choices, metavar), "positional": positional}
    return field(kw_only=True, metadata=metadata)


def check_least(settings: Any) -> None:
    """Raise `InputError` for a number in a dataclass of settings below the `least` of its `option`."""
    for each in fields(settings):
        value, least = getattr(settings, each.name), each.metadata.get("least")
        if least is not None and value is not None and value < least:
            raise InputError(f"--{each.name.replace('_', '-')} is {value}; give {least} or more")


def run(
    settings: type[S],
    main: Callable[[S], object],
    argv: Sequence[str] | None = None,
    description: str | None = None,
) -> int:
    """The exit code of `main(parse(settings, argv))`: what it returns where that is an int, else 0, or that
    of the way it was ended (`experiments.ending`)."""
    return ended(lambda: main(parse(settings, argv, description)))


def parse(settings: type[S], argv: Sequence[str] | None = None, description: str | None = None) -> S:
    """The settings that command line, `--config` file and defaults spell; InputError where they do not."""
    options = _options(settings)
    parser = _parser(settings, options, description)
    given, rest = parser.parse_known_args(argv)
    if rest:
        flags = [each.flag for each in options.values() if not each.positional]
        raise InputError(_unknown(rest[0], ["--config", *flags]))
    typed: dict[str, Any] = vars(given)
    config: Path | None = typed.pop("config", None)
    values = {} if config is None else _from_file(config, options)
    values |= {name: options[name].read(value, options[name].flag) for name, value in typed.items()}
    for each in options.values():
        if each.default is MISSING and each.name not in values:
            raise InputError(f"{each.flag} is required: {each.help}.")
    return settings(**values)


def _metadata(help: str, group: str, choices: Iterable[str], metavar: str) -> dict[str, Any]:
    return {"help": help, "group": group, "choices": tuple(choices), "metavar": metavar}


@dataclass(frozen=True)
class _Option:
    """A field as the command line sees it; `kind` is its type without the None, for a tuple its items'."""

    name: str
    kind: Any
    many: bool
    optional: bool
    choices: tuple[Any, ...]
    default: Any
    help: str
    group: str
    metavar: str
    positional: bool

    @property
    def flag(self) -> str:
        return self.name.upper() if self.positional else "--" + self.name.replace("_", "-")

    def read(self, value: Any, where: str) -> Any:
        """`value`, from the command line or a file, as the field's type; errors begin with `where`."""
        if self.optional and (value is None or value == "none"):
            return None
        if not self.many:
            return self._read_one(value, where)
        if not isinstance(value, list):
            raise InputError(f"{where}: {short(value)} is not a list.")
        return tuple(self._read_one(item, where) for item in value)

    def _read_one(self, value: Any, where: str) -> Any:
        try:
            result = _as(self.kind, value)
        except (ValueError, OverflowError):
            raise InputError(f"{where}: {short(value)} is not {WANTED[self.kind]}.") from None
        if self.choices and result not in self.choices:
            names = ", ".join(map(str, self.choices))
            raise InputError(
                f"{where}: {short(value)} is not one of {names}{_near(str(result), self.choices)}"
            )
        return result

    def add_to(self, group: argparse._ArgumentGroup) -> None:
        """Absent unless given, and as text: `read` converts and complains, as it does for files."""
        help = f"{self.help} [{self._shown_default()}]".replace("%", "%%").lstrip()
        common: dict[str, Any] = {"dest": self.name, "default": argparse.SUPPRESS, "help": help}
        if self.kind is bool and not self.many:
            group.add_argument(self.flag, action=argparse.BooleanOptionalAction, **common)
            return
        names = "{" + ",".join(map(str, self.choices)) + "}" if self.choices else METAVARS.get(self.kind)
        nargs = "*" if self.many else None
        if self.positional:
            del common["dest"]
            group.add_argument(self.name, metavar=self.flag, nargs="?", **common)
            return
        group.add_argument(self.flag, metavar=self.metavar or names, nargs=nargs, **common)

    def _shown_default(self) -> str:
        if self.default is MISSING:
            return "required"
        if self.default is None or self.default in ((), ""):
            return "default: none"
        if isinstance(self.default, bool):
            return "default: yes" if self.default else "default: no"
        items = self.default if isinstance(self.default, tuple) else (self.default,)
        return "default: " + " ".join(map(str, items))


def _options(settings: type[S]) -> dict[str, _Option]:
    hints = get_type_hints(settings)
    return {each.name: _option(each, hints[each.name]) for each in fields(settings) if each.init}


def _option(declared: Field[Any], hint: Any) -> _Option:
    """Raises TypeError for a type that no word on a command line can spell: that is the script's fault."""
    optional = False
    if get_origin(hint) in (Union, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not NoneType]
        optional = len(kinds) < len(get_args(hint))
        hint = kinds[0] if len(kinds) == 1 else hint
    many = get_origin(hint) is tuple and get_args(hint)[1:] == (Ellipsis,)
    kind = get_args(hint)[0] if many else hint
    choices = declared.metadata.get("choices", ())
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        kind = type(choices[0])
    if kind not in WANTED or declared.name == "config":
        raise TypeError(f"a command line cannot hold the setting {declared.name}: {hint}")
    return _Option(
        name=declared.name,
        kind=kind,
        many=many,
        optional=optional,
        choices=tuple(choices),
        default=declared.default,
        help=declared.metadata.get("help", ""),
        group=declared.metadata.get("group", "options"),
        metavar=declared.metadata.get("metavar", ""),
        positional=declared.metadata.get("positional", False),
    )


def _as(kind: Any, value: Any) -> Any:
    """`value` as `kind` without loss: 3e6 is a whole number, 2.5 and true are not, nan and inf no numbers."""
    if kind is bool:
        words = {"true": True, "yes": True, "false": False, "no": False}
        if str(value).lower() not in words:
            raise ValueError
        return words[str(value).lower()]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError
    if kind in (str, Path):
        return kind(str(value))
    if kind is int and not isinstance(value, float):
        with contextlib.suppress(ValueError):
            return int(value)
    number = float(value)
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise ValueError
    return kind(number)


def _from_file(path: Path, options: dict[str, _Option]) -> dict[str, Any]:
    """The settings a YAML or JSON file makes; names may be written with - or _."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config: {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"--config: {path} is not a text file.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise InputError(f"--config: {path} is neither YAML nor JSON{line}.") from None
    if not isinstance(content, dict):
        raise InputError(f"--config: {path} should hold lines of `name: value`.")
    values: dict[str, Any] = {}
    for written, value in content.items():
        name = str(written).replace("-", "_")
        if name not in options:
            raise InputError(f"{path}: unknown setting {short(written)}{_near(name, options)}")
        values[name] = options[name].read(value, f"{path}: {written}")
    return values


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as an InputError, so that every bad input leaves by the same door."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message.removeprefix("argument ").rstrip(".") + ".")


def _parser(settings: type[S], options: dict[str, _Option], description: str | None) -> _Parser:
    module = sys.modules[settings.__module__]
    words, examples = _split(description if description is not None else module.__doc__ or "")
    spec = getattr(module, "__spec__", None)
    parser = _Parser(
        prog=f"python -m {spec.name}" if spec else None,
        usage=" ".join(
            ["%(prog)s", *(each.flag for each in options.values() if each.positional), "[options]"]
        ),
        description=words,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for each in options.values():
        if each.group not in groups:
            groups[each.group] = parser.add_argument_group(each.group)
        each.add_to(groups[each.group])
    own = parser.add_argument_group("this command line")
    own.add_argument(
        "--config",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="YAML or JSON file that sets the same names; the command line wins",
    )
    own.add_argument("-h", "--help", action="help", help="show this and end")
    return parser


def _split(docstring: str) -> tuple[str, str]:
    """What a script's docstring says, and its commands: from the first indented paragraph on."""
    paragraphs = docstring.strip().split("\n\n")
    first = next((i for i, text in enumerate(paragraphs) if text.startswith(" ")), len(paragraphs))
    examples = "\n\n".join(paragraphs[first:])
    return "\n\n".join(paragraphs[:first]), f"example:\n{examples}" if examples else ""


def _unknown(word: str, flags: list[str]) -> str:
    if not word.startswith("-"):
        return f"{word!r} belongs to no option."
    flag = word.split("=")[0]
    return f"unknown option {flag}{_near(flag, flags)}"


def _near(word: str, known: Iterable[Any]) -> str:
    """The end of a sentence about a name that is not known."""
    near = difflib.get_close_matches(word, [str(each) for each in known], n=3, cutoff=0.7)
    return f"; did you mean {' or '.join(near)}?" if near else "; --help lists what is."
