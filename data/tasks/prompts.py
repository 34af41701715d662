"""From a question to its item: the prompt of each task in lm-evaluation-harness (0.4.13).

Each function takes a question in the fields of the Hub's data set and raises KeyError, ValueError, TypeError,
AttributeError or IndexError where it is none.
"""

import re
from collections.abc import Sequence

from data.tasks.item import Item, Row, choose, solved


def arc(row: Row) -> Item:
    """Three to five choices, whose labels may be letters or digits."""
    choices = row["choices"]
    gold = list(choices["label"]).index(row["answerKey"])
    return choose(f"Question: {row['question']}\nAnswer:", choices["text"], gold, normalised=True)


def openbookqa(row: Row) -> Item:
    """The choices continue the sentence that the question begins."""
    choices = row["choices"]
    gold = list(choices["label"]).index(row["answerKey"].lstrip())
    return choose(row["question_stem"], choices["text"], gold, normalised=True)


def boolq(row: Row) -> Item:
    """No or yes to a question on a passage; `label` is 0 or 1."""
    context = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    return choose(context, ("no", "yes"), _whole(row["label"]), normalised=False)


def copa(row: Row) -> Item:
    """Cause or effect of a premise, which loses its full stop. Two spaces stand before a choice."""
    link = {"cause": "because", "effect": "therefore"}[row["question"]]
    choices = [f" {text[0].lower()}{text[1:]}" for text in (row["choice1"], row["choice2"])]
    return choose(f"{row['premise'].strip()[:-1]} {link}", choices, _whole(row["label"]), normalised=False)


def hellaswag(row: Row) -> Item:
    """Four endings of a story, in the fields that `hellaswag_fields` makes."""
    return choose(row["query"], row["choices"], _whole(row["label"]), normalised=True)


def hellaswag_fields(row: Row) -> Row:
    """The released fields cleaned: activity and context joined, the marks of WikiHow removed."""
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {
        "query": _without_marks(context),
        "choices": [_without_marks(ending) for ending in row["endings"]],
        "label": _whole(row["label"]),
    }


def piqa(row: Row) -> Item:
    """Two solutions for a goal."""
    context = f"Question: {row['goal']}\nAnswer:"
    return choose(context, (row["sol1"], row["sol2"]), _whole(row["label"]), normalised=True)


def winogrande(row: Row) -> Item:
    """Partial scoring: the options stand in the context, and what follows the gap is scored after each."""
    before, gap, behind = row["sentence"].partition("_")
    if not gap:
        raise ValueError("the sentence has no gap _")
    contexts = (before + row["option1"], before + row["option2"])
    return Item(contexts, (f" {behind.strip()}",) * 2, {"1": 0, "2": 1}[row["answer"]])


def mmlu(row: Row) -> Item:
    """The question with its four choices named A to D, of which the letter is scored."""
    first, second, third, fourth = row["choices"]
    context = f"{row['question'].strip()}\nA. {first}\nB. {second}\nC. {third}\nD. {fourth}\nAnswer:"
    return choose(context, "ABCD", _whole(row["answer"]), normalised=False)


def mmlu_preamble(subject: str, examples: Sequence[Item]) -> str:
    """What stands before a question of `subject`, such as `high_school_physics`: a sentence and the shots."""
    topic = subject.replace("_", " ")
    sentence = f"The following are multiple choice questions (with answers) about {topic}.\n\n"
    return sentence + "".join(map(solved, examples))


def _without_marks(text: str) -> str:
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _whole(label: object) -> int:
    """A label as a number: a truth value, or the word for one, is none."""
    if isinstance(label, bool):
        raise TypeError(f"the label {label} is no number")
    return int(str(label))
