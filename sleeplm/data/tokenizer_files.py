"""Our tokenizers in the files of Hugging Face: the same ids from ``tokenizers`` and others.

``tokenizer.json`` alone gives every text the ids that :meth:`~sleeplm.data.text.Tokenizer.encode`
gives it: the three special tokens stand in front of the vocabulary, a normalizer puts the one
space before the text. They are not among its "added tokens", which would be looked for in texts:
here no text encodes to them. ``tokenizer_config.json`` names them for ``transformers``.
"""

from __future__ import annotations

import json
from typing import Any

from sleeplm.core.errors import ConfigError
from sleeplm.data.text import BOS, SPECIAL_TOKENS, Tokenizer

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


def hf_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of ``tokenizer.json``; with special tokens asked for, ``<bos>`` stands in front.

    Raises:
      ConfigError: a token is spelt like a special one.
    """
    bpe = json.loads(tokenizer.bpe.to_str())
    vocab, special = bpe["model"]["vocab"], {name: i for i, name in enumerate(SPECIAL_TOKENS)}
    if taken := sorted(special.keys() & vocab.keys()):
        raise ConfigError("tokenizer", taken[0], "is a token of its own and a special one")
    shifted = {token: i + len(special) for token, i in vocab.items()}
    bos = SPECIAL_TOKENS[BOS]
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    text, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    # After the bytes are put together again, the one space that every text began with goes.
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {
        **bpe,
        "normalizer": {"type": "Prepend", "prepend": " "},  # not to empty texts
        "model": {**bpe["model"], "vocab": special | shifted},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, text],
            "pair": [first, text, second],
            "special_tokens": {bos: {"id": bos, "ids": [BOS], "tokens": [bos]}},
        },
        "decoder": {"type": "Sequence", "decoders": [bpe["decoder"], strip]},
    }


def hf_tokenizer_config(max_len: int) -> dict[str, Any]:
    """The content of ``tokenizer_config.json``.

    ``split_special_tokens`` says that ``"<eos>"`` in a text is five letters, as it is for us.
    """
    pad, bos, eos = SPECIAL_TOKENS
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": pad,
        "bos_token": bos,
        "eos_token": eos,
        "model_max_length": max_len,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
    }
