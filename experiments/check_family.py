"""Do the laws of cutting hold for this model's family? Law by law, on a tiny random model like it.

Takes the settings of a model, a Hub id or a folder with config.json, or of a bare model type, makes them tiny
with every switch as it is, and holds all laws against a random model of them: cuts against zeroed parents,
caches, costs, checkpoints, repairs. No weights are downloaded. Ends with 1 if a law is broken. A family that
is not in nas/families/table.py yet is tried as LLaMA's, if it has all that this takes.

    python -m experiments.check_family Qwen/Qwen3-8B
    python -m experiments.check_family gpt_neox
    python -m experiments.check_family --model FOLDER --laws "cut is masked" cache
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from transformers import CONFIG_MAPPING, AutoConfig
from transformers.utils import logging

from data.errors import InputError
from experiments.command_line import option, required, run
from nas.families import FAMILIES, REFUSED
from nas.families.unknown import supposed
from nas.laws import LAWS, broken
from nas.laws.case import Case
from nas.laws.shrink import Changes, tiny_config
from nas.parent import read_config


@dataclass(frozen=True)
class Settings:
    """A model, or a family."""

    model: str = required("a Hub id, a local folder or demo, or a model type such as gpt_neox")
    laws: tuple[str, ...] = option((), "only these; none are all", choices=LAWS)
    revision: str | None = option(None, "of the model on the Hub: a branch, a tag or a commit")


def main(settings: Settings) -> int:
    """Shrink, check, print; 1 if a law is broken."""
    logging.set_verbosity_error()
    if settings.model in CONFIG_MAPPING and not Path(settings.model).exists():
        config = AutoConfig.for_model(settings.model)
    else:
        try:
            config = read_config(settings.model, settings.revision)
        except InputError as error:
            raise InputError(f"{error}, or give a model type such as gpt_neox") from error
    kind = str(config.model_type)
    new = kind not in FAMILIES and kind not in REFUSED
    with supposed(config) if new else nullcontext():
        tiny, changes = tiny_config(config)
        print(said(settings.model, kind, new, changes))
        case, wrong = Case(tiny), []
        for name in settings.laws or LAWS:
            start = time.perf_counter()
            sentence = broken(name, case)
            print(f"{name:22}{'broken' if sentence else 'holds ':8}{time.perf_counter() - start:6.1f} s")
            sys.stdout.flush()
            if sentence:
                wrong.append(name)
                print(f"    {sentence}")
    if wrong:
        print(f"\n{kind} breaks {len(wrong)} of {len(settings.laws or LAWS)} laws: {', '.join(wrong)}.")
        return 1
    entry = f'; its line in nas/families/table.py is "{kind}": Family()' if new else ""
    print(f"\n{kind} keeps all {len(settings.laws or LAWS)} laws{entry}.")
    return 0


def said(name: str, kind: str, new: bool, changes: Changes) -> str:
    """What is checked, and what was made smaller for it."""
    lines = [f"{name}: {kind}" + (", not in nas/families/table.py yet; tried as Family()" if new else "")]
    for setting, (before, after) in changes.items():
        lines.append(f"    {setting:26}{_short(before)} -> {_short(after)}")
    return "\n".join([*lines, ""])


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def with_flag(argv: Sequence[str]) -> list[str]:
    """A first word that is no option is the model."""
    return ["--model", *argv] if argv and not argv[0].startswith("-") else [*argv]


if __name__ == "__main__":
    sys.exit(run(Settings, main, with_flag(sys.argv[1:])))
