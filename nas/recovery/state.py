"""The state of an interrupted training: written whole or not at all, read back by the same training.

A safetensors file: the tensors by number, and how they lie in the state as JSON in its metadata. No pickle,
so that a file from elsewhere is data and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from data.errors import InputError
from data.json_text import from_json
from nas.tensor_files import write_tensors


def read_state(path: Path | None, fingerprint: str) -> dict[str, Any] | None:
    """What `write_state` left, on the CPU; None where nothing was.

    Raises `InputError` for a file that cannot be read and for one of another training.
    """
    if path is None or not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            written = from_json(file.metadata()["state"])
            state = _unpacked(written, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        theirs = state.pop("fingerprint")
    except Exception as error:  # whatever the damage leads to
        raise InputError(f"the training state {path} cannot be read; delete it to start afresh") from error
    if theirs != fingerprint:
        raise InputError(
            f"{path} is the state of another training ({theirs}, not {fingerprint}), of another model, text "
            "or setting; delete it to start afresh, or give the settings it was made with"
        )
    return dict(state)


def write_state(path: Path, fingerprint: str, state: Mapping[str, Any]) -> None:
    """Keep the state, of mappings, lists, tuples, tensors and plain values, at `path`; `InputError` if it
    cannot be written there."""
    tensors: dict[str, Tensor] = {}
    written = json.dumps(_packed({"fingerprint": fingerprint, **state}, tensors))
    try:
        write_tensors(path, tensors, {"state": written})
    except OSError as error:
        raise InputError(f"the training state cannot be written to {path} ({error}); make room") from error


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON can hold it, with its kind beside it where JSON would lose that."""
    if isinstance(value, Tensor):
        tensors[str(len(tensors))] = value
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(value, Mapping):
        return {"mapping": [[_packed(key, tensors), _packed(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_packed(item, tensors) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a training state cannot hold a {type(value).__name__}")


def _unpacked(written: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(written, dict):
        return written
    ((kind, content),) = written.items()
    if kind == "tensor":
        return tensors[content].clone(memory_format=torch.contiguous_format)
    if kind == "mapping":
        return {_unpacked(key, tensors): _unpacked(item, tensors) for key, item in content}
    items = [_unpacked(item, tensors) for item in content]
    return {"list": items, "tuple": tuple(items)}[kind]
