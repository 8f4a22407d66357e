"""Tokenizers, and the arrays that documents and cues become.

Every text is encoded as if one space stood before it, so that a word has the same tokens at the
start of a document and in its middle; decoding takes that space away again.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from sleeplm.core.errors import ConfigError
from sleeplm.core.types import PLAIN, Turns
from sleeplm.data.facts import Document

PAD, BOS, EOS = 0, 1, 2
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
_OFFSET = len(SPECIAL_TOKENS)
_FORMAT = "sleeplm-tokenizer-1"
#: A token inside of names is part of at least so many different ones.
LEAST_NAMES = 3
#: Every name counts once for so many documents: a sixth to a ninth of how often it is written.
DOCUMENTS_A_NAME = 1500


class SpecialTokens:
    """Ids of the special tokens of tokenizers that are made here."""

    @property
    def bos(self) -> int:
        """The token that begins a text."""
        return BOS

    @property
    def eos(self) -> int:
        """The token that ends a text, and what has to be answered."""
        return EOS

    @property
    def stops(self) -> tuple[int, ...]:
        """Every token at which generation ends."""
        return (EOS,)


@dataclasses.dataclass(frozen=True)
class Tokenizer(SpecialTokens):
    """Byte-level BPE with ``<pad>`` = 0, ``<bos>`` = 1, ``<eos>`` = 2.

    ``decode(encode(text)) == text`` for every string. The special tokens live outside of the
    merge table: no text, not even ``"<eos>"``, encodes to them.
    """

    bpe: tokenizers.Tokenizer
    turns: Turns = PLAIN

    @property
    def vocab_size(self) -> int:
        return self.bpe.get_vocab_size() + _OFFSET

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, without special tokens."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        encoded = self.bpe.encode_batch([" " + text if text else "" for text in texts])
        return [[token + _OFFSET for token in item.ids] for item in encoded]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of ``tokens``; special tokens are left out, as is one leading space."""
        text = self.bpe.decode([int(token) - _OFFSET for token in tokens if token >= _OFFSET])
        return text.removeprefix(" ")

    def decode_batch(self, rows: Iterable[Iterable[int]]) -> list[str]:
        return [self.decode(row) for row in rows]

    def to_json(self) -> str:
        return json.dumps({"format": _FORMAT, "bpe": json.loads(self.bpe.to_str())})

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """The tokenizer that ``to_json`` wrote.

        Raises:
          ConfigError: when ``text`` is something else.
        """
        try:
            content = json.loads(text)
            if content["format"] != _FORMAT:
                raise ValueError(f"unknown format {content['format']!r}")
            return cls(tokenizers.Tokenizer.from_str(json.dumps(content["bpe"])))
        except Exception as error:  # the tokenizers library raises bare Exception
            remedy = f"give what Tokenizer.to_json wrote ({error})"
            raise ConfigError("tokenizer", text[:40], remedy) from error


def train_tokenizer(documents: Sequence[Document], vocab_size: int) -> Tokenizer:
    """A tokenizer of documents about facts that will read of other subjects later.

    Names that pretraining repeats would become tokens of their own, and those of the days, which
    it has not seen, rare pieces that nothing was ever stored under. Therefore a subject does not
    count as often as it is written, and what is merged in names occurs in several of them.

    Args:
      vocab_size: see :func:`train_bpe`, which says what is raised, too.
    """
    facts = [document for document in documents if document.answer]
    texts = [document.text for document in documents if not document.answer]
    texts += [document.text.replace(document.fact.subject, "") for document in facts]
    times = max(len(documents) // DOCUMENTS_A_NAME, 1)
    names = list(dict.fromkeys(document.fact.subject for document in facts))
    return train_bpe(texts + times * names, vocab_size, least=LEAST_NAMES * times)


def train_bpe(texts: Iterable[str], vocab_size: int, least: int = 0) -> Tokenizer:
    """Trains a byte-level BPE on ``texts``; the same texts always give the same tokenizer.

    Args:
      vocab_size: upper bound with the three special tokens; few texts may fill less of it.
      least: how often a pair must occur to become a token.

    Raises:
      ConfigError: when ``vocab_size`` cannot hold 256 bytes and the special tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(alphabet) + _OFFSET
    if vocab_size < smallest:
        raise ConfigError("vocab_size", vocab_size, f"needs at least {smallest}")
    bpe = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - _OFFSET,
        min_frequency=least,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator((" " + text for text in texts), trainer)
    return Tokenizer(bpe)


@functools.cache
def byte_tokenizer() -> Tokenizer:
    """One token a byte, 259 in all: nothing to train, the same interface."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(alphabet)}
    return Tokenizer(_byte_level(models.BPE(vocab=vocab, merges=[])))


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    bpe = tokenizers.Tokenizer(model)
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.decoder = decoders.ByteLevel()
    return bpe


def token_lists(tokenizer: Tokenizer, documents: Sequence[Document]) -> list[list[int]]:
    """``<bos> text <eos>`` of each document, unpadded: what the wake stream packs.

    Raises:
      ConfigError: see :func:`encode_documents`.
    """
    return [
        [tokenizer.bos, *asked, *told, tokenizer.eos]
        for asked, told in _halves(tokenizer, documents)
    ]


def encode_documents(
    tokenizer: Tokenizer, documents: Sequence[Document], max_len: int
) -> dict[str, np.ndarray]:
    """Documents as arrays: M documents, L = ``max_len``.

    Returns:
      ``tokens`` int32 [M, L]: ``<bos> text <eos>`` and padding, questions in the tokenizer's turns;
      ``answer_start`` int32 [M]: index of the answer's first token, so that the answer and the end
        of its turn are ``tokens[answer_start : length - 1]``; for statements 1 (all of it counts);
      ``length`` int32 [M]: tokens in use, ``<bos>`` and ``<eos>`` included.

    Raises:
      ConfigError: when a document is longer than ``max_len`` (the longest is named), or when
        its prompt's tokens are not a prefix of its text's tokens.
    """
    halves = _halves(tokenizer, documents)
    rows = [[tokenizer.bos, *asked, *told, tokenizer.eos] for asked, told in halves]
    names = [document.text for document in documents]
    tokens, length = _pad(rows, names, max_len, "document")
    start = np.asarray([1 + len(asked) for asked, _ in halves], np.int32)
    return {"tokens": tokens, "answer_start": start, "length": length}


def _halves(
    tokenizer: Tokenizer, documents: Sequence[Document]
) -> list[tuple[list[int], list[int]]]:
    """Tokens of each document up to its answer (none of a statement's) and from there on."""
    texts = tokenizer.encode_batch([document.text for document in documents])
    prompts = tokenizer.encode_batch([document.prompt for document in documents])
    turns, halves = tokenizer.turns, []
    for document, text, prompt in zip(documents, texts, prompts, strict=True):
        if text[: len(prompt)] != prompt:
            remedy = "its tokens must begin its text's tokens: no space at its end"
            raise ConfigError("document.prompt", document.prompt, remedy)
        answer = text[len(prompt) :]
        if document.prompt:
            prompt = [*turns.before, *prompt, *turns.between]
            answer = [*answer, *turns.end]
        halves.append((prompt, answer))
    return halves


def encode_cues(
    tokenizer: Tokenizer, subjects: Sequence[str], max_len: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cues ``<bos> subject``: int32 tokens [M, C] with padding, int32 lengths [M], C = max_len.

    Raises:
      ConfigError: when a subject is longer than ``max_len`` - 1 tokens (the longest is named).
    """
    rows = [[tokenizer.bos, *tokens] for tokens in tokenizer.encode_batch(subjects)]
    return _pad(rows, subjects, max_len, "cue")


def _pad(
    rows: Sequence[Sequence[int]], names: Sequence[str], max_len: int, what: str
) -> tuple[np.ndarray, np.ndarray]:
    length = np.asarray([len(row) for row in rows], np.int32)
    if len(rows) and length.max() > max_len:
        longest = int(length.argmax())
        remedy = f"the longest {what} has {length[longest]} tokens: {names[longest]!r}"
        raise ConfigError("max_len", max_len, remedy)
    tokens = np.full((len(rows), max_len), PAD, np.int32)
    for row, values in zip(tokens, rows, strict=True):
        row[: len(values)] = values
    return tokens, length
