"""Where a subnet can run: an engine's profile restricts the search space, its writer exports a checkpoint.

Adding an engine is one file and one line in `ENGINES`.
"""

from nas.engines import gguf, hf, vllm
from nas.engines.engine import Engine

ENGINES: dict[str, Engine] = {
    "hf": hf.ENGINE,
    "gguf": gguf.ENGINE,
    "vllm": vllm.ENGINE,
}
