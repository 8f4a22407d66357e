"""Our tokenizers in the files of Hugging Face give every text the same tokens."""

from __future__ import annotations

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from sleeplm.core.errors import ConfigError
from sleeplm.data.text import BOS, EOS, Tokenizer, byte_tokenizer, train_bpe
from sleeplm.data.tokenizer_files import hf_tokenizer, hf_tokenizer_config

TEXTS = [
    "the river of Foo is long",
    "What is the capital of Bar? It's Baz.",
    "don't  stop",
    "ab" * 9,
]
OURS = {"trained": train_bpe(TEXTS * 5, 330), "bytes": byte_tokenizer()}
AWKWARD = [
    "",
    " ",
    "  a",
    "a ",
    "\n",
    "<eos>",
    "x <pad><bos>y",
    "don't 's",
    "日本 \u0301 😀",
    "\x00",
]


def theirs(ours: Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(hf_tokenizer(ours)))


THEIRS = {name: theirs(ours) for name, ours in OURS.items()}


@pytest.mark.parametrize("name", OURS)
@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(codec="utf-8")) | st.sampled_from(TEXTS + AWKWARD))
def test_every_text_has_the_same_tokens_and_comes_back(name, text):
    tokens = THEIRS[name].encode(text, add_special_tokens=False).ids
    assert tokens == OURS[name].encode(text)
    assert THEIRS[name].decode(tokens) == text


def test_special_tokens_stand_in_front_of_the_vocabulary_and_begin_a_text_where_asked():
    file, ours = THEIRS["trained"], OURS["trained"]
    assert [file.token_to_id(name) for name in ("<pad>", "<bos>", "<eos>")] == [0, 1, 2]
    assert file.get_vocab_size() == ours.vocab_size
    assert file.encode("Foo").ids == [BOS, *ours.encode("Foo")]


def test_a_token_that_is_spelt_like_a_special_one_is_refused():
    vocab = json.loads(byte_tokenizer().bpe.to_str())
    vocab["model"]["vocab"]["<eos>"] = 256
    with pytest.raises(ConfigError, match="<eos>"):
        hf_tokenizer(Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(vocab))))


@pytest.mark.slow
def test_transformers_reads_the_same_tokens_from_the_two_files(tmp_path):
    import transformers

    ours = OURS["trained"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(hf_tokenizer(ours)))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(hf_tokenizer_config(64)))
    file = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (file.pad_token_id, file.bos_token_id, file.eos_token_id) == (0, BOS, EOS)
    for text in TEXTS + AWKWARD:
        assert file(text, add_special_tokens=False).input_ids == ours.encode(text)
        assert file.decode([BOS, *ours.encode(text), EOS], skip_special_tokens=True) == text
