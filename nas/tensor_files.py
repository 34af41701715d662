"""Tensors in files that are mapped into memory: the safetensors format, with every tensor well aligned.

Some kernels round differently on weights that do not start at a multiple of 16 bytes; in files of the
library they start wherever the header ends.
"""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
ALIGNED = 64


def read_tensors(path: Path) -> dict[str, Tensor] | None:
    """What a file holds, memory-mapped; None if there is no file or it is damaged."""
    try:
        return load_file(path) if path.is_file() else None
    except (SafetensorError, OSError):
        return None


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Written beside and renamed, so that a file that is there is complete; one tensor after the other, the
    largest first, and from whatever device it is on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{uuid.uuid4().hex[:12]}.part")
    order = sorted(tensors, key=lambda name: (-tensors[name].numel() * tensors[name].itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.itemsize
        header[name] = {
            "dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]
        }  # fmt: skip
    words = json.dumps(header).encode()
    words += b" " * (-(8 + len(words)) % ALIGNED)
    try:
        with beside.open("wb") as file:
            file.write(len(words).to_bytes(8, "little") + words)
            for name in order:
                flat = tensors[name].detach().cpu().contiguous().flatten()
                file.write(flat.view(torch.uint8).numpy().data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def in_file(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The same tensors on the CPU, in a file without a name in `folder`, mapped into memory: its space is
    free again as soon as nothing uses them, however the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="unnamed-", ignore_cleanup_errors=True) as inside:
        write_tensors(Path(inside) / "tensors", tensors)
        return load_file(Path(inside) / "tensors")
