"""Makes the built-in character tokenizer, and tells whether two tokenizers give the same ids."""

import json

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")

# Short texts in which real tokenizers differ when their merges, normalisers or pre-tokenizers do.
_PROBES = (
    "The quick brown fox, 12345 + 67.89 = x?",
    "  two  spaces\n\nand\tlines\r\n",
    "naïve café “quotes” … ﬁ Å é",
    "def f(x):\n    return {'a': [1, 2]}  # 你好, мир, مرحبا, 🙂",
    "347+285=7+5+0=12;4+8+1=13;3+2+1=6;632",
)


def build_character_tokenizer(characters: str, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per character, after ``<pad>`` 0, ``<bos>`` 1 and ``<eos>`` 2.

    Encoding adds no special tokens; the chat template writes them out. A character it does not know is an error of
    the caller and is dropped.
    """
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *characters])}
    if len(vocabulary) != len(SPECIAL_TOKENS) + len(characters):
        raise ValueError(f"characters must be different from each other: {characters!r}")
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    pad, bos, eos = SPECIAL_TOKENS
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad, bos_token=bos, eos_token=eos)
    tokenizer.chat_template = chat_template
    return tokenizer


def find_tokenizer_difference(
    first: str, second: str, first_revision: str | None = None, second_revision: str | None = None
) -> str | None:
    """Return None when two tokenizers give every text the same ids, else a phrase that names the first difference.

    Compares vocabularies, special tokens and the encodings of probe texts.
    """
    a = AutoTokenizer.from_pretrained(first, revision=first_revision)
    b = AutoTokenizer.from_pretrained(second, revision=second_revision)
    vocabulary_a, vocabulary_b = a.get_vocab(), b.get_vocab()
    if vocabulary_a != vocabulary_b:
        if len(vocabulary_a) != len(vocabulary_b):
            return f"vocabularies of {len(vocabulary_a)} and {len(vocabulary_b)} tokens"
        token = min(t for t in vocabulary_a if vocabulary_b.get(t) != vocabulary_a[t])
        return f"the token {token!r} has id {vocabulary_a[token]} and {vocabulary_b.get(token)}"
    for name in ("bos_token_id", "eos_token_id"):
        if getattr(a, name) != getattr(b, name):
            return f"{name} {getattr(a, name)} and {getattr(b, name)}"
    for probe in _PROBES:
        ids_a, ids_b = a(probe)["input_ids"], b(probe)["input_ids"]
        if ids_a != ids_b:
            return f"the text {json.dumps(probe, ensure_ascii=False)} becomes {ids_a[:8]}… and {ids_b[:8]}…"
    return None
