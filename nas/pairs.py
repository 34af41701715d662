"""Architecture-accuracy pairs, kept in an Optuna study that any number of workers share.

A pair is a completed trial: the architecture is one JSON user attribute, its score the trial's value. A
running trial is a claim (`nas.claims`), a failed one a try that came to nothing, with its reason. The study
is named by the digest of the setting, so that pairs of different settings never mix in one storage.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from data.errors import InputError, first_line
from nas.architecture import Architecture
from nas.claims import BEAT, SILENCE, Heart, Listener, Worker
from nas.storage import PATIENCE, open_storage, patiently, shown

WORKER, COUNT, FAILED = "worker", "beat", "failed"
"""System attributes of a trial: whose claim it is, its latest beat, why it came to nothing."""
DIED, LEFT = "its worker died", "its worker let it go"
"""Reasons that say little about the architecture itself."""
TRIES, DEATHS = 2, 10
"""After so many errors, or so many workers that died with it, an architecture is tried no more."""
HELD: set[tuple[str, int]] = set()
"""The claims that this process holds: the worker's token and the trial's id."""
RECENT = 1.0
"""Seconds for which a worker that was alone chooses by what it has read."""
HASTE = 5.0
"""Seconds that a worker on its way out waits for the store."""


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
    """The pairs of one setting in one storage, as far as this worker has read them."""

    def __init__(
        self, location: str, setting: Setting, *, beat: float = BEAT, silence: float = SILENCE
    ) -> None:
        """Open or create the study of this setting; every stored pair is read back and checked. A claim's
        `beat` comes every so many seconds; after `silence` without one a worker elsewhere is dead."""
        self._location = location
        self._storage: BaseStorage = open_storage(location)
        self._worker, self._listener, self._pause = Worker.here(), Listener(silence), beat
        self._draw, self._alone = random.Random(self._worker.token), -math.inf
        self._last: Architecture | None = None
        self._pairs: dict[int, Pair] = {}
        self._first: dict[Architecture, int] = {}  # the earliest trial of each; hashing them takes long
        self._ended: set[int] = set()
        self._numbers: dict[int, int] = {}
        self._running: dict[int, tuple[Architecture, Worker | None]] = {}
        self._reasons: defaultdict[Architecture, list[str]] = defaultdict(list)
        try:
            self._study = patiently(lambda: _study(self._storage, f"pairs-{setting.digest}"))
            if not self._study.user_attrs:
                patiently(lambda: self._study.set_user_attr("setting", dict(setting.fields)))
        except InputError:
            raise
        except Exception as error:
            raise self._damaged(error) from error
        self.refresh()

    def __len__(self) -> int:
        return len(self._first)

    @property
    def all(self) -> list[Pair]:
        """The pairs so far, each architecture once, in the order in which they were begun."""
        return [self._pairs[number] for number in sorted(self._first.values())]

    def among(self, architectures: Iterable[Architecture]) -> dict[Architecture, Pair]:
        """The pairs so far of these architectures."""
        return {each: self._pairs[self._first[each]] for each in architectures if each in self._first}

    @property
    def failures(self) -> dict[Architecture, str]:
        """Architectures that are tried no more, and why."""
        given_up = {}
        for architecture, reasons in self._reasons.items():
            deaths = reasons.count(DIED)
            errors = [reason for reason in reasons if reason not in (DIED, LEFT)]
            if len(errors) >= TRIES:
                given_up[architecture] = f"{errors[-1]} (tried {len(errors)} times)"
            elif deaths >= DEATHS:
                given_up[architecture] = f"{deaths} workers died while they measured it"
        return given_up

    @property
    def workers(self) -> list[str]:
        """Names of the other workers that are measuring now."""
        return sorted({w.name for _, w in self._running.values() if w is not None and w != self._worker})

    def refresh(self) -> None:
        """Read what all workers have stored, and end the claims of those that died."""
        trials = patiently(lambda: self._study.get_trials(deepcopy=False))
        self._running = {}
        over: dict[int, str] = {}
        try:
            for trial in trials:
                if trial.number not in self._ended:
                    self._see(trial, over)
        except Exception as error:
            raise self._damaged(error) from error
        for trial_id, reason in over.items():  # they are seen as ended the next time
            self._end(trial_id, TrialState.FAIL, {FAILED: reason})

    def _see(self, trial: FrozenTrial, over: dict[int, str]) -> None:
        """Take in a trial that has not ended when it was seen before."""
        if trial.state == TrialState.COMPLETE:
            pair = self._pairs[trial.number] = _read(trial)
            self._first[pair.architecture] = min(
                trial.number, self._first.get(pair.architecture, trial.number)
            )
        elif trial.state == TrialState.FAIL:
            if "architecture" in trial.user_attrs:
                reason = str(trial.system_attrs.get(FAILED, LEFT))
                self._reasons[_architecture(trial)].append(reason)
        elif trial.state == TrialState.RUNNING:
            worker = Worker.read(trial.system_attrs.get(WORKER))
            ended = self._why_over(trial, worker)
            if ended is None:
                self._running[trial.number] = (_architecture(trial), worker)
                self._numbers[trial._trial_id] = trial.number
            else:
                over[trial._trial_id] = ended
            return
        else:
            return
        self._ended.add(trial.number)
        self._listener.forget(trial.number)

    def _why_over(self, trial: FrozenTrial, worker: Worker | None) -> str | None:
        """Why a claim has no longer anyone who measures; None while it has."""
        if worker is not None and worker.is_same_process(self._worker):
            # Not held: made twice, when an answer was lost, or left while the store was away.
            return None if (worker.token, trial._trial_id) in HELD else LEFT
        lives = worker.lives(self._worker.place) if worker is not None else None
        if lives is None:
            lives = not self._listener.is_dead(trial.number, trial.system_attrs.get(COUNT))
        return None if lives else DIED

    def add(self, architecture: Architecture, score: float, origin: str, **measured: float) -> Pair:
        """Store a pair that was measured without a claim; further measurements become attributes.

        Raises `InputError` for a score that is not finite.
        """
        _check_finite(architecture, score)
        attributes = {"architecture": architecture.to_json(), "origin": origin, **measured}
        patiently(lambda: self._study.add_trial(create_trial(value=score, user_attrs=attributes)))
        self.refresh()
        return Pair(architecture, score, origin, measured)

    def take(self, wanted: Sequence[Architecture], origin: str) -> Claim | None:
        """A claim on one of some architectures, those that were tried least first; None if each of them is
        measured, given up, or being measured by another worker."""
        # Who was alone a moment ago need not look again: what is read behind the claim decides.
        read, fresh = time.monotonic() - self._alone < RECENT, False
        while True:
            free = self._free(wanted) if read else []
            if free:
                least = min(map(self._troubles, free))
                free = [each for each in free if self._troubles(each) == least]
                claim = self._claim(self._choice(wanted, free), origin)
                if claim is not None:
                    return claim
            elif fresh:
                return None
            else:
                self.refresh()
            read = fresh = True

    def _choice(self, wanted: Sequence[Architecture], free: Sequence[Architecture]) -> Architecture:
        """The first that is free; beside others the one behind the last that was taken here, or any, so that
        they do not all go for the same."""
        if not self.workers:
            return free[0]
        behind = next((b for a, b in zip(wanted, wanted[1:], strict=False) if a == self._last), None)
        return behind if behind is not None and behind in free else self._draw.choice(free)

    def _free(self, wanted: Sequence[Architecture]) -> list[Architecture]:
        """Those that nobody has measured, given up or claimed, each once."""
        taken = {architecture for architecture, _ in self._running.values()} | self.failures.keys()
        return [each for each in dict.fromkeys(wanted) if each not in self._first and each not in taken]

    def _troubles(self, architecture: Architecture) -> int:
        """Tries that failed; a single worker that died with an architecture says nothing about that."""
        reasons = self._reasons.get(architecture, [])
        return sum(reason != LEFT for reason in reasons) - (DIED in reasons)

    def _claim(self, architecture: Architecture, origin: str) -> Claim | None:
        """The claim, or None if another worker's was earlier."""
        template = create_trial(
            state=TrialState.RUNNING,
            user_attrs={"architecture": architecture.to_json(), "origin": origin},
            system_attrs={WORKER: vars(self._worker)},
        )
        trial_id = patiently(lambda: self._storage.create_new_trial(self._study._study_id, template))
        self._last = architecture
        held = (self._worker.token, trial_id)
        HELD.add(held)
        try:
            self.refresh()
        except BaseException:  # nobody measures it
            HELD.discard(held)
            raise
        mine = self._numbers[trial_id]
        before = [theirs for at, (theirs, _) in self._running.items() if at < mine]
        end = partial(self._end, trial_id)
        claim = Claim(
            architecture, end, partial(self._beat, trial_id), partial(HELD.discard, held), self._pause
        )
        if architecture in self._first or architecture in before:
            claim.give_back()
            return None
        self._alone = -math.inf if self.workers else time.monotonic()
        return claim

    def _beat(self, trial_id: int, count: int) -> None:
        # Soon let go: a beat that waits for the store would keep the claim's end waiting.
        patiently(lambda: self._storage.set_trial_system_attr(trial_id, COUNT, count), HASTE)

    def _end(
        self,
        trial_id: int,
        state: TrialState,
        system: Mapping[str, Any],
        user: Mapping[str, Any] | None = None,
        score: float | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """End a trial in this state, with such attributes; one that has ended already stays as it is."""

        def act() -> None:
            for name, value in (user or {}).items():
                self._storage.set_trial_user_attr(trial_id, name, value)
            for name, value in system.items():
                self._storage.set_trial_system_attr(trial_id, name, value)
            self._storage.set_trial_state_values(trial_id, state, None if score is None else [score])

        with suppress(UpdateFinishedTrialError):
            patiently(act, patience)

    def _damaged(self, error: Exception) -> InputError:
        return InputError(
            f"the pair store {shown(self._location)} is damaged ({first_line(error)}); move it away to start "
            "afresh"
        )


class Claim:
    """An architecture that one worker measures, and no other, inside its `with`. What is left without an end
    is given back, or, after an error, has failed with it."""

    def __init__(
        self,
        architecture: Architecture,
        end: Callable[..., None],
        beat: Callable[[int], None],
        let_go: Callable[[], None],
        pause: float,
    ) -> None:
        self.architecture = architecture
        self._end, self._beat, self._let_go, self._pause, self._ended = end, beat, let_go, pause, False

    def __enter__(self) -> Claim:
        self._heart = Heart(self._beat, self._pause)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._heart.stop()
        self._let_go()
        if self._ended:
            return
        with suppress(InputError):  # a store that is away now: the error that led here says more
            if isinstance(error, Exception) and not isinstance(error, InputError):
                self._finish(TrialState.FAIL, {FAILED: _reason(error)}, patience=HASTE)
            else:
                self.give_back()

    def store(self, score: float, **measured: float) -> None:
        """The pair, with what else was measured; a score that is not finite is a failure. Of a claim that
        was lost meanwhile, since its worker was silent for too long, nothing is stored."""
        if math.isfinite(score):
            self._finish(TrialState.COMPLETE, {}, measured, score)
        else:
            self.fail(f"it scored {score}")

    def fail(self, reason: str) -> None:
        """It cannot be measured; tried again, here or elsewhere, up to `TRIES` times in all."""
        self._finish(TrialState.FAIL, {FAILED: reason})

    def give_back(self) -> None:
        """Leave it to others, as if it had not been begun."""
        self._finish(TrialState.FAIL, {FAILED: LEFT}, patience=HASTE)

    def _finish(self, *end: Any, **more: Any) -> None:
        self._end(*end, **more)
        self._ended = True
        self._let_go()


def _study(storage: BaseStorage, name: str) -> optuna.Study:
    """The study of this name; where it is there, opening writes nothing."""
    sampler = optuna.samplers.RandomSampler(seed=0)
    with quiet_optuna():
        if name in optuna.get_all_study_names(storage):
            return optuna.load_study(study_name=name, storage=storage, sampler=sampler)
        return optuna.create_study(
            study_name=name, storage=storage, sampler=sampler, direction="maximize", load_if_exists=True
        )


def _architecture(trial: FrozenTrial) -> Architecture:
    return Architecture.from_json(trial.user_attrs["architecture"])


def _read(trial: FrozenTrial) -> Pair:
    score = trial.value
    if score is None or not math.isfinite(score):
        raise ValueError(f"trial {trial.number} has the score {score}")
    measured = {name: v for name, v in trial.user_attrs.items() if name not in ("architecture", "origin")}
    return Pair(_architecture(trial), score, str(trial.user_attrs["origin"]), measured)


def _check_finite(architecture: Architecture, score: float) -> None:
    if not math.isfinite(score):
        raise InputError(f"subnet {architecture.digest} scored {score}; its parent or its repair is broken")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
