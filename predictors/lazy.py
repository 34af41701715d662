"""Predictors named before they are imported, and built with what their constructors accept."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from predictors.protocol import Predictor


class Lazy:
    """A class or function by its import path "package.module:Name", imported when it is first called.

    `settings` are keywords that every call gets; another `Lazy` among them is imported along with this one,
    so that what is missing is missed before anything is learned.
    """

    def __init__(self, path: str, /, **settings: Any) -> None:
        self.path = path
        self.settings = settings

    def load(self) -> Callable[..., Any]:
        """What the path leads to, with the settings filled in; ValueError when it leads nowhere."""
        module_name, _, name = self.path.partition(":")
        try:
            module = importlib.import_module(module_name)
        except Exception as error:  # whatever a module does when it is imported
            raise ValueError(f"predictor {self.path!r} cannot be imported: {error}") from error
        found = getattr(module, name, None)
        if not callable(found):
            close = near(name, [other for other, value in vars(module).items() if callable(value)])
            raise ValueError(f"module {module_name!r} has no class {name!r}{close}")
        if not self.settings:
            return found
        return functools.partial(
            found,
            **{
                key: value.load() if isinstance(value, Lazy) else value
                for key, value in self.settings.items()
            },
        )

    def __call__(self, **settings: Any) -> Predictor:
        return self.load()(**settings)

    def __repr__(self) -> str:
        return f"Lazy({', '.join([repr(self.path), *(f'{k}={v!r}' for k, v in self.settings.items())])})"


def build(make: Callable[..., Any], **offered: Any) -> Any:
    """What `make` makes, given those of the offered keywords that it names in its signature or, as
    scikit-learn's and XGBoost's own do, among the parameters of what it made.

    So one call serves constructors that take `seed`, `random_state` or neither.
    """
    if isinstance(make, Lazy):
        make = make.load()
    try:
        named = set(inspect.signature(make).parameters)
    except ValueError:  # some classes written in C tell no signature
        named = set()
    made = make(**{key: value for key, value in offered.items() if key in named})
    if named and hasattr(made, "get_params") and hasattr(made, "set_params"):
        hidden = set(made.get_params(deep=False)) & set(offered) - named
        made.set_params(**{key: offered[key] for key in hidden})
    return made


def near(name: str, names: Iterable[str]) -> str:
    """ " (near: ...)" when some of the names resemble this one, or nothing."""
    close = difflib.get_close_matches(name, list(names))
    return f" (near: {', '.join(close)})" if close else ""
