"""Judges that read text agree with the encoder asked by hand, in every form that a night has."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sleeplm.core.errors import ConfigError
from sleeplm.core.side_by_side import for_each
from sleeplm.methods.config import evening
from sleeplm.methods.judges import CHUNK, names_agree, semantic_judge, text_judge
from sleeplm.methods.rewards import ask
from sleeplm.models.encoder import padded, similarity
from sleeplm.runtime.parallel import mesh

EOS = 2
WORDS = [f"w{i}" for i in range(40)]


def decode(rows):
    """Token t is the word of its number; special tokens are left out."""
    return [" ".join(WORDS[t] for t in row if t > EOS) for row in rows]


def encode(text):
    return [WORDS.index(word) for word in text.split()]


def rows(texts, width=12):
    tokens, mask = np.full((len(texts), width), 7, np.int32), np.zeros((len(texts), width), bool)
    for i, text in enumerate(texts):
        row = [*encode(text), EOS]
        tokens[i, : len(row)], mask[i, : len(row)] = row, True
    return jnp.asarray(tokens), jnp.asarray(mask)


def random_texts(seed, count, lengths=(2, 5, 9)):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS[3:], random.choice(lengths))) for _ in range(count)]


def by_hand(encoder, said, expected):
    """Cosines of one sentence at a time, without padding."""
    run = jax.jit(encoder.encoder.embed)

    def embed(text):
        (row,) = encoder.pieces([text])
        return np.asarray(run(encoder.params, np.asarray([row], np.int32), np.asarray([len(row)])))

    return np.array([float(embed(a)[0] @ embed(b)[0]) for a, b in zip(said, expected, strict=True)])


@pytest.fixture(scope="module")
def pairs(tiny_encoder):
    """Texts in pairs, and a threshold that half of the cosines reach, none of them close to it."""
    said, expected = random_texts(0, 24), random_texts(1, 24)
    cosines = by_hand(tiny_encoder, said, expected)
    ordered = np.sort(cosines)
    threshold = (ordered[11] + ordered[12]) / 2
    assert ordered[12] - ordered[11] > 1e-4
    return said, expected, float(threshold), (cosines >= threshold).astype(np.float32)


@pytest.fixture
def shown(pairs):
    said, expected, _, _ = pairs
    return (*rows(said), *rows(expected))


def test_a_pair_is_accepted_from_the_threshold_on(tiny_encoder, pairs, shown):
    _, _, threshold, want = pairs
    judge = semantic_judge(tiny_encoder, decode, threshold)
    got = jax.jit(lambda judge, *x: judge({}, *x))(judge, *shown)
    np.testing.assert_array_equal(got, want)
    assert got.dtype == jnp.float32


def test_equal_texts_mean_the_same_and_an_empty_one_nothing_else_and_nobody_embeds_them(
    tiny_encoder,
):
    asked = []

    def pieces(texts):
        asked.extend(texts)
        return tiny_encoder.pieces(texts)

    spied = tiny_encoder._replace(pieces=pieces)
    judge = semantic_judge(spied, decode, 1.0)
    said = rows(["w3 w4", "", "w5", "", "w3 w6"])
    expected = rows(["w3 w4", "", "", "w5", "w3 w7"])
    got = jax.jit(lambda judge, *x: judge({}, *x))(judge, *said, *expected)
    np.testing.assert_array_equal(got, [1, 1, 0, 0, 0])
    assert sorted(asked) == ["w3 w6", "w3 w7"]


def test_a_rule_refuses_pairs_that_the_encoder_would_accept(tiny_encoder):
    judge = semantic_judge(
        tiny_encoder, decode, -1.0, rule=lambda a, b: a.split()[0] == b.split()[0]
    )
    got = judge({}, *rows(["w3 w4", "w3 w4", "w5"]), *rows(["w3 w5", "w4 w3", "w5"]))
    np.testing.assert_array_equal(got, [1, 0, 1])


@pytest.mark.parametrize(
    ("a", "b", "agree"),
    [
        ("Paris is the capital of France.", "France: the capital is Paris.", True),
        ("Rome is the capital of France.", "France: the capital is Paris.", False),
        ("She was born in 1920.", "The year of her birth is 1920.", True),
        ("She was born in 1920.", "She was born in 1921.", False),
        ("She plays the lute.", "She plays the harp.", True),  # common words it does not see
    ],
)
def test_names_agree_where_numbers_and_capitalised_words_do(a, b, agree):
    assert names_agree(a, b) == agree == names_agree(b, a)


def test_every_different_sentence_is_read_once_in_one_call(tiny_encoder):
    calls = []

    def pieces(texts):
        calls.append(list(texts))
        return tiny_encoder.pieces(texts)

    judge = semantic_judge(tiny_encoder._replace(pieces=pieces), decode, 0.5)
    said, expected = ["w3 w4", "w5", "w3 w4", "w5"], ["w6", "w6", "w6", "w5 w3"]
    jax.jit(lambda judge, *x: judge({}, *x))(judge, *rows(said), *rows(expected))
    assert [sorted(call) for call in calls] == [["w3 w4", "w5", "w5 w3", "w6"]]


def test_sentences_of_all_lengths_fill_several_chunks_and_keep_their_own_vectors(tiny_encoder):
    said, expected = random_texts(2, 50, (2, 9, 20, 30)), random_texts(3, 50, (2, 20))
    cosines = by_hand(tiny_encoder, said, expected)
    assert len({*said, *expected}) > 3 * CHUNK and max(len(t.split()) for t in said) > 16
    for threshold in np.quantile(cosines, [0.2, 0.8]) + 1e-4:
        judge = semantic_judge(tiny_encoder, decode, threshold, length=40)
        got = jax.jit(lambda judge, *x: judge({}, *x))(judge, *rows(said, 32), *rows(expected, 32))
        clear = np.abs(cosines - threshold) > 1e-5
        assert clear.sum() > 45
        np.testing.assert_array_equal(np.asarray(got)[clear], (cosines >= threshold)[clear])


def test_context_is_what_stands_before_and_nothing_behind_the_judged_tokens(tiny_encoder):
    tokens = jnp.asarray([[5, 6, 8, EOS, 9], [5, 6, 8, EOS, 9]])
    mask = jnp.asarray([[0, 0, 1, 1, 0], [0, 0, 0, 0, 0]])
    read = []

    def same(candidates, references):
        read.append((candidates, references))
        return [True] * len(candidates)

    others = (jnp.asarray([[10, EOS, 7], [11, EOS, 7]]), jnp.ones((2, 3), bool))
    whole = text_judge(same, decode)({}, tokens, mask, *others)
    bare = text_judge(same, decode, context=False)({}, tokens, mask, *others)
    np.testing.assert_array_equal(whole, [1, 0])  # nothing was written in the second row
    np.testing.assert_array_equal(bare, [1, 0])
    assert read == [(["w5 w6 w8"], ["w10"]), (["w8"], ["w10"])]


def test_what_ends_a_text_may_also_begin_it():
    """As the tokens of models without a begin of text do: bos is eos."""
    tokens = jnp.asarray([[EOS, 5, 6, 8, EOS, 9], [EOS, 5, 6, EOS, 0, 0], [EOS, 5, 6, 8, 9, 7]])
    mask = jnp.asarray([[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 1]])
    read = []

    def same(candidates, references):
        read.extend(candidates)
        return [True] * len(candidates)

    others = (jnp.full((3, 2), 10), jnp.ones((3, 2), bool))
    text_judge(same, decode)({}, tokens, mask, *others)
    assert read == ["w5 w6 w8", "w5 w6", "w5 w6 w8 w9 w7"]


def test_of_a_sentence_that_is_too_long_the_end_is_judged(tiny_encoder):
    """What is judged stands behind its context, which both sides share."""
    context = [10 + i % 5 for i in range(50)]
    said, told = (jnp.asarray([[*context, *end]]) for end in ([5, 6, 7], [30, 31, 32]))
    mask = jnp.arange(53)[None] >= 50
    judge = semantic_judge(tiny_encoder, decode, 0.999, length=16)
    assert judge({}, said, mask, told, mask).tolist() == [0.0]
    kept = by_hand(tiny_encoder, *([decode([x[0, -14:].tolist()])[0]] for x in (said, told)))
    for threshold in (kept[0] - 1e-4, kept[0] + 1e-4):
        judge = semantic_judge(tiny_encoder, decode, threshold, length=16)
        assert judge({}, said, mask, told, mask).tolist() == [float(threshold < kept[0])]


def test_a_judge_on_the_host_is_asked_about_different_pairs_that_are_not_equal():
    asked = []

    def longer(candidates, references):
        asked.extend(zip(candidates, references, strict=True))
        return [len(a) > len(b) for a, b in zip(candidates, references, strict=True)]

    said = ["w3 w4", "w3 w4", "w5", "w6", "w5"]
    expected = ["w7", "w7", "w5", "w8 w9", "w10 w3"]
    got = jax.jit(text_judge(longer, decode))({}, *rows(said), *rows(expected))
    np.testing.assert_array_equal(got, [1, 1, 1, 0, 0])
    assert asked == [("w3 w4", "w7"), ("w6", "w8 w9"), ("w5", "w10 w3")]


@pytest.mark.parametrize("batched", [True, False])
def test_learners_side_by_side_are_read_each_with_its_own_tokenizer(
    tiny_encoder, pairs, shown, batched
):
    said, expected, threshold, want = pairs

    def mirrored(rows):
        return decode([[42 - t if t > EOS else t for t in row] for row in rows])

    judge = semantic_judge(tiny_encoder, [decode, mirrored], threshold)

    def one(reader, *shown):
        return ask(None, {}, {"judge": judge, "reader": reader}, *shown)

    twice = [jnp.stack([x, x]) for x in shown]
    got = jax.jit(for_each(one, batched))(jnp.arange(2), *twice)
    other = [
        [" ".join(WORDS[42 - i] for i in encode(t)) for t in side] for side in (said, expected)
    ]
    theirs = (by_hand(tiny_encoder, *other) >= threshold).astype(np.float32)
    assert (theirs != want).any()
    np.testing.assert_array_equal(got, [want, theirs])


def test_rows_spread_over_devices_are_judged_as_on_one(tiny_encoder, pairs, shown):
    _, _, threshold, want = pairs
    judge = semantic_judge(tiny_encoder, decode, threshold)
    many, rows_of = mesh({"data": 4}), P("data")
    mapped = jax.shard_map(
        lambda judge, *x: judge({}, *x),
        mesh=many,
        in_specs=(P(), *[rows_of] * 4),
        out_specs=rows_of,
    )
    np.testing.assert_array_equal(jax.jit(mapped)(judge, *shown), want)
    spread = [jax.device_put(x, jax.sharding.NamedSharding(many, rows_of)) for x in shown]
    copies = jax.device_put(judge, jax.sharding.NamedSharding(many, P()))
    np.testing.assert_array_equal(jax.jit(lambda judge, *x: judge({}, *x))(copies, *spread), want)


def test_the_weights_are_an_argument_of_the_program_and_no_part_of_it(tiny_encoder, shown):
    judge = semantic_judge(tiny_encoder, decode)
    brought = jax.jit(lambda judge, *x: judge({}, *x)).lower(judge, *shown)
    closed = jax.jit(lambda *x: judge({}, *x)).lower(*shown)
    weights = sum(x.nbytes for x in jax.tree.leaves(tiny_encoder.params))
    assert len(closed.as_text()) - len(brought.as_text()) > weights


# --- in a night ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imitating(tiny):
    """A learner that would be judged by a judge that reads text, and its evening."""
    model = tiny.model()
    config = tiny.config(evening, alpha=0.5, gamma=1.0, lam=0.0, judge="minilm", rollback=0.0)
    life, state = tiny.learner(model, config)
    batch = tiny.rows(config)
    awake = jax.jit(life.wake)
    for seed in range(3):
        state, _ = awake(state, tiny.text(seed), jax.random.key(seed))
    state, _ = jax.jit(life.rests[0].begin)(state, batch, jax.random.key(3))
    return life, state, batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Verdicts:
    """A judge that has made up its mind."""

    of_rows: jax.Array

    def __call__(self, variables, candidate, candidate_mask, reference, reference_mask):
        return self.of_rows


@pytest.mark.slow
def test_a_night_is_rewarded_by_the_judge_that_its_batch_brings(imitating, tiny_encoder):
    life, state, batch = imitating
    seed = jax.jit(life.rests[0].seed)

    def moved(judge):
        after, metrics = seed(state, {**batch, "judge": judge}, jax.random.key(4))
        assert float(metrics["skipped"][0]) == 0
        return after.params["blocks"]["levels"]["slow"]["experts"]["b"]

    # Whoever accepts everything gives nobody in a group an advantage over the others.
    content = moved(Verdicts(jnp.ones(16)))
    assert np.abs(moved(Verdicts(jnp.tile(jnp.array([1.0, 0.0]), 8))) - content).max() > 1e-6
    everything = moved(semantic_judge(tiny_encoder, decode, -1.0))
    np.testing.assert_allclose(everything, content, atol=1e-6)


def test_a_judge_that_reads_text_and_is_not_there_is_missed_before_anything_compiles(imitating):
    life, state, batch = imitating
    with pytest.raises(ConfigError, match=r"sleep\.judge = 'minilm'.*batch\['judge'\]"):
        jax.jit(life.rests[0].seed).lower(state, batch, jax.random.key(4))


@pytest.mark.slow
def test_a_judge_of_ones_own_is_given_to_the_learner(tiny):
    shown = []

    def suspicious(variables, candidate, candidate_mask, reference, reference_mask):
        shown.append(candidate.shape)
        return jnp.zeros(len(candidate))

    config = tiny.config(evening, alpha=0.5, lam=0.0)
    life, state = tiny.learner(tiny.model(), config, judge=suspicious)
    jax.eval_shape(life.rests[0].seed, state, tiny.rows(config), jax.random.key(0))
    assert shown == [(config.rows * config.inner, config.length)]


# --- as an evaluation ----------------------------------------------------------------------------


def test_similarity_is_the_cosine_of_each_pair_in_batches_of_any_size(tiny_encoder):
    said, expected = random_texts(4, 21, (2, 20, 35)), random_texts(5, 21, (2, 9))
    want = by_hand(tiny_encoder, said, expected)
    for batch in (4, 64):
        got = similarity(tiny_encoder, said, expected, batch)
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert similarity(tiny_encoder, [], []).shape == (0,)
    np.testing.assert_allclose(similarity(tiny_encoder, said, said), 1.0, atol=1e-5)


def test_a_sentence_that_is_too_long_keeps_its_last_piece():
    tokens, length = padded([[1, 5, 6, 7, 2], [1, 2]], 4)
    np.testing.assert_array_equal(tokens, [[1, 5, 6, 2], [1, 2, 0, 0]])
    np.testing.assert_array_equal(length, [4, 2])


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (lambda encoder: semantic_judge(encoder, decode, 1.5), "threshold"),
        (lambda encoder: semantic_judge(encoder, decode, length=2), "length"),
        (lambda encoder: similarity(encoder, ["a"], []), "expected"),
    ],
)
def test_settings_that_cannot_work_are_refused(tiny_encoder, bad, field):
    with pytest.raises(ConfigError) as error:
        bad(tiny_encoder)
    assert error.value.field == field


def test_a_judge_can_be_changed_like_any_record(tiny_encoder):
    judge = semantic_judge(tiny_encoder, [decode], 0.5)
    strict = dataclasses.replace(judge, threshold=0.9)
    assert (strict.threshold, strict.decode) == (0.9, (decode,))
