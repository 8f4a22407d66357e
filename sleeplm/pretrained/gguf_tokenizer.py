"""From the metadata of a GGUF file to an :class:`ImportedTokenizer`.

A file says the tokens and the merges, and only by a name how texts are cut before they are merged.
What the names stand for is taken from the ``tokenizer.json`` that their models are published with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError
from sleeplm.pretrained.gguf_file import GgufFile
from sleeplm.pretrained.tokenizer import ImportedTokenizer

PREFIX = "tokenizer.ggml."
#: Keys that must have one of these values, if they are there.
FIXED: Mapping[str, tuple] = {
    "model": ("gpt2",),
    "add_space_prefix": (False,),
    "remove_extra_whitespaces": (False,),
}
CONTROL, USER_DEFINED = 3, 4  # types of a token
#: How texts are cut by models that are given ``bos`` first, unless their file says otherwise.
BEGUN = ("llama-bpe",)
STOPS = ("eos", "eot", "eom")
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _smollm() -> Any:
    # One digit, one token; then the words of GPT-2.
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _gpt2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _words(digits: str) -> Any:
    pattern = Regex(_WORDS.format(digits=digits))
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, "isolated"), bytes_only])


PRE: Mapping[str, Callable[[], Any]] = {
    "smollm": _smollm,
    "gpt-2": _gpt2,
    "qwen2": lambda: _words(r"\p{N}"),  # Qwen 2, 2.5 and 3
    "llama-bpe": lambda: _words(r"\p{N}{1,3}"),  # Llama 3
}


def gguf_tokenizer(file: GgufFile) -> ImportedTokenizer:
    """The tokenizer of a GGUF file.

    A file without a padding or a beginning token has its ``eos`` for them. Where special tokens are
    asked for, as others do of an exported one, ``bos`` stands in front if the file wants it there.

    Args:
      file: of :func:`~sleeplm.pretrained.gguf_file.read_gguf`.

    Raises:
      ConfigError: the file asks for something that is not supported, or lacks something; it names
        the key.
    """
    given = {k.removeprefix(PREFIX): v for k, v in file.metadata.items() if k.startswith(PREFIX)}
    for key, allowed in FIXED.items():
        remedy = f"only {allowed[0]} is supported"
        value = given.get(key, None if key == "model" else allowed[0])
        checks.require(value in allowed, f"GGUF: {PREFIX}{key}", value, remedy)
    pre = given.get("pre")
    checks.one_of(f"GGUF: {PREFIX}pre", pre, PRE)
    for key in ("tokens", "merges"):
        there = isinstance(given.get(key), list) and bool(given[key])
        checks.require(there, f"GGUF: {PREFIX}{key}", None, "must be a list of texts")
    tokens = given["tokens"]
    for name in ("eos_token_id", "bos_token_id", "padding_token_id"):
        index = given.get(name, given.get("eos_token_id"))
        checks.integer(f"GGUF: {PREFIX}{name}", index)
        checks.in_range(f"GGUF: {PREFIX}{name}", index, 0, len(tokens) - 1)
    begun = given.get("add_bos_token", pre in BEGUN)
    checks.require(isinstance(begun, bool), f"GGUF: {PREFIX}add_bos_token", begun, "must be a bool")
    bpe = _build(tokens, given["merges"], str(pre))
    types = given.get("token_type") or [1] * len(tokens)
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        chosen = [t for t, k in zip(tokens, types, strict=False) if k == kind]
        bpe.add_tokens([AddedToken(t, special=special, normalized=False) for t in chosen])
    if begun and "bos_token_id" in given:
        bpe.post_processor = _begin(tokens[given["bos_token_id"]], given["bos_token_id"])
    eos = given["eos_token_id"]
    return ImportedTokenizer(
        bpe,
        pad=given.get("padding_token_id", eos),
        bos=given.get("bos_token_id", eos),
        eos=eos,
        stops=tuple(given[f"{n}_token_id"] for n in STOPS if f"{n}_token_id" in given),
        chat_template=file.metadata.get("tokenizer.chat_template"),
    )


def _build(tokens: list[str], merges: list[str], pre: str) -> tokenizers.Tokenizer:
    vocab = {token: index for index, token in enumerate(tokens)}
    try:
        pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
        model = models.BPE(vocab=vocab, merges=pairs, ignore_merges=pre == "llama-bpe")
    except Exception as error:  # the tokenizers library raises bare Exception
        remedy = f"must be pairs of tokens ({error})"
        raise ConfigError(f"GGUF: {PREFIX}merges", len(merges), remedy) from None
    bpe = tokenizers.Tokenizer(model)
    bpe.pre_tokenizer = PRE[pre]()
    bpe.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        bpe.normalizer = normalizers.NFC()
    return bpe


def _begin(bos: str, index: int) -> processors.TemplateProcessing:
    """Puts ``bos`` in front of a text, or of the first of two."""
    return processors.TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", "$B:1"], special_tokens=[(bos, index)]
    )
