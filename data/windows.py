"""From text to fixed-length windows of token ids: encode once, cut, draw."""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import LongTensor, Tensor

from data.errors import InputError


def encode(tokenizer: Any, text: str, cache: Path | None = None) -> NDArray[np.int32]:
    """Token ids of the whole text at once, shape `(tokens,)`; no special tokens are added.

    With `cache`, a folder (made if missing), the ids are kept there as one `.npy` file, found again by the
    sha256 of the text and of the tokenizer's serialised form. It is written atomically, so that many workers
    may share it; a file that cannot be read is written again.
    """
    if cache is None:
        return _encode(tokenizer, text)
    key = hashlib.sha256(f"{tokenizer_digest(tokenizer)} {_sha256(text)}".encode()).hexdigest()
    path = Path(cache) / f"{key}.npy"
    try:
        cached: NDArray[np.int32] = np.load(path, allow_pickle=False)
        if cached.dtype == np.int32 and cached.ndim == 1:
            return cached
    except Exception:  # none there, or whatever damage makes of NumPy's way of reading a header
        pass
    tokens = _encode(tokenizer, text)
    _write_atomically(path, tokens)
    return tokens


def tokenizer_digest(tokenizer: Any) -> str:
    """The sha256 of everything by which a tokenizer turns text into ids; equal in another process."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return _sha256(backend.to_str())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return hashlib.sha256(
            b"\0".join(path.name.encode() + path.read_bytes() for path in files)
        ).hexdigest()


def windows(tokens: NDArray[np.int32], seq_len: int) -> LongTensor:
    """Non-overlapping windows in the order of the text, shape `(n, seq_len)`, int64; the tail is dropped.

    Raises InputError when the tokens fill no window.
    """
    if seq_len < 1:
        raise InputError(f"a window of {seq_len} tokens holds nothing: use 2 or more")
    count = len(tokens) // seq_len
    if count == 0:
        raise InputError(
            f"the text has {len(tokens)} tokens, fewer than one window of {seq_len}: "
            "pass a longer text or a shorter window"
        )
    ids = np.asarray(tokens[: count * seq_len], dtype=np.int64).reshape(count, seq_len)
    return torch.from_numpy(ids.copy())  # type: ignore[return-value]


def draw(windows: Tensor, count: int, rng: np.random.Generator) -> LongTensor:
    """`count` distinct windows at random, in ascending order, shape `(count, seq_len)`.

    Raises InputError when there are fewer than `count`.
    """
    _check_count(len(windows), count)
    chosen = np.sort(rng.choice(len(windows), size=count, replace=False))
    return windows[torch.from_numpy(chosen)]  # type: ignore[return-value]


def spread(windows: Tensor, count: int) -> LongTensor:
    """`count` evenly spaced windows, the first among them, shape `(count, seq_len)`: always the same.

    Raises InputError when there are fewer than `count`.
    """
    _check_count(len(windows), count)
    return windows[torch.arange(count) * len(windows) // count]  # type: ignore[return-value]


def spread_apart(windows: Tensor, first: int, second: int) -> tuple[LongTensor, LongTensor]:
    """`spread` of `first` windows and, none of these among them, of `second` others, shapes as there.

    Where there are too few windows for both, the first take at most half of them, the second what is left.
    Raises InputError when there is but one.
    """
    if len(windows) < 2:
        raise InputError("the text fills one window, and two that differ are needed: pass a longer text")
    first = min(first, len(windows) // 2)
    taken = spread(torch.arange(len(windows)), first)
    rest = torch.ones(len(windows), dtype=torch.bool)
    rest[taken] = False
    return windows[taken], spread(windows[rest], min(second, int(rest.sum())))  # type: ignore[return-value]


def _check_count(available: int, count: int) -> None:
    if count < 1:
        raise InputError(f"{count} windows were asked for: ask for 1 to {available}")
    if count > available:
        raise InputError(
            f"{count} windows were asked for and the text fills {available}: "
            "ask for fewer, or pass a longer text"
        )


def _encode(tokenizer: Any, text: str) -> NDArray[np.int32]:
    ids = tokenizer(text, add_special_tokens=False, truncation=False, padding=False, verbose=False)[
        "input_ids"
    ]
    return np.asarray(ids, dtype=np.int32)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _write_atomically(path: Path, tokens: NDArray[np.int32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, tokens, allow_pickle=False)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
