"""How much faster llama.cpp runs a subnet than its parent.

Both are exported to GGUF (`experiments.export`), and llama.cpp reads the same tokens with each in turn: all
at once, of which only the last gets logits, as when a prompt is read (prefill), and one by one (decode). With
half of the block parameters, reading at once is wanted to be 1.5 times as fast. Without `--checkpoint` a
subnet with different widths in its blocks is cut out of the parent, from what llama.cpp can run.

Takes llama-cpp-python (the extra `llama-cpp`); says so and ends without it.

    python -m benchmarks.llama_cpp
    python -m benchmarks.llama_cpp --parent FOLDER --checkpoint runs/model/checkpoint --dtype q8_0
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks._setup import Common, in_turn, make_ready, ratio, show
from experiments.command_line import option, run
from nas.engines import ENGINES
from nas.engines.checkpoint import Checkpoint, open_checkpoint
from nas.engines.engine import Choices
from nas.engines.gguf import DTYPES
from nas.engines.llama_cpp import LlamaCpp
from nas.export import save_checkpoint
from nas.parent import place_of
from nas.sampling import starts
from nas.shape import architecture_of
from nas.subnet import cut


@dataclass(frozen=True)
class Settings(Common):
    """What is measured; a parent in a local folder."""

    keep: float = option(0.5, "kept fraction of the blocks' parameters", group="input")
    checkpoint: Path | None = option(
        None, "a saved subnet of the parent; without it one is cut", group="input"
    )
    dtype: str = option("f16", "of the matrices", group="input", choices=DTYPES)
    context: int = option(512, "tokens that are read at once", group="input", least=2)
    tokens: int = option(32, "tokens that are read one by one after them", group="input", least=1)


def main(settings: Settings) -> None:
    """Export, measure and print."""
    if importlib.util.find_spec("llama_cpp") is None:
        print("llama-cpp-python is not installed: python -m pip install -e '.[llama-cpp]' builds it")
        return
    length = settings.context + settings.tokens
    with tempfile.TemporaryDirectory() as folder:
        parent = open_checkpoint(Path(place_of(settings.parent)))
        subnet = open_checkpoint(settings.checkpoint or made(settings, Path(folder) / "subnet"))
        models: dict[str, LlamaCpp] = {}
        for name, checkpoint in (("parent", parent), ("subnet", subnet)):
            path = Path(folder) / f"{name}.gguf"
            choices = Choices(dtype=settings.dtype, tokenizer=False)
            print(f"{name}: {'; '.join(ENGINES['gguf'].write(checkpoint, path, choices))}")
            models[name] = LlamaCpp(path, length, every=False, threads=settings.threads)
        drawn = np.random.default_rng(settings.seed).integers(models["parent"].config.vocab_size, size=length)
        text = drawn.tolist()
        rows = [["tokens read", *(f"{name}, ms" for name in models), "times as fast"]]
        for label, shown, pieces in (
            (f"{settings.context} at once", text[: settings.context], ()),
            (f"{settings.tokens} one by one", text[: settings.tokens], (1,) * (settings.tokens - 1)),
        ):
            seconds = in_turn(
                {name: partial(model.feed, shown, pieces) for name, model in models.items()}, settings.repeats
            )
            times = ratio(seconds["parent"], seconds["subnet"])
            milliseconds = [f"{1e3 * median(each):.1f}" for each in seconds.values()]
            rows.append([label, *milliseconds, f"{times:.2f}"])
    kept = blocks_of(subnet) / blocks_of(parent)
    show(
        f"{settings.parent} and a subnet with {kept:.3f} of its block parameters in llama.cpp, "
        f"{settings.dtype}, {settings.threads} thread(s), medians of {settings.repeats} (wanted >= 1.50 at "
        "once and 0.5 kept)",
        rows,
    )


def made(settings: Settings, folder: Path) -> Path:
    """A checkpoint with different widths in its blocks, within the part of the parameters that is kept."""
    ready = make_ready(settings)
    space = ENGINES["gguf"].restrict(ready.space, ready.config.to_dict(), False)
    budget = ready.budget("block_parameters", settings.keep)
    rows = space.widths(starts(space, budget, np.random.default_rng(settings.seed), ready.hints))
    uneven = rows[(rows != rows[:, :1]).any((1, 2)) & (rows > 0).all((1, 2))]
    architecture = architecture_of((uneven if len(uneven) else rows)[0], ready.shape)
    subnet = cut(ready.parent, ready.shape, architecture, ready.prepared.bank, own=True)
    return save_checkpoint(subnet, ready.config, ready.shape, architecture, folder)


def blocks_of(checkpoint: Checkpoint) -> int:
    """Parameters of the decoder blocks."""
    return sum(
        int(np.prod(shape)) for name, shape in checkpoint.shapes.items() if name.startswith("model.layers.")
    )


if __name__ == "__main__":
    sys.exit(run(Settings, main))
