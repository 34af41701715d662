"""The laws that every model family keeps, as functions that run it on a tiny random parent.

In a notebook: `check_family(AutoConfig.from_pretrained("ORGANISATION/MODEL"))`; from a shell:
`python -m experiments.check_family ORGANISATION/MODEL`. In the tests: every law on every family. A broken law
raises AssertionError with the law's name and the numbers. Adding one is one function and one line in `LAWS`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedConfig

from nas.laws import cutting, repairs, saving, streams
from nas.laws.case import Case
from nas.laws.shrink import tiny_config

Law = Callable[[Case], None]

LAWS: dict[str, Law] = {
    "layout": cutting.layout,
    "plain projections": cutting.plain_projections,
    "permutation": cutting.permutation,
    "keep everything": cutting.keep_everything,
    "cut is masked": cutting.cut_is_masked,
    "parent untouched": cutting.parent_untouched,
    "views": cutting.views,
    "cache": cutting.cache,
    "costs": cutting.costs,
    "saved is cut": saving.saved_is_cut,
    "saved twice": saving.saved_twice,
    "saved in shards": saving.saved_in_shards,
    "ties": saving.ties,
    "half precision": saving.half_precision,
    "needs its code": saving.needs_its_code,
    "stream moved": streams.stream_moved,
    "narrower is masked": streams.narrower_is_masked,
    "narrower is saved": saving.narrower_is_saved,
    "unused channels": streams.unused_channels,
    "stream replayed": streams.stream_replayed,
    "one-pass repair": repairs.one_pass,
    "repaired views": repairs.bank_is_view,
    "front-to-back repair": repairs.front_to_back,
}


def broken(name: str, case: Case) -> str | None:
    """What is wrong with the law of this name, in a sentence; None if it holds.

    Whatever a family's code raises on the way breaks the law, too.
    """
    with torch.no_grad():
        try:
            LAWS[name](case)
        except AssertionError as error:
            return str(error)
        except Exception as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def check_family(config: PreTrainedConfig, progress: Callable[[str], object] = lambda law: None) -> None:
    """Hold every law against a tiny parent of this configuration, which may be that of a model of any size.

    `progress` is told each law that holds. Raises AssertionError with the first broken law, `InputError` for
    an unsupported family.
    """
    case = Case(tiny_config(config)[0])
    for name in LAWS:
        wrong = broken(name, case)
        assert wrong is None, f"{config.model_type} breaks the law {name!r}: {wrong}"
        progress(name)
