"""SmolLM2's tokenizer, out of the GGUF file, is the one that ``transformers`` has."""

from __future__ import annotations

import json
import pathlib

import pytest
from tokenizers import pre_tokenizers

from sleeplm.pretrained.gguf_tokenizer import gguf_tokenizer
from sleeplm.pretrained.hf_tokenizer import read_tokenizer, tokenizer_files

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ["README.md", "docs/method.md", "sleeplm/models/decode.py", "Makefile"]
TEXTS = [
    "",
    " ",
    "Hello world",
    "  two spaces before, three after   ",
    "\n\nlines\r\n\tand tabs\n",
    "In 1969, 12,345.67 and 3e-4; room 101",
    " 7 8 9",
    "x1y22z333",
    "don't we'll I'M they've",
    "naïve café, e\u0301 decomposed, Ångström, ﬁ",
    "日本語のテキスト、中文字符和한국어",
    "Привет, мир! שלום عالم ٣٤٥ १२३",
    "🎉👩‍👩‍👧‍👦🏳️‍🌈 and \u200bzero width",
    "\x00\x01\x7f\ufeff",
    "def f(x):\n    return {'a': [1, 2], \"b\": x**2}  # comment",
    "https://example.org/a?b=1&c=%20",
    "½ ² ⅷ ①",
    "a" * 300,
]
SPELT = ["<|im_end|>", "<|im_start|>user\nHi<|im_end|>", "x<|endoftext|>y", "<repo_name>", "<|im_"]
CONVERSATIONS = [
    [{"role": "user", "content": "What is 12 times 12?"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi\n"},
        {"role": "assistant", "content": " Hello! "},
        {"role": "user", "content": "日本"},
    ],
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ours(smollm2):
    return gguf_tokenizer(smollm2)


@pytest.fixture(scope="module")
def theirs(smollm2, needs):
    """Read from the same file, but for how texts are cut.

    ``transformers`` takes every GGUF file of the architecture for one that is cut as by GPT-2, and
    keeps digits together. The tokenizer.json that SmolLM2 is published with sets each apart.
    """
    needs("torch", "transformers")
    import transformers as hf

    found = hf.AutoTokenizer.from_pretrained(smollm2.path.parent, gguf_file=smollm2.path.name)
    found.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return found


@pytest.fixture(scope="module")
def lines():
    """Real text: prose with formulas, and programs."""
    return [line for page in PAGES for line in (ROOT / page).read_text().splitlines(keepends=True)]


def plain(theirs, texts):
    return theirs(texts, add_special_tokens=False, split_special_tokens=True).input_ids


def test_ids_are_those_of_the_reference(ours, theirs, lines):
    texts = TEXTS + SPELT + lines
    assert len(texts) > 500
    assert ours.encode_batch(texts) == plain(theirs, texts)


def test_texts_come_back(ours, lines):
    texts = [*TEXTS, *SPELT, *lines, "".join(lines)]
    assert ours.decode_batch(ours.encode_batch(texts)) == texts


def test_no_text_holds_a_special_token(ours):
    found = {token for tokens in ours.encode_batch(SPELT) for token in tokens}
    assert not found & set(ours.special.values())
    assert len(ours.special) == 17


def test_the_vocabulary_has_no_number_of_two_digits_and_none_behind_a_space(ours):
    """So digits were set apart when it was trained; the way of GPT-2 would show here."""
    digits = {token.lstrip("Ġ"): token for token in ours.bpe.get_vocab()}
    digits = {token for bare, token in digits.items() if bare.isascii() and bare.isdigit()}
    assert digits == set("0123456789")


def test_named_ids_are_those_of_the_file(ours, theirs):
    assert (ours.vocab_size, ours.pad, ours.bos, ours.eos) == (49152, 2, 1, 2)
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (2, 1, 2)


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("prompt", [True, False])
def test_conversations_are_those_of_the_reference(ours, theirs, messages, prompt):
    expected = theirs.apply_chat_template(
        messages, add_generation_prompt=prompt, tokenize=True, return_dict=False
    )
    assert ours.encode_chat(messages, add_generation_prompt=prompt) == expected


def test_a_question_in_turns_ends_a_conversation_of_the_reference(ours, theirs):
    turns = ours.in_turns(0).turns
    talk = [*CONVERSATIONS[1], {"role": "user", "content": "Why?"}]
    expected = theirs.apply_chat_template(
        talk, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    asked = [*turns.before, *ours.encode("Why?"), *turns.between]
    assert expected[-len(asked) :] == asked and expected[-len(asked) - 1] == ours.bos
    assert turns.end == (ours.special["<|im_end|>"],)


def test_a_folder_that_the_reference_writes_gives_the_same_tokenizer(ours, theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    found = read_tokenizer(tmp_path)
    assert found.encode_batch(TEXTS + SPELT) == ours.encode_batch(TEXTS + SPELT)
    assert (found.pad, found.bos, found.eos) == (ours.pad, ours.bos, ours.eos)
    assert found.encode_chat(CONVERSATIONS[1]) == ours.encode_chat(CONVERSATIONS[1])


def test_a_name_has_the_same_tokens_wherever_it_stands_if_asked_for(smollm2):
    plain = gguf_tokenizer(smollm2)
    alike = plain.alike_anywhere()
    name, text = "Ouagadougou", "Go to Ouagadougou now"
    assert plain.encode(name) != alike.encode(name)
    tokens, whole = alike.encode(name), alike.encode(text)
    assert any(whole[i : i + len(tokens)] == tokens for i in range(len(whole)))
    assert alike.decode(whole) == text and alike.alike_anywhere() == alike


def test_written_into_a_folder_it_is_read_as_the_same_again(ours, lines, tmp_path):
    for name, content in tokenizer_files(ours, 2048).items():
        (tmp_path / name).write_text(json.dumps(content))
    again = read_tokenizer(tmp_path)
    assert again.encode_batch(lines) == ours.encode_batch(lines)
    assert (again.pad, again.bos, again.eos) == (ours.pad, ours.bos, ours.eos)
    talk = [{"role": "user", "content": "Why?"}]
    assert again.encode_chat(talk) == ours.encode_chat(talk)
