"""Run a GGUF file with llama.cpp itself, through llama-cpp-python (the extra `llama-cpp`)."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.errors import InputError


@dataclass(frozen=True)
class Config:
    """As much of a model's configuration as a comparison of several asks for."""

    vocab_size: int


@dataclass(frozen=True)
class Output:
    """As much of a model's output as evaluation asks for."""

    logits: Tensor


@cache
def _silent(llama_cpp: Any) -> Any:
    """Takes llama.cpp's messages and drops them: what goes wrong is raised."""
    return llama_cpp.llama_log_callback(lambda level, text, data: None)


class LlamaCpp:
    """A GGUF file, called like a model of transformers: token ids (n, length) in, logits in float32 out.

    `length` is the longest text, of which all tokens go through in one pass. It runs as llama.cpp does by
    default, with flash attention and keys and values in 16 bits; `exact` has neither. Where not `every` token
    gets logits, the last does, for measuring time. It runs where llama.cpp was built for, and hands logits
    over on `device`, where those of other models are. Raises `InputError` for a file that cannot be loaded.
    """

    def __init__(
        self,
        path: Path | str,
        length: int,
        *,
        exact: bool = False,
        every: bool = True,
        threads: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        try:
            import llama_cpp
        except ImportError as error:
            raise InputError(
                "the package llama-cpp-python is not installed; run python -m pip install -e '.[llama-cpp]', "
                "which builds it for some minutes"
            ) from error
        llama_cpp.llama_log_set(_silent(llama_cpp), None)
        kind = llama_cpp.GGML_TYPE_F32 if exact else llama_cpp.GGML_TYPE_F16
        count = threads or torch.get_num_threads()
        try:
            self.inner: Any = llama_cpp.Llama(
                str(path), n_ctx=length, n_batch=length, n_ubatch=length, logits_all=every, verbose=False,
                type_k=kind, type_v=kind, flash_attn=not exact, n_threads=count, n_threads_batch=count,
            )  # fmt: skip
        except (ValueError, RuntimeError, AssertionError, TypeError) as error:
            raise InputError(f"llama.cpp cannot load {path} ({error}); export it again") from error
        # It frees what is not Python's, which must happen while there is a Python to call.
        self._closed = weakref.finalize(self, self.inner.close)
        self.length = length
        self.device = torch.device(device)
        self.config = Config(int(self.inner.n_vocab()))

    def __call__(self, ids: Tensor, use_cache: bool = False) -> Output:
        """Logits (n, length, vocabulary) of texts that know nothing of one another."""
        return Output(torch.stack([self.logits(row.tolist()) for row in ids]).to(self.device))

    def logits(self, tokens: Sequence[int], pieces: Sequence[int] = ()) -> Tensor:
        """Logits (length, vocabulary) of one text, fed in `pieces` of these lengths, the rest at once: the
        cache carries what came before."""
        self.feed(tokens, pieces)
        return torch.from_numpy(np.array(self.inner.scores[: len(tokens)], dtype=np.float32))

    def feed(self, tokens: Sequence[int], pieces: Sequence[int] = ()) -> None:
        """Read one text, as `logits` does."""
        if len(tokens) > self.length:
            raise InputError(f"{len(tokens)} tokens do not fit into {self.length}; open it for more")
        self.inner.reset()
        first = 0
        for piece in (*pieces, len(tokens) - sum(pieces)):
            self.inner.eval(list(tokens[first : first + piece]))
            first += piece

    def encode(self, text: str) -> list[int]:
        """Token ids by the file's own tokenizer, with the first and last token where it adds them."""
        return list(self.inner.tokenize(text.encode(), add_bos=True, special=False))

    def num_parameters(self) -> int:
        """Weights in the file, zeros that fill up and a tied head counted once."""
        import llama_cpp

        return int(llama_cpp.llama_model_n_params(self.inner._model.model))
