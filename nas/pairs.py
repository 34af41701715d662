"""Architecture-accuracy pairs, kept in an Optuna study: a pair is a completed trial.

The architecture is one JSON user attribute, its score the trial's value; the study is named by the digest
of the setting, so that pairs of different settings never mix in one storage.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import TrialState, create_trial

from data.errors import InputError, first_line
from nas.architecture import Architecture


@dataclass(frozen=True)
class Pair:
    """An architecture and its measured score (larger is better), with where it came from and what else was
    measured of it."""

    architecture: Architecture
    score: float
    origin: str
    measured: Mapping[str, float] = field(default_factory=dict, compare=False)


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
        _check_records(path)
        _end_last_line(path)
        return JournalStorage(JournalFileBackend(str(path)))
    except Exception as error:
        raise InputError(
            f"the pair store {location} cannot be read ({first_line(error)}); move it away to start afresh"
        ) from error


def _check_records(journal: Path) -> None:
    """Raise `ValueError` unless every line is a record, or the last one the beginning of a record."""
    *whole, torn = journal.read_bytes().split(b"\n") if journal.exists() else [b""]
    for number, line in enumerate(whole, 1):
        if not isinstance(json.loads(line), dict):
            raise ValueError(f"line {number} is no record")
    if torn and not torn.startswith(b'{"op_code"'):
        raise ValueError("its end is no record")


def _end_last_line(journal: Path) -> None:
    """Mend the last line where a writer was killed in the middle of it: Optuna would write behind it and
    spoil both. A record that is whole is ended, half a one cut off: that pair was not stored."""
    if not journal.exists() or not journal.read_bytes().rpartition(b"\n")[2]:
        return
    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()  # so that no other process is writing this very line
    try:
        torn = journal.read_bytes().rpartition(b"\n")[2]
        try:
            json.loads(torn or b"{}")
        except ValueError:
            os.truncate(journal, journal.stat().st_size - len(torn))
        else:
            with journal.open("ab") as file:
                file.write(b"\n" if torn else b"")
    finally:
        lock.release()


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
                f"the pair store {location} is damaged ({first_line(error)}); move it away to start afresh"
            ) from error

    def __len__(self) -> int:
        return len(self._pairs)

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
        pair = Pair(architecture, score, origin, measured)
        self._pairs.append(pair)
        return pair


def _read(trial: optuna.trial.FrozenTrial) -> Pair:
    value = trial.value
    if value is None or not math.isfinite(value):
        raise ValueError(f"trial {trial.number} has the score {value}")
    architecture = Architecture.from_json(trial.user_attrs["architecture"])
    measured = {name: v for name, v in trial.user_attrs.items() if name not in ("architecture", "origin")}
    return Pair(architecture, value, str(trial.user_attrs["origin"]), measured)
