"""A tokenizer that needs no file: one id a byte, and ids for the beginning and the end of a text."""

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as Decoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

BEGIN, END = "<s>", "</s>"
SIZE = 2 + 256
"""Ids that it gives, those of `BEGIN` and `END` first."""


def byte_tokenizer(*, begins: bool = False, named: bool = True) -> PreTrainedTokenizerFast:
    """`begins`: every text starts with the beginning's id; without `named` there is neither of the two."""
    letters = sorted(ByteLevel.alphabet())
    vocabulary = {BEGIN: 0, END: 1} | {letter: 2 + place for place, letter in enumerate(letters)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = Decoder()
    if begins:
        tokenizer.post_processor = TemplateProcessing(
            single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, 0)]
        )
    names = {"bos_token": BEGIN, "eos_token": END} if named else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
