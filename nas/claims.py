"""Who is measuring what: the claims of workers on architectures in a shared pair store.

A claim is a running trial with the architecture and its worker. Of two claims on one architecture the
earlier counts; storages number trials one after the other, so all workers agree on which that is. A claim
ends when its worker dies. On the machine where that runs, the system knows whether it lives; from another
machine its beats are listened to, a number that it raises every now and then. Only changes of that number
are timed, and with the listener's own monotonic clock, so that no two clocks need to agree, and none may
jump.
"""

from __future__ import annotations

import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BEAT, SILENCE = 15.0, 120.0
"""Seconds between beats, and without one until a worker elsewhere counts as dead."""


def place() -> str:
    """This machine since it was started, and the numbering of processes in which this one lives."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{platform.node()} {uuid.getnode():x}"


def started(process: int) -> str:
    """When a process was started, in ticks since the machine was; empty where the system does not say. Two
    processes that had the same number one after the other differ in it."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    state, *rest = status.rpartition(")")[2].split()
    return "" if state in "ZX" else rest[18]


@dataclass(frozen=True)
class Worker:
    """A process that measures, as all others know it; `name` is for people, `token` its own alone."""

    name: str
    place: str
    process: int
    started: str
    token: str

    @classmethod
    def here(cls) -> Worker:
        """This process."""
        process = os.getpid()
        name = f"{platform.node()}:{process}"
        return cls(name, place(), process, started(process), uuid.uuid4().hex[:12])

    @classmethod
    def read(cls, stored: Any) -> Worker | None:
        """From a trial's attribute; None where that holds none."""
        if not isinstance(stored, Mapping):
            return None
        kinds = {"name": str, "place": str, "process": int, "started": str, "token": str}
        if stored.keys() != kinds.keys() or any(type(stored[k]) is not kind for k, kind in kinds.items()):
            return None
        return cls(**stored)

    def is_same_process(self, other: Worker) -> bool:
        """Whether both are of one process."""
        return (self.place, self.process, self.started) == (other.place, other.process, other.started)

    def lives(self, here: str) -> bool | None:
        """Whether it lives, asked at the place `here`; None where that cannot be known from there."""
        if self.place != here:
            return None
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # another user's
        return started(self.process) == self.started


@dataclass
class Listener:
    """Tells from their beats which workers elsewhere are dead, by a clock that only goes forward."""

    silence: float
    clock: Callable[[], float] = time.monotonic
    _heard: dict[int, tuple[Any, float]] = field(default_factory=dict)

    def is_dead(self, trial: int, beat: Any) -> bool:
        """Whether a trial has had this beat for too long; to be asked again and again."""
        now = self.clock()
        known = self._heard.get(trial)
        if known is None or known[0] != beat:
            self._heard[trial] = (beat, now)
            return False
        return now - known[1] > self.silence

    def forget(self, trial: int) -> None:
        """A trial that has ended."""
        self._heard.pop(trial, None)


class Heart:
    """Beats in the background, from the first pause on, until it is stopped: `beat` gets 1, 2, 3 …"""

    def __init__(self, beat: Callable[[int], object], pause: float) -> None:
        self._beat, self._pause, self._end = beat, pause, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="heart")
        self._thread.start()

    def _run(self) -> None:
        count = 0
        while not self._end.wait(self._pause):
            count += 1
            try:
                self._beat(count)
            except Exception:
                continue  # a store that is away: whoever measures will meet it, and say so

    def stop(self) -> None:
        """No further beat begins."""
        self._end.set()
        self._thread.join(timeout=5.0)  # one that a store keeps waiting is let go
