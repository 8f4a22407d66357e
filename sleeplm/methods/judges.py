"""Judges that read text: rows become sentences on the host, in one call an extraction.

The call depends on what was written and on nothing else, so that the device can go on with the
teacher's reading of the same rows meanwhile.

Dimension letters: B rows, L and M their lengths, P different sentences, T word pieces, D width.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sleeplm.core import checks
from sleeplm.core.shares import varying_as
from sleeplm.core.types import Array, Params, Variables
from sleeplm.methods.config import THRESHOLDS
from sleeplm.methods.rewards import Judge, before_eos
from sleeplm.models.encoder import Encoder, SentenceEncoder, padded

#: ``decode``: rows of tokens to their texts, special tokens left out.
Decode = Callable[[Sequence[Sequence[int]]], list[str]]
#: Sentences that stand in memory at once: those that there are, up to the next multiple, cost.
CHUNK = 32
#: Calibrated for all-MiniLM-L6-v2 on whole sentences, see docs/judge.md and its error rates.
THRESHOLD = THRESHOLDS["minilm"]


def text_judge(
    same: Callable[[list[str], list[str]], Sequence[bool]],
    decode: Decode | Sequence[Decode],
    *,
    eos: int = 2,
    context: bool = True,
) -> Judge:
    """A judge that is a function of texts on the host, such as a language model behind an API.

    Args:
      same: ``(candidates, references) -> bool of each``; asked once an extraction, for every
        different pair that is not equal and not half empty.
      decode, eos, context: see :func:`semantic_judge`.
    """

    def host(rows: Rows, reader: int) -> np.ndarray:
        pairs, which, verdict = _pairs(rows, _decoder(decode, reader))
        if pairs:
            found = np.asarray(same(*map(list, zip(*pairs, strict=True))), np.float32)
            verdict = np.where(which >= 0, found[which], verdict)
        return verdict

    def judge(
        variables: Variables,
        candidate: Array,
        candidate_mask: Array,
        reference: Array,
        reference_mask: Array,
    ) -> Array:
        shape = jax.ShapeDtypeStruct(candidate.shape[:1], jnp.float32)
        sides = (candidate, candidate_mask), (reference, reference_mask)
        return _ask(host, shape, variables, sides, eos, context)

    return judge


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SemanticJudge:
    """A judge and its model, see :func:`semantic_judge`; a pytree whose leaves are the weights."""

    params: Params
    encoder: Encoder = dataclasses.field(metadata={"static": True})
    pieces: Callable[[Sequence[str]], list[list[int]]] = dataclasses.field(
        metadata={"static": True}
    )
    decode: Decode | tuple[Decode, ...] = dataclasses.field(metadata={"static": True})
    threshold: float = dataclasses.field(metadata={"static": True})
    length: int = dataclasses.field(metadata={"static": True})
    eos: int = dataclasses.field(metadata={"static": True})
    context: bool = dataclasses.field(metadata={"static": True})
    rule: Callable[[str, str], bool] | None = dataclasses.field(metadata={"static": True})

    def __call__(
        self,
        variables: Variables,
        candidate: Array,
        candidate_mask: Array,
        reference: Array,
        reference_mask: Array,
    ) -> Array:
        def host(rows: Rows, reader: int) -> Reading:
            decode = _decoder(self.decode, reader)
            return _read(self.pieces, rows, decode, self.length, self.rule)

        shapes = _shapes(candidate.shape[0], self.length)
        sides = (candidate, candidate_mask), (reference, reference_mask)
        reading: Reading = _ask(host, shapes, variables, sides, self.eos, self.context)
        vectors = _embed_used(self.encoder, self.params, reading)
        cosine = jnp.sum(vectors[reading.ours] * vectors[reading.theirs], axis=1)
        verdict = (cosine >= self.threshold - 1e-6).astype(jnp.float32)
        return jnp.where(reading.known >= 0, reading.known, verdict)


def semantic_judge(
    encoder: SentenceEncoder,
    decode: Decode | Sequence[Decode],
    threshold: float = THRESHOLD,
    *,
    length: int = 64,
    eos: int = 2,
    context: bool = True,
    rule: Callable[[str, str], bool] | None = None,
) -> SemanticJudge:
    """r_sem of Eq. 3 by a frozen sentence encoder: a cosine of at least ``threshold``.

    Equal texts mean the same, whatever the threshold, and are not embedded; two empty ones do,
    an empty one means nothing else. Every different sentence is embedded once, in as many chunks
    of :data:`CHUNK` as there are, so that the judge gets cheaper the more a student agrees.

    It comes with the night's batch, ``batch["judge"]``: its weights are no part of the learner (no
    checkpoint holds them), and an argument of the compiled night. Called from a function that
    closes over it, they become constants of that program instead, twice their size to compile.

    Args:
      decode: ``rows of tokens -> texts``, or one such function for each learner, of which
        ``batch["reader"]`` says the number.
      threshold: in [-1, 1]; docs/judge.md has how the default was calibrated.
      length: T, word pieces of a sentence; of longer ones the beginning is cut, as what is judged
        stands at the end.
      eos: end-of-text token; what follows the first one is ignored.
      context: sentences begin with what stands before the judged tokens in the row. Without it
        only the judged tokens are compared, which may begin amid a word.
      rule: asked on the host about a pair of different texts; pairs that it refuses mean something
        else, whatever their cosine. See :func:`names_agree`.

    Raises:
      ConfigError: ``threshold`` outside of [-1, 1], or ``length`` below 3.
    """
    checks.in_range("threshold", threshold, -1, 1)
    checks.positive_integer("length", length)
    checks.require(length >= 3, "length", length, "leave room for [CLS], a word and [SEP]")
    return SemanticJudge(
        params=encoder.params,
        encoder=encoder.encoder,
        pieces=encoder.pieces,
        decode=decode if callable(decode) else tuple(decode),
        threshold=float(threshold),
        length=min(length, encoder.max_len),
        eos=eos,
        context=context,
        rule=rule,
    )


def names_agree(a: str, b: str) -> bool:
    """Whether each text has every number and capitalised word of the other.

    A rule for :func:`semantic_judge`, whose encoder hardly sees the difference. The first word
    does not count as capitalised: it is, whatever it is.
    """
    words = [re.findall(r"[^\W_]+", text) for text in (a, b)]

    def names(some: list[str]) -> set[str]:
        return {w for i, w in enumerate(some) if re.search(r"\d", w) or (i and w[0].isupper())}

    return names(words[0]) <= set(words[1]) and names(words[1]) <= set(words[0])


# --- on the host -----------------------------------------------------------------------------


class Rows(NamedTuple):
    """What is judged, as the host gets it: tokens [B, L] and [B, M], and how many count, [B]."""

    ours: np.ndarray
    our_length: np.ndarray
    theirs: np.ndarray
    their_length: np.ndarray


class Reading(NamedTuple):
    """What the host makes of B pairs: P = 2 B rounded up to chunks is room for the worst case.

    Attributes:
      pieces: int32 [P, T]; length: int32 [P]; used: int32, how many sentences there are.
      ours, theirs: int32 [B], which sentence.
      known: float32 [B], the verdict where none is needed (equal, or one is empty), else -1.
    """

    pieces: Any
    length: Any
    used: Any
    ours: Any
    theirs: Any
    known: Any


def _shapes(rows: int, length: int) -> Reading:
    room = -(-2 * rows // CHUNK) * CHUNK
    sizes = ((room, length), (room,), (), (rows,), (rows,))
    whole = [jax.ShapeDtypeStruct(size, jnp.int32) for size in sizes]
    return Reading._make([*whole, jax.ShapeDtypeStruct((rows,), jnp.float32)])


def _decoder(decode: Decode | Sequence[Decode], reader: int) -> Decode:
    return decode if callable(decode) else decode[reader]


def _pairs(
    rows: Rows, decode: Decode, rule: Callable[[str, str], bool] | None = None
) -> tuple[list[tuple[str, str]], np.ndarray, np.ndarray]:
    """The different pairs of texts to ask about, each row's place there or -1, and its verdict."""
    keys = [
        [tuple(row[:n]) for row, n in zip(tokens.tolist(), length.tolist(), strict=True)]
        for tokens, length in ((rows.ours, rows.our_length), (rows.theirs, rows.their_length))
    ]
    different = list({key: None for side in keys for key in side})
    texts = dict(zip(different, decode(different), strict=True))
    pairs: dict[tuple[str, str], int] = {}
    which = np.full(len(keys[0]), -1, np.int32)
    verdict = np.zeros(len(keys[0]), np.float32)
    for i, (a, b) in enumerate(zip(*keys, strict=True)):
        pair = (texts[a].strip(), texts[b].strip())
        if pair[0] == pair[1]:
            verdict[i] = 1.0
        elif all(pair) and (rule is None or rule(*pair)):
            which[i] = pairs.setdefault(pair, len(pairs))
    return list(pairs), which, verdict


def _read(
    pieces_of: Callable[[Sequence[str]], list[list[int]]],
    rows: Rows,
    decode: Decode,
    width: int,
    rule: Callable[[str, str], bool] | None,
) -> Reading:
    pairs, which, verdict = _pairs(rows, decode, rule)
    different = list(dict.fromkeys(text for pair in pairs for text in pair))
    out = Reading(*(np.zeros(s.shape, s.dtype) for s in _shapes(len(which), width)))
    if not different:
        return out._replace(known=verdict)
    rows_of = sorted(zip(pieces_of(different), different, strict=True), key=lambda x: len(x[0]))
    texts = {text: i for i, (_, text) in enumerate(rows_of)}
    pieces, length = padded([row for row, _ in rows_of], width, keep_end=True)
    out.pieces[: len(texts)], out.length[: len(texts)] = pieces, length
    ends = np.asarray([[texts[text] for text in pair] for pair in pairs], np.int32)
    asked = which >= 0
    ours, theirs = (np.where(asked, ends[which, side], 0).astype(np.int32) for side in (0, 1))
    known = np.where(asked, -1, verdict).astype(np.float32)
    return out._replace(used=np.int32(len(texts)), ours=ours, theirs=theirs, known=known)


# --- on the device ---------------------------------------------------------------------------


def _sentences(tokens: Array, mask: Array, eos: int, context: bool) -> tuple[Array, Array]:
    """The tokens to read of each row, moved to the left, and how many they are."""
    mask = mask.astype(bool)
    # Up to the last judged token; nothing of a row of which nothing is judged.
    read = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1] > 0 if context else mask
    return before_eos(tokens, mask, eos, read)


def _widths(length: int) -> list[int]:
    """Word pieces that a chunk may have room for: 16, twice as many, and so on up to all."""
    widths = [length]
    while widths[0] > 16:
        widths.insert(0, max(-(-widths[0] // 2), 16))
    return widths


def _ask(
    host: Callable[[Rows, int], Any],
    shapes: Any,
    variables: Variables,
    sides: Sequence[tuple[Array, Array]],
    eos: int,
    context: bool,
) -> Any:
    """What the host says of both sides' rows, (tokens, mask) each.

    Learners that are mapped over come in one call.
    """
    read = [part for side in sides for part in _sentences(*side, eos, context)]

    def answer(reader: Any, *arrays: Any) -> Any:
        readers, rows = np.asarray(reader), [np.asarray(x) for x in arrays]
        front = readers.shape
        if not front:
            return host(Rows(*rows), int(readers))
        flat = [x.reshape(-1, *x.shape[len(front) :]) for x in rows]
        each = [
            host(Rows(*(x[i] for x in flat)), int(number))
            for i, number in enumerate(readers.reshape(-1))
        ]
        return jax.tree.map(lambda *x: np.stack(x).reshape(*front, *x[0].shape), *each)

    reader = jnp.asarray((variables or {}).get("reader", 0), jnp.int32)
    return jax.pure_callback(answer, shapes, reader, *read, vmap_method="broadcast_all")


def _embed_used(encoder: Encoder, weights: Params, reading: Reading) -> Array:
    """Vectors of the sentences that there are, [P, D]; zeros beyond their last chunk.

    Sentences come shortest first, so that most chunks need a part of the room for pieces only.
    """
    widths = _widths(reading.pieces.shape[1])
    ways = [lambda p, n, w=w: encoder.embed(weights, p[:, :w], n) for w in widths]

    def embed(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        i, vectors = carry
        pieces, length = (
            jax.lax.dynamic_slice_in_dim(x, i * CHUNK, CHUNK)
            for x in (reading.pieces, reading.length)
        )
        which = jnp.sum(jnp.max(length) > jnp.asarray(widths[:-1], jnp.int32))
        found = jax.lax.switch(which, ways, pieces, length)
        return i + 1, jax.lax.dynamic_update_slice_in_dim(vectors, found, i * CHUNK, 0)

    none = (jnp.int32(0), jnp.zeros((len(reading.length), encoder.config.d_model)))
    start = varying_as(none, reading)
    return jax.lax.while_loop(lambda carry: carry[0] * CHUNK < reading.used, embed, start)[1]
