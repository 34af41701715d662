"""The state of an interrupted training: written whole or not at all, read back by the same training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from data.errors import InputError


def read_state(path: Path | None, fingerprint: str) -> dict[str, Any] | None:
    """What `write_state` left, on the CPU; None where nothing was.

    Raises `InputError` for a file that cannot be read and for one of another training.
    """
    if path is None or not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        theirs = state["fingerprint"]
    except Exception as error:  # torch.load raises whatever the damage leads to
        raise InputError(f"the training state {path} cannot be read; delete it to start afresh") from error
    if theirs != fingerprint:
        raise InputError(
            f"{path} is the state of another training ({theirs}, not {fingerprint}), of another model, text "
            "or setting; delete it to start afresh, or give the settings it was made with"
        )
    return state


def write_state(path: Path, fingerprint: str, state: Mapping[str, Any]) -> None:
    """Keep the state at `path`; `InputError` if it cannot be written there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"fingerprint": fingerprint, **state}, beside)
        beside.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
        beside.unlink(missing_ok=True)
        raise InputError(f"the training state cannot be written to {path} ({error}); make room") from error
