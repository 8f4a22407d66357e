"""What the metadata of a GGUF file say of its tokenizer, and how the rest is refused."""

from __future__ import annotations

import json
import pathlib

import pytest
import tokenizers
from tokenizers import Regex, pre_tokenizers

from sleeplm.core.errors import ConfigError
from sleeplm.pretrained.gguf_file import GgufFile
from sleeplm.pretrained.gguf_tokenizer import CONTROL, PRE, USER_DEFINED, gguf_tokenizer
from sleeplm.pretrained.hf_tokenizer import read_tokenizer, tokenizer_files

TEXTS = [
    "Don't we'll I'M  they've\n\n  x\t1234567 12,345.6 (a)--b!? ½٣ \r\n",
    "naïve e\u0301 日本語123 🎉 def f(x):\n    return x**2  # y",
]


def file_of(**changes) -> GgufFile:
    """A file with one merge, two special tokens and an added one; ``...`` leaves a key out."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<end>", "<pad>", *alphabet, "th", "<tool>"]
    types = [CONTROL, CONTROL, *[1] * len(alphabet), 1, USER_DEFINED]
    given = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": types,
        "merges": ["t h"],
        "eos_token_id": 0,
        "add_bos_token": False,
    } | changes
    metadata = {f"tokenizer.ggml.{k}": v for k, v in given.items() if v is not ...}
    return GgufFile(pathlib.Path("none"), metadata, {})


def test_ids_and_kinds_of_tokens_are_read():
    found = gguf_tokenizer(file_of(padding_token_id=1, eot_token_id=1))
    assert (found.bos, found.eos, found.pad, found.stops) == (0, 0, 1, (0, 1))
    assert dict(found.special) == {"<end>": 0, "<pad>": 1}
    assert found.encode("<tool>") == [found.vocab_size - 1]
    assert len(found.encode("<end>")) == 5 and len(found.encode("th")) == 1
    assert found.chat_template is None


def test_without_kinds_every_token_is_text():
    assert not gguf_tokenizer(file_of(token_type=...)).special


@pytest.mark.parametrize(
    ("changes", "begun"),
    [
        ({"pre": "llama-bpe", "add_bos_token": ...}, True),
        ({"pre": "llama-bpe"}, False),
        ({"add_bos_token": ...}, False),
        ({"add_bos_token": True}, True),
        ({"add_bos_token": True, "bos_token_id": ...}, False),
    ],
    ids=["Llama 3", "Llama 3, told not to", "others", "others, told to", "without such a token"],
)
def test_a_text_begins_where_the_file_says_so_for_others_and_never_for_us(changes, begun, tmp_path):
    found = gguf_tokenizer(file_of(**{"bos_token_id": 1} | changes))
    for name, content in tokenizer_files(found, 64).items():
        (tmp_path / name).write_text(json.dumps(content))
    others = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    plain = gguf_tokenizer(file_of(pre=changes.get("pre", "smollm")))  # begins nothing
    for text in [*TEXTS, ""]:
        ids = plain.encode(text)
        assert found.encode(text) == read_tokenizer(tmp_path).encode(text) == ids
        assert others.encode(text).ids == [1] * begun + ids
        assert others.encode(text, "th").ids == [1] * begun + ids + plain.encode("th")


@pytest.mark.parametrize("pre", PRE)
@pytest.mark.parametrize("text", TEXTS)
def test_texts_come_back_however_they_are_cut(pre, text):
    found = gguf_tokenizer(file_of(pre=pre))
    composed = text.replace("e\u0301", "é") if pre == "qwen2" else text
    assert found.decode(found.encode(text)) == composed


def words(pre: str, text: str) -> list[str]:
    return [word for word, _ in PRE[pre]().pre_tokenize_str(text)]


@pytest.mark.parametrize("text", TEXTS)
def test_qwen_and_llama_texts_are_cut_as_the_reference_cuts_them(text, needs):
    needs("transformers")
    from transformers.convert_slow_tokenizer import TikTokenConverter
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    patterns = {
        "qwen2": PRETOKENIZE_REGEX,
        "llama-bpe": TikTokenConverter(vocab_file=None).pattern,
    }
    cuts = []
    for pre, pattern in patterns.items():
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        expected = pre_tokenizers.Sequence([split, last]).pre_tokenize_str(text)
        cuts.append(words(pre, text))
        assert cuts[-1] == [word for word, _ in expected]
    assert cuts[0] != cuts[1]  # numbers: one digit, or three


def test_smollm_sets_every_digit_apart():
    assert words("smollm", "in 1969, x12") == ["in", "Ġ", "1", "9", "6", "9", ",", "Ġx", "1", "2"]
    assert words("gpt-2", "in 1969") == ["in", "Ġ1969"]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model": "llama"}, "model"),
        ({"model": ...}, "model"),
        ({"pre": "tekken"}, "pre"),
        ({"pre": ...}, "pre"),
        ({"add_space_prefix": True}, "add_space_prefix"),
        ({"tokens": ...}, "tokens"),
        ({"merges": ...}, "merges"),
        ({"merges": ["th"]}, "merges"),
        ({"merges": ["t none"]}, "merges"),
        ({"eos_token_id": ...}, "eos_token_id"),
        ({"eos_token_id": 99999}, "eos_token_id"),
        ({"bos_token_id": -1}, "bos_token_id"),
        ({"padding_token_id": "<pad>"}, "padding_token_id"),
        ({"add_bos_token": 1}, "add_bos_token"),
    ],
)
def test_what_is_not_supported_is_one_line_that_names_the_key(changes, key):
    with pytest.raises(ConfigError) as error:
        gguf_tokenizer(file_of(**changes))
    assert error.value.field == f"GGUF: tokenizer.ggml.{key}"
    assert "\n" not in str(error.value)
