"""What people call tasks: old and owned ids of their data sets, and abbreviations of papers."""

from collections.abc import Iterable
from difflib import get_close_matches

OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "arc_easy": ("arc-e", "arc-easy", "arce", "ai2_arc:arc-easy", "allenai/ai2_arc:arc-easy"),
    "arc_challenge": (
        "arc-c",
        "arc-challenge",
        "arcc",
        "ai2_arc:arc-challenge",
        "allenai/ai2_arc:arc-challenge",
    ),
    "boolq": ("google/boolq", "super_glue:boolq", "aps/super_glue:boolq"),
    "copa": ("super_glue:copa", "aps/super_glue:copa"),
    "hellaswag": ("rowan/hellaswag", "hella_swag"),
    "mmlu": ("cais/mmlu", "cais/mmlu:all", "hendrycks_test", "hendryckstest", "lukaemon/mmlu"),
    "openbookqa": ("allenai/openbookqa", "allenai/openbookqa:main", "obqa", "openbook_qa"),
    "piqa": ("ybisk/piqa", "baber/piqa"),
    "winogrande": ("allenai/winogrande", "allenai/winogrande:winogrande_xl", "winogrande_xl", "wino_grande"),
}
"""By the name in TASKS, without regard to case."""
SEVERAL = {
    "arc": ("arc_easy", "arc_challenge"),
    "ai2_arc": ("arc_easy", "arc_challenge"),
    "allenai/ai2_arc": ("arc_easy", "arc_challenge"),
    "super_glue": ("boolq", "copa"),
    "aps/super_glue": ("boolq", "copa"),
}
OF_THE_HARNESS = {
    "lambada": "lambada_openai",
    "lambada_openai": "lambada_openai",
    "eleutherai/lambada_openai": "lambada_openai",
    "race": "race",
    "eleutherai/race": "race",
    "siqa": "social_iqa",
    "social_iqa": "social_iqa",
    "social_i_qa": "social_iqa",
    "lighteval/siqa": "social_iqa",
    "sciq": "sciq",
    "allenai/sciq": "sciq",
    "csqa": "commonsense_qa",
    "commonsense_qa": "commonsense_qa",
    "tau/commonsense_qa": "commonsense_qa",
}
"""Tasks that lm-evaluation-harness alone scores here, by what people call them."""
_TASKS = {other: name for name, others in OTHER_NAMES.items() for other in (name, *others)}


def canonical(name: str) -> str:
    """The name in TASKS of what a person calls a task; any other name as it is."""
    return _TASKS.get(name.lower(), name)


def task_called(name: str) -> str:
    """What `--tasks` takes for a name, several parted by commas; empty for what is no task known here."""
    wanted = name.lower()
    if wanted in OF_THE_HARNESS:
        return f"{OF_THE_HARNESS[wanted]} --engine harness"
    return ",".join(SEVERAL.get(wanted, (_TASKS[wanted],) if wanted in _TASKS else ()))


def unknown(name: str, there: Iterable[str]) -> str:
    """The sentence on a name that is none of the tasks that are `there`."""
    there = tuple(there)
    near = task_called(name)
    if not near:
        close = get_close_matches(name.lower(), _TASKS, n=1, cutoff=0.7)
        near = canonical(close[0]) if close else ""
    return f"there is no task {name!r}: give {near or 'some of ' + ', '.join(there)}"
