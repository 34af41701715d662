"""KNOWN: text data sets by the names that people type, one entry each; find, and what to pass for lost ones.

Counts are those of the released files. WikiText-2's were made on the files themselves, but for the bytes of
the raw train split and all of WikiText-103, which follow from the sizes that its Hub card gives and the blank
lines that the forms share; words of WikiText-103's train split and all of the Penn Treebank are as published.
Licences are what the publishers say.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from data.errors import InputError

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(:[\w.-]+)?")
_SAME = {"train": "train", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class Counts:
    """What a split was released with; what is 0 or empty is not known and not checked.

    `rows` are its lines, `words` their words with one `<eos>` a row. `file_bytes` are those of the released
    file, `row_bytes` those of the Hub's rows, where a blank line is an empty row. `digest` is
    `data.released.digest_of` its rows, `unordered` that of its rows in alphabetical order, `first` the first
    row that is not blank.
    """

    rows: int
    words: int
    file_bytes: int = 0
    row_bytes: int = 0
    digest: str = ""
    unordered: str = ""
    first: str = ""


@dataclass(frozen=True)
class Known:
    """A data set: `hub` is `owner/name[:config]`, empty where the Hub has none that loads.

    `names` are other names that are taken for it, without regard to case; `splits` says by ours what the Hub
    calls a split, `files` which of its files a split is, where that is not left to the Hub. Of each split the
    first `characters` are streamed, 0 takes it whole. `stem` and `ending` are what the released files are
    called, `wiki.train.raw`; `instead` is what a person does who has no such files.
    """

    title: str
    hub: str
    licence: str
    names: tuple[str, ...]
    column: str = "text"
    splits: Mapping[str, str] = field(default_factory=lambda: dict(_SAME))
    files: Mapping[str, str] | None = None
    characters: int = 0
    counts: Mapping[str, Counts] = field(default_factory=dict)
    stem: str = ""
    ending: str = ""
    instead: str = ""

    @property
    def released_as(self) -> str:
        """The names of the released files, in words."""
        names = [f"{self.stem}.{split}.{self.ending}" for split in ("train", "valid", "test")]
        return f"{names[0]}, {names[1]} and {names[2]}" if self.stem else "its files"


_WIKITEXT = "CC BY-SA 3.0 and GFDL"
_RAW_VALID = Counts(3760, 217_646, 1_146_846, 1_144_248, "9cb89a92b7407b04", "4d25c3314941feea")
_RAW_TEST = Counts(4358, 245_569, 1_290_590, 1_287_656, "f7b0dd60bdbddf22", "8ee27b2820fa9679")
_VALKYRIA = "= Valkyria Chronicles III ="

KNOWN: tuple[Known, ...] = (
    Known(
        "WikiText-2, raw", "Salesforce/wikitext:wikitext-2-raw-v1", _WIKITEXT,
        (
            "wikitext2", "wikitext-2", "wikitext_2", "wikitext", "wikitext-2-raw", "wikitext2-raw",
            "wikitext-2-raw-v1", "Salesforce/wikitext",
        ),
        counts={
            "train": Counts(36_718, 2_088_628, 10_940_747, 10_914_845, first=_VALKYRIA),
            "validation": _RAW_VALID, "test": _RAW_TEST,
        },
        stem="wiki", ending="raw",
    ),
    Known(
        "WikiText-2, tokenised", "Salesforce/wikitext:wikitext-2-v1", _WIKITEXT, ("wikitext-2-v1",),
        counts={
            "train": Counts(
                36_718, 2_088_628, 10_797_148, 10_771_246, unordered="a099527d7563ddf1", first=_VALKYRIA
            ),
            "validation": Counts(
                3760, 217_646, 1_121_681, 1_119_083, "0f4c2e4bad0113c4", "2a23b4001c00c517"
            ),
            "test": Counts(4358, 245_569, 1_256_449, 1_253_515, "8478aba25f5dc4ca", "ef995194d149bc99"),
        },
        stem="wiki", ending="tokens",
    ),
    Known(
        "WikiText-103, raw", "Salesforce/wikitext:wikitext-103-raw-v1", _WIKITEXT,
        ("wikitext103", "wikitext-103", "wikitext_103", "wikitext-103-raw", "wikitext-103-raw-v1"),
        characters=64_000_000,
        counts={
            "train": Counts(1_801_350, 103_227_021, 0, 539_295_549, first=_VALKYRIA),
            "validation": _RAW_VALID, "test": _RAW_TEST,
        },
        stem="wiki", ending="raw",
    ),
    Known(
        "WikiText-103, tokenised", "Salesforce/wikitext:wikitext-103-v1", _WIKITEXT, ("wikitext-103-v1",),
        characters=64_000_000,
        counts={
            "train": Counts(1_801_350, 103_227_021, 0, 537_936_515, first=_VALKYRIA),
            "validation": Counts(3760, 217_646, 1_142_309, 1_139_711),
            "test": Counts(4358, 245_569, 1_281_077, 1_278_143),
        },
        stem="wiki", ending="tokens",
    ),
    Known(
        "Penn Treebank", "", "LDC licence: research use, not to be redistributed",
        (
            "ptb", "penn", "penn_treebank", "penn-treebank", "penntreebank", "ptb_text_only",
            "ptb-text-only/ptb_text_only", "ptb_text_only:penn_treebank",
            "ptb-text-only/ptb_text_only:penn_treebank",
        ),
        counts={
            "train": Counts(42_068, 929_589), "validation": Counts(3370, 73_760),
            "test": Counts(3761, 82_430),
        },
        stem="ptb", ending="txt",
        instead="the Hub's copy needs a script, which datasets 4 refuses, and no other may be passed on",
    ),
    Known(
        "C4, English", "allenai/c4:en", "ODC-BY 1.0 and Common Crawl's terms of use",
        ("c4", "c4:en", "allenai/c4", "c4:allenai--c4", "allenai/c4:allenai--c4"),
        files={
            "train": "en/c4-train.00000-of-01024.json.gz",
            "validation": "en/c4-validation.00000-of-00008.json.gz",
        },
        characters=16_000_000,
    ),
    Known(
        "UltraChat 200k", "HuggingFaceH4/ultrachat_200k", "MIT", ("ultrachat", "ultrachat_200k"),
        column="chat", splits={"train": "train_sft", "test": "test_sft"}, characters=64_000_000,
    ),
    Known(
        "Alpaca, cleaned", "yahma/alpaca-cleaned", "CC BY 4.0", ("alpaca-cleaned", "alpaca_cleaned"),
        column="chat",
    ),
    Known("Alpaca", "tatsu-lab/alpaca", "CC BY-NC 4.0", ("alpaca",), column="chat"),
)  # fmt: skip

_NO_SCRIPTS = "needs a script, which datasets 4 refuses"
_LOST = {"bookcorpus": f"BookCorpus {_NO_SCRIPTS}", "bookcorpus/bookcorpus": f"BookCorpus {_NO_SCRIPTS}"}
_OWNERS = {"wikitext": "Salesforce/wikitext", "c4": "allenai/c4"}


def find(name: str) -> Known | None:
    """The data set that a person calls `name`, with or without its config; None for one that is not known
    here. Raises InputError, which says what to pass, for one that cannot be had by a name any more."""
    wanted = name.lower()
    dataset, _, config = wanted.partition(":")
    if dataset in _LOST:
        raise InputError(f"{_LOST[dataset]}: pass c4, wikitext2, or a local file or folder of text")
    wanted = f"{_OWNERS[dataset]}:{config}".lower() if config and dataset in _OWNERS else wanted
    for known in KNOWN:
        if wanted in (known.hub.lower(), *(each.lower() for each in known.names)):
            return known
    return None


def full_id(name: str) -> str:
    """A Hub id with the owner that today's Hub wants: `c4:realnewslike` is `allenai/c4:realnewslike`."""
    dataset, _, config = name.partition(":")
    return f"{_OWNERS.get(dataset, dataset)}:{config}" if config else name
