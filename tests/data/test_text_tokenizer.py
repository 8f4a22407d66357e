"""Tokenizers, and the arrays that documents become."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleeplm.core.errors import ConfigError
from sleeplm.data.atlas import atlas
from sleeplm.data.biographies import biographies
from sleeplm.data.facts import Document, Fact, exam, questions, statements, subjects
from sleeplm.data.text import (
    BOS,
    EOS,
    PAD,
    SPECIAL_TOKENS,
    Tokenizer,
    byte_tokenizer,
    encode_cues,
    encode_documents,
    token_lists,
    train_bpe,
    train_tokenizer,
)

WORLD = atlas(0, 8, 80)
TRAINING = statements(WORLD, WORLD.pretrain) + questions(WORLD, WORLD.pretrain)
BPE = train_bpe([document.text for document in TRAINING], 1024)
TOKENIZERS = {"bpe": BPE, "bytes": byte_tokenizer()}


@pytest.fixture(params=TOKENIZERS, name="tokenizer")
def _tokenizer(request) -> Tokenizer:
    return TOKENIZERS[request.param]


@given(st.text())
def test_bpe_gives_every_text_back(text):
    assert BPE.decode(BPE.encode(text)) == text


@given(st.text())
def test_bytes_give_every_text_back(text):
    assert byte_tokenizer().decode(byte_tokenizer().encode(text)) == text


@given(st.text(), st.text(min_size=1))
def test_a_prompt_without_final_space_is_a_prefix_in_tokens(prompt, answer):
    prompt, answer = prompt.rstrip() or "x", answer.lstrip() or "y"
    tokens = BPE.encode(prompt)
    assert BPE.encode(f"{prompt} {answer}")[: len(tokens)] == tokens


@pytest.mark.parametrize("world", [WORLD, biographies(0, 8, 80)], ids=lambda w: w.name)
def test_every_exam_prompt_is_a_prefix_of_its_document(world, tokenizer):
    documents = exam(world, world.facts, per_fact=2) + questions(world, world.facts)
    prompts = tokenizer.encode_batch([d.prompt for d in documents])
    texts = tokenizer.encode_batch([d.text for d in documents])
    for prompt, text in zip(prompts, texts, strict=True):
        assert text[: len(prompt)] == prompt and len(text) > len(prompt)


def test_a_subject_has_the_same_tokens_at_the_start_and_in_the_middle(tokenizer):
    for subject in subjects(WORLD.facts)[:50]:
        tokens = tokenizer.encode(subject)
        middle = tokenizer.encode(f"the capital of {subject}")
        assert middle[-len(tokens) :] == tokens
        assert tokenizer.encode(f"{subject} has")[: len(tokens)] == tokens


@pytest.mark.parametrize("special", SPECIAL_TOKENS)
def test_no_text_encodes_to_a_special_token(special, tokenizer):
    tokens = tokenizer.encode(f"a {special} b{special}")
    assert min(tokens) >= len(SPECIAL_TOKENS)
    assert tokenizer.decode(tokens) == f"a {special} b{special}"


def test_decoding_leaves_special_tokens_out(tokenizer):
    assert tokenizer.decode([BOS, *tokenizer.encode("Vienna"), EOS, PAD]) == "Vienna"


def test_decoding_an_answer_alone_gives_no_leading_space(tokenizer):
    text, prompt = tokenizer.encode("the capital is Vienna"), tokenizer.encode("the capital is")
    assert tokenizer.decode(text[len(prompt) :]) == "Vienna"


def test_a_batch_equals_its_parts(tokenizer):
    texts = ["Austria", "", " two  spaces ", "Österreich"]
    rows = tokenizer.encode_batch(texts)
    assert rows == [tokenizer.encode(text) for text in texts]
    assert tokenizer.decode_batch(rows) == texts


def test_training_keeps_to_the_vocabulary_size():
    assert BPE.vocab_size == 1024
    assert max(max(row) for row in token_lists(BPE, TRAINING)) < 1024
    assert byte_tokenizer().vocab_size == 259


def test_pairs_that_are_rare_do_not_become_tokens():
    texts = ["lantern"] * 5 + ["harbour"] * 4
    assert len(train_bpe(texts, 1024, least=5).encode("lantern")) == 1
    assert len(train_bpe(texts, 1024, least=5).encode("harbour")) > 1
    assert len(train_bpe(texts, 1024).encode("harbour")) == 1


def told(subjects: list[str], times: int) -> list[Document]:
    facts = [Fact(subject, "colour", "crimson") for subject in subjects]
    return [
        Document(f"{fact.subject} is {fact.value}.", "", fact.value, fact)
        for fact in facts
        for _ in range(times)
    ]


def test_names_of_pretraining_are_not_tokens_of_their_own_however_often_it_repeats_them():
    """Else the names of the days, which are new, would be made of other pieces than those."""
    names = [a + b for a in ("Storm", "Iron", "Wind", "Star") for b in ("hawk", "fin", "gull")]
    documents = told(names, times=40)
    tokenizer = train_tokenizer(documents, 1024)
    pieces = {tokenizer.decode([token]) for text in names for token in tokenizer.encode(text)}
    assert pieces <= {"Storm", "Iron", "Wind", "Star", "hawk", "fin", "gull"}
    assert len(tokenizer.encode("crimson")) == 1
    naive = train_bpe([document.text for document in documents], 1024)
    assert all(len(naive.encode(name)) == 1 for name in names)


def test_texts_that_are_no_facts_count_as_they_are():
    plain = [Document("lanterns everywhere", "", "", Fact("lanterns", "text", ""))] * 5
    tokenizer = train_tokenizer(plain, 1024)
    assert len(tokenizer.encode("lanterns")) == 1


def test_training_is_deterministic():
    again = train_bpe([document.text for document in TRAINING], 1024)
    assert again.to_json() == BPE.to_json()


@pytest.mark.slow
def test_training_is_deterministic_across_processes():
    code = """
from sleeplm.data import atlas, facts, text
world = atlas.atlas(0, 8, 80)
documents = facts.statements(world, world.pretrain) + facts.questions(world, world.pretrain)
print(text.train_bpe([d.text for d in documents], 1024).to_json(), end="")
"""
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert other.stdout == BPE.to_json()


def test_json_brings_the_same_tokenizer_back(tokenizer):
    again = Tokenizer.from_json(tokenizer.to_json())
    texts = [document.text for document in TRAINING[:200]]
    assert again.encode_batch(texts) == tokenizer.encode_batch(texts)
    assert again.to_json() == tokenizer.to_json()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other", "bpe": {}}'])
def test_foreign_json_is_refused(text):
    with pytest.raises(ConfigError, match="Tokenizer.to_json"):
        Tokenizer.from_json(text)


def test_a_vocabulary_below_the_bytes_is_refused():
    with pytest.raises(ConfigError, match="at least 259"):
        train_bpe(["a"], 200)


def test_documents_of_the_atlas_are_short():
    day = [fact for day in WORLD.days for fact in day]
    documents = statements(WORLD, day) + questions(WORLD, day) + exam(WORLD, day, per_fact=2)
    lengths = [len(row) for row in token_lists(BPE, documents)]
    assert np.median(lengths) <= 16
    assert np.percentile(lengths, 99) <= 24


def test_encoded_documents_are_text_between_bos_and_eos(tokenizer):
    documents = TRAINING[:20]
    arrays = encode_documents(tokenizer, documents, 160)
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int32)}
    assert arrays["tokens"].shape == (20, 160)
    for document, tokens, length in zip(documents, arrays["tokens"], arrays["length"], strict=True):
        assert tokens[0] == BOS and tokens[length - 1] == EOS
        assert (tokens[length:] == PAD).all()
        assert tokenizer.decode(tokens[1 : length - 1]) == document.text


def test_the_answer_stands_between_answer_start_and_eos(tokenizer):
    documents = exam(WORLD, WORLD.days[0], per_fact=2)
    arrays = encode_documents(tokenizer, documents, 160)
    for i, document in enumerate(documents):
        start, length = arrays["answer_start"][i], arrays["length"][i]
        assert tokenizer.decode(arrays["tokens"][i, start : length - 1]) == document.answer
        assert tokenizer.decode(arrays["tokens"][i, :start]) == document.prompt


def test_a_statement_counts_from_its_first_token():
    arrays = encode_documents(BPE, statements(WORLD, WORLD.days[0]), 40)
    assert (arrays["answer_start"] == 1).all()


def test_no_documents_are_an_empty_array():
    assert encode_documents(BPE, [], 8)["tokens"].shape == (0, 8)


def test_a_too_small_max_len_names_the_longest_document():
    fact = Fact("Ann", "home", "Rome")
    documents = [Document("Ann", "", "Rome", fact), Document("Ann lives in Rome", "", "Rome", fact)]
    with pytest.raises(ConfigError, match="20 tokens: 'Ann lives in Rome'") as caught:
        encode_documents(byte_tokenizer(), documents, 6)
    assert caught.value.field == "max_len"


def test_a_prompt_that_ends_with_a_space_is_refused():
    document = Document("home: Rome", "home: ", "Rome", Fact("Ann", "home", "Rome"))
    with pytest.raises(ConfigError, match="no space at its end"):
        encode_documents(BPE, [document], 30)


def test_cues_are_bos_and_the_subject(tokenizer):
    names = subjects(WORLD.days[0])
    tokens, lengths = encode_cues(tokenizer, names, 24)
    assert tokens.dtype == lengths.dtype == np.int32
    for row, length, name in zip(tokens, lengths, names, strict=True):
        assert row[0] == BOS and (row[length:] == PAD).all()
        assert tokenizer.decode(row[:length]) == name


def test_a_cue_is_how_documents_that_start_with_the_subject_start(tokenizer):
    document = next(d for d in TRAINING if d.text.startswith(d.fact.subject))
    tokens, lengths = encode_cues(tokenizer, [document.fact.subject], 24)
    row = token_lists(tokenizer, [document])[0]
    assert row[: lengths[0]] == list(tokens[0, : lengths[0]])


def test_too_long_a_cue_is_named():
    with pytest.raises(ConfigError, match="longest cue has 9 tokens: 'Austria'"):
        encode_cues(byte_tokenizer(), ["Chad", "Austria"], 4)
