"""How does a checkpoint get to where it shall run?

Writes a saved checkpoint (a subnet of this project, or a plain one) for an engine: `hf` is transformers, in
another dtype or file size; `gguf` is llama.cpp; `vllm` is vLLM.

    python -m experiments.export runs/demo/checkpoint --to gguf --dtype q8_0 --out runs/demo/subnet.gguf
    python -m experiments.export runs/demo/checkpoint --to hf --dtype bf16 --max-shard-size 2GB --out runs/hf
    python -m experiments.export runs/vllm/checkpoint --to vllm --out runs/vllm/export

What an engine cannot run is refused in a sentence. `--target ENGINE` of experiments.compress searches among
what it can.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from experiments.command_line import option, required, run
from nas.engines import ENGINES
from nas.engines.checkpoint import open_checkpoint
from nas.engines.engine import Choices


@dataclass(frozen=True)
class Settings:
    """What is written, for whom and how."""

    folder: Path = required("a checkpoint, the folder with its config.json", group="input", positional=True)
    to: str = required("engine to write for", group="input", choices=ENGINES)
    out: Path = required("file (gguf) or folder to write; nothing may be there", group="run")

    dtype: str = option(
        "auto",
        "of the weights: "
        + "; ".join(f"{name} takes {', '.join(engine.dtypes)}" for name, engine in ENGINES.items())
        + " (auto: f16 in gguf, else as they are)",
        group="form",
    )
    max_shard_size: str = option("50GB", "largest file of weights, in hf and vllm", group="form")
    form: str = option(
        "auto",
        f"of vllm: {', '.join(ENGINES['vllm'].forms)}; as DeciLM or for the Transformers backend",
        group="form",
    )
    tokenizer: bool = option(
        True, "put the tokenizer into a gguf; without one it is fed token ids", group="form"
    )


def main(settings: Settings) -> None:
    """Read, write, say what was written."""
    engine = ENGINES[settings.to]
    choices = Choices(settings.dtype, settings.max_shard_size, settings.form, settings.tokenizer)
    engine.check(settings.to, choices)
    for note in engine.write(open_checkpoint(settings.folder), settings.out, choices):
        print(note)
    size = sum(path.stat().st_size for path in [settings.out, *settings.out.rglob("*")] if path.is_file())
    print(f"{settings.out}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    sys.exit(run(Settings, main))
