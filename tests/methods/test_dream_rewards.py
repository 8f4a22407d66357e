"""Rewards: what has to get better, by how much, and what may not get worse."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.methods.dreams.rewards import (
    Questions,
    agreement_reward,
    question_reward,
    read_answers,
)
from sleeplm.methods.dreams.write import Contexts, whole
from sleeplm.models.decode import generate


@pytest.fixture(scope="module")
def two(tiny):
    """A model, and the variables of two learners."""
    model = tiny.model()
    return model, *({"params": tiny.params(model, s), "slots": model.init_slots()} for s in (0, 1))


def greedy(model, variables, prompts, lengths, width):
    keys = jax.random.split(jax.random.key(0), len(lengths))
    out = generate(model, variables, prompts, lengths, keys, max_new=width, temperature=0.0)
    at = lengths[:, None] + jnp.arange(width)
    return jnp.take_along_axis(out.tokens, at, 1)


@pytest.fixture(scope="module")
def exam(tiny, two):
    """Eight questions, half of them answered as the first learner does; and a row of padding."""
    model, variables, _ = two
    cues = tiny.cues(0, 0, 8)
    prompts, lengths = jnp.asarray(cues["tokens"]), jnp.asarray(cues["length"])
    said = greedy(model, variables, prompts, lengths, 3).at[:, -1].set(tiny.eos)
    wrong = jnp.where(said[:, :1] == 5, 6, 5)
    answers = jnp.where((jnp.arange(8) < 4)[:, None], said, said.at[:, :1].set(wrong))
    pad = lambda x: jnp.pad(x, [(0, 1), (0, 0)][: x.ndim], constant_values=3)  # noqa: E731
    lengths = jnp.pad(lengths, (0, 1))
    return Questions(pad(prompts), lengths, pad(answers).at[-1, -1].set(tiny.eos))


def test_answers_are_as_likely_as_the_products_of_their_tokens(tiny, two, exam):
    model, variables, _ = two
    got = jax.jit(lambda v, q: read_answers(model, v, q))(variables, exam)
    for i in range(8):
        start, answer = int(exam.lengths[i]), exam.answers[i]
        answer = answer[: int(jnp.argmax(answer == tiny.eos)) + 1]
        row = jnp.concatenate([exam.prompts[i][:start], answer])
        logp = jax.nn.log_softmax(model.logits(variables, row[None]))[0]
        want = sum(logp[start + j - 1, t] for j, t in enumerate(answer))
        np.testing.assert_allclose(got.logp[i], want, rtol=1e-4)
    np.testing.assert_array_equal(got.asked, [1] * 8 + [0])
    assert got.logp[8] == 0 and got.right[8] == 0


def test_right_is_what_a_greedy_continuation_would_have_said(tiny, two, exam):
    model, *learners = two
    for variables in learners:
        got = jax.jit(lambda v, q: read_answers(model, v, q))(variables, exam)
        said = np.asarray(greedy(model, variables, exam.prompts[:8], exam.lengths[:8], 3))
        for i, answer in enumerate(np.asarray(exam.answers[:8])):
            end = int(np.argmax(answer == tiny.eos)) + 1
            assert got.right[i] == (said[i][:end] == answer[:end]).all()


@pytest.fixture(scope="module")
def coarse(tiny):
    """A model in bfloat16 whose texts often end at once, its variables, and 1000 prompts."""
    model, cues = tiny.model(dtype="bfloat16", eos=30), tiny.cues(0, 0, 1000)
    variables = {"params": tiny.params(model), "slots": model.init_slots()}
    return model, variables, jnp.asarray(cues["tokens"]), jnp.asarray(cues["length"])


def test_a_model_in_bfloat16_is_asked_for_likelihoods_in_float32(tiny, coarse):
    """The product of its states, as they are, in float32: whatever may be said to one prompt."""
    model, variables, prompts, lengths = coarse
    words, longest, eos = jnp.arange(tiny.vocabulary), jnp.argmax(lengths), model.config.eos
    answers = jnp.stack([words, jnp.full_like(words, eos)], 1)
    same = (jnp.stack([x[longest]] * len(words)) for x in (prompts, lengths))
    asked = Questions(*same, answers)
    got = read_answers(model, variables, asked)  # compiled, states would be rounded otherwise

    states = model.hidden(variables, jnp.concatenate([asked.prompts, answers], 1))
    unembed = model.unembed(variables["params"]).astype(jnp.bfloat16)
    assert states.dtype == jnp.bfloat16 and asked.lengths[0] == prompts.shape[1]
    exact = (x.astype(jnp.float32) for x in (states[:, prompts.shape[1] - 1 :], unembed))
    logp = jax.nn.log_softmax(jnp.matmul(*exact))
    want = logp[words, 0, words] + jnp.where(words == eos, 0.0, logp[words, 1, eos])
    np.testing.assert_allclose(got.logp, want, rtol=1e-5)


def test_in_bfloat16_too_right_is_what_a_greedy_continuation_says(coarse):
    """Where two tokens are about as likely, the one that is drawn, and not the lower number."""
    model, variables, prompts, lengths = coarse
    answers = jnp.full((len(lengths), 1), model.config.eos)
    asked = Questions(prompts, lengths, answers)
    got = jax.jit(lambda v, q: read_answers(model, v, q))(variables, asked)
    said = np.asarray(greedy(model, variables, prompts, lengths, 1))
    np.testing.assert_array_equal(got.right, said[:, 0] == model.config.eos)
    assert 100 < got.right.sum() < 900


def reward_by(two, exam, **settings):
    model, first, second = two
    reward = question_reward(model, **settings)
    return jax.jit(reward)(second, first, {"questions": exam})


def test_questions_reward_a_gain_beyond_the_margin_averaged_over_all(two, exam):
    model, first, second = two
    new, old = (read_answers(model, v, exam) for v in (first, second))
    gain = float((new.logp - old.logp).sum() / 8)
    assert abs(gain) > 1e-3
    for margin, want in ((gain - 1e-3, 1.0), (gain + 1e-3, 0.0)):
        reward, metrics = reward_by(two, exam, margin=margin)
        assert reward == want
        np.testing.assert_allclose(metrics["lift_logp"][0], gain, rtol=1e-3)
    accuracy = float((new.right - old.right).sum() / 8)
    for margin, want in ((accuracy - 0.01, 1.0), (accuracy + 0.01, 0.0)):
        assert reward_by(two, exam, measure="accuracy", margin=margin)[0] == want


def test_padding_and_the_form_of_the_questions_change_nothing(two, exam):
    want = reward_by(two, exam)
    without = jax.tree.map(lambda x: x[:8], exam)
    for other in (without, without._asdict()):
        got = reward_by(two, other)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want)


def test_nothing_changed_is_no_gain(two, exam):
    model, first, _ = two
    assert question_reward(model)(first, first, {"questions": exam})[0] == 0.0
    with pytest.raises(ConfigError, match="measure = 'loss'"):
        question_reward(model, measure="loss")


# --- agreement -----------------------------------------------------------------------------------


def memories(tiny, seed):
    text = tiny.text(seed)
    tokens = jnp.asarray(text["tokens"])
    return whole(Contexts(tokens, jnp.full(len(tokens), tokens.shape[1])))


def mean_logp(model, variables, memory):
    logp = jax.nn.log_softmax(model.logits(variables, memory.tokens, memory.segments))
    taken = jnp.take_along_axis(logp[:, :-1], memory.tokens[:, 1:, None], -1)[..., 0]
    return float((taken * memory.weights[:, 1:]).sum() / memory.weights[:, 1:].sum())


def test_agreement_asks_for_a_gain_in_what_was_held_back_and_no_loss_in_memories(tiny, two):
    model, before, after = two
    held, kept = memories(tiny, 0), memories(tiny, 1)
    gain, loss = (mean_logp(model, after, m) - mean_logp(model, before, m) for m in (held, kept))
    batch = {"held": held, "memories": kept}

    def reward(batch, **settings):
        return jax.jit(agreement_reward(model, **settings))(before, after, batch)

    low = {"margin": gain - 0.01, "worse": 0.01 - loss}
    value, metrics = reward(batch, **low)
    assert value == 1.0
    np.testing.assert_allclose(metrics["lift_held"][0], gain, atol=1e-4)
    np.testing.assert_allclose(metrics["lift_memories"][0], loss, atol=1e-4)
    assert reward(batch, **{**low, "margin": gain + 0.01})[0] == 0.0
    assert reward(batch, **{**low, "worse": -0.01 - loss})[0] == 0.0
    assert reward({"held": held}, margin=gain - 0.01)[0] == 1.0
    nothing = dataclasses.replace(held, weights=held.weights * 0)
    assert reward({"held": nothing}, margin=0.0)[0] == 0.0


def test_a_reward_mapped_over_learners_is_that_of_each(tiny, two):
    model, before, after = two
    run, batch = agreement_reward(model), {"held": memories(tiny, 0), "memories": memories(tiny, 1)}
    both = jax.tree.map(lambda *x: jnp.stack(x), before, after)
    values, metrics = jax.jit(jax.vmap(lambda v: run(before, v, batch)))(both)
    for i, one in enumerate((before, after)):
        value, told = jax.jit(run)(before, one, batch)
        assert value == values[i]
        np.testing.assert_allclose(metrics["lift_held"][0][i], told["lift_held"][0], atol=1e-5)
