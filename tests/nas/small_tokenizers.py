"""Small tokenizers of the kinds that models come with, trained in a moment on this project's own words."""

from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BEGIN, END = "<s>", "</s>"
HARD = (
    "It's 3.14159 (or 12345678), isn't it?\n\n  def f(x):\n\treturn x ** 2  \n\n\nNaïve façade — 東京 αβγ "
    "ÄÖÜ 🙂🙂 don't  DON'T we'LL\r\nend   "
)
"""Contractions, numbers, spaces in rows, and letters that few tokenizers have."""
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(words: pre_tokenizers.PreTokenizer | None, size: int) -> Tokenizer:
    """A byte-level tokenizer; `words` splits text before, or GPT-2's way of it does."""
    tokenizer = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None or _is_digits(words))
    tokenizer.pre_tokenizer = last if words is None else pre_tokenizers.Sequence([words, last])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[BEGIN, END], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def _is_digits(words: Any) -> bool:
    return isinstance(words, pre_tokenizers.Digits)


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def _sentence_piece(size: int) -> Tokenizer:
    """As LLaMA 2's: spaces are letters, letters that it does not know are bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", BEGIN, END, *(f"<0x{byte:02X}>" for byte in range(256))]
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Metaspace()  # or whole lines would be learnt as tokens
    words.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=size - len(special)))
    learnt = [token for token, _ in sorted(words.get_vocab().items(), key=lambda item: item[1])]
    vocabulary = {token: index for index, token in enumerate([*special, *learnt])}
    # As they are read out of SentencePiece's models: every pair that makes a token, in the tokens' order.
    merges = [
        (token[:at], token[at:])
        for token in learnt
        for at in range(1, len(token))
        if token[:at] in vocabulary and token[at:] in vocabulary
    ]
    tokenizer.model = models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def small_tokenizer(kind: str, size: int = 600, *, begins: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `size` ids; with `begins`, texts start with the first token."""
    made = {
        "gpt-2": lambda: _byte_level(None, size),
        "smollm": lambda: _byte_level(pre_tokenizers.Digits(individual_digits=True), size),
        "llama-bpe": lambda: _byte_level(_split(LLAMA3), size),
        "qwen2": lambda: _byte_level(_split(LLAMA3.replace("{1,3}", "")), size),
        "tekken": lambda: _byte_level(_split(TEKKEN), size),
        "llama": lambda: _sentence_piece(size),
    }[kind]()
    if begins:
        made.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B",
            special_tokens=[(BEGIN, made.token_to_id(BEGIN))],
        )  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=BEGIN, eos_token=END)
