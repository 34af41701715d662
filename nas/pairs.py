"""Architecture-accuracy pairs, kept in an Optuna study: a pair is a completed trial.

The architecture is one JSON user attribute, its score the trial's value; the study is named by the digest
of the setting, so that pairs of different settings never mix in one storage.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from data.errors import InputError
from nas.architecture import Architecture


@dataclass(frozen=True)
class Pair:
    """An architecture and its measured score (larger is better), with where it came from."""

    architecture: Architecture
    score: float
    origin: str


@dataclass(frozen=True)
class Setting:
    """Everything that a score depends on besides the architecture."""

    fields: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits, equal for equal settings in every process."""
        text = json.dumps(self.fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def open_storage(location: str) -> BaseStorage:
    """An Optuna storage: a database URL (`sqlite:///…`, `postgresql://…`) or the path of a journal file.

    Raises `InputError` if it cannot be opened or read.
    """
    try:
        if "://" in location:
            return RDBStorage(location)
        path = Path(location).absolute()  # its lock is a link to it, which must lead there
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_whole(path)
        return JournalStorage(JournalFileBackend(str(path)))
    except Exception as error:
        raise InputError(
            f"the pair store {location} cannot be read ({_first_line(error)}); move it away to start afresh"
        ) from error


def _check_whole(journal: Path) -> None:
    """Raise `ValueError` unless every line is whole: Optuna would write behind a torn one and spoil both."""
    lines = journal.read_bytes().splitlines(keepends=True) if journal.exists() else []
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n") or not isinstance(json.loads(line), dict):
            raise ValueError(f"line {number} is torn")


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without Optuna's line for every study and its warnings that a part is experimental."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


class Pairs:
    """The pairs of one setting in one storage, in the order they were measured."""

    def __init__(self, location: str, setting: Setting) -> None:
        """Open or create the study of this setting; every stored pair is read back and checked."""
        self._location = location
        storage, name = open_storage(location), f"pairs-{setting.digest}"
        try:
            with quiet_optuna():
                sampler = optuna.samplers.RandomSampler(seed=0)
                if name in optuna.get_all_study_names(storage):  # opening alone writes nothing
                    self._study = optuna.load_study(study_name=name, storage=storage, sampler=sampler)
                else:
                    self._study = optuna.create_study(
                        study_name=name,
                        storage=storage,
                        sampler=sampler,
                        direction="maximize",
                        load_if_exists=True,
                    )
            if not self._study.user_attrs:
                self._study.set_user_attr("setting", dict(setting.fields))
            self._pairs = [
                _read(t) for t in self._study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE
            ]
        except Exception as error:
            raise InputError(
                f"the pair store {location} is damaged ({_first_line(error)}); move it away to start afresh"
            ) from error
        self._known = {pair.architecture for pair in self._pairs}

    def __len__(self) -> int:
        return len(self._pairs)

    def __contains__(self, architecture: Architecture) -> bool:
        return architecture in self._known

    @property
    def all(self) -> list[Pair]:
        """The pairs so far."""
        return list(self._pairs)

    def add(self, architecture: Architecture, score: float, origin: str, **measured: float) -> Pair:
        """Store a measured pair now; further measurements become attributes of the trial.

        Raises `InputError` for a score that is not finite.
        """
        if not math.isfinite(score):
            raise InputError(
                f"subnet {architecture.digest} scored {score}; its parent or its repair is broken"
            )
        attributes = {"architecture": architecture.to_json(), "origin": origin, **measured}
        self._study.add_trial(create_trial(value=score, user_attrs=attributes))
        pair = Pair(architecture, score, origin)
        self._pairs.append(pair)
        self._known.add(architecture)
        return pair


def _read(trial: optuna.trial.FrozenTrial) -> Pair:
    value = trial.value
    if value is None or not math.isfinite(value):
        raise ValueError(f"trial {trial.number} has the score {value}")
    architecture = Architecture.from_json(trial.user_attrs["architecture"])
    return Pair(architecture, value, str(trial.user_attrs["origin"]))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
