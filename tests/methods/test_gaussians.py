"""Class Gaussians that grow night by night, against a discriminant analysis of everything."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.core import tree
from sleeplm.methods import gaussians
from sleeplm.methods.gaussians import BLOCK, GAUSSIANS, features, gather, no_classes

CLASSES, LONG, D = 7, 6, 16
UNSEEN = 6  # no text is ever of this class
NEVER = -2  # day of what fills the archive up
KEY = jax.random.key(0)
nearest = jax.jit(gaussians.nearest)


def archive():
    """Two blocks of questions: two classes a day for three days, in no order, and padding."""
    random = np.random.default_rng(0)
    texts = 2 * BLOCK
    label = random.integers(0, UNSEEN, texts)
    day = np.where(np.arange(texts) % 16 == 0, NEVER, label // 2)
    words = 3 + 6 * label[:, None] + random.integers(0, 6, (texts, LONG))  # classes speak alike
    length = random.integers(2, LONG + 1, texts)
    tokens = np.where(np.arange(LONG) < length[:, None], words % 40, 0)
    out = {"tokens": tokens, "length": length, "day": day, "label": label}
    return {name: x.astype(np.int32) for name, x in out.items()}


@pytest.fixture(scope="module")
def life(tiny):
    """A learner, a night's step compiled once, its archive, and the feature of every text."""
    model = tiny.model()
    _, state = tiny.learner(model, tiny.config())
    state = state.replace(anchors={GAUSSIANS: no_classes(CLASSES, D)})
    texts = archive()
    alone = jax.jit(lambda row: model.hidden(state.variables, row))
    found = np.stack(
        [
            np.asarray(alone(row[None]))[0, :n].mean(0)  # whatever is written behind its end
            for row, n in zip(np.where(texts["tokens"] == 0, 9, texts["tokens"]), texts["length"],
                              strict=True)
        ]
    )  # fmt: skip
    return model, state, jax.jit(gather(model)), texts, found


def live(life, days):
    _, state, step, texts, _ = life
    for day in days:
        state, _ = step(state, {"archive": texts, "day": np.int32(day)}, KEY)
    return state


def discriminant(found, label, questions, ridge=1e-2):
    """Mahalanobis distances to the classes' means, by numpy in double precision."""
    found, questions = found.astype(float), questions.astype(float)
    present = np.unique(label)
    means = np.stack([found[label == k].mean(0) for k in present])
    spread = found - means[np.searchsorted(present, label)]
    covariance = spread.T @ spread / len(found)
    covariance += ridge * np.trace(covariance) / D * np.eye(D)
    gap = questions[:, None] - means
    distance = np.einsum("bkd,de,bke->bk", gap, np.linalg.inv(covariance), gap)
    return present[distance.argmin(1)], distance


def test_a_feature_is_the_mean_of_a_texts_own_states(life):
    model, state, _, texts, found = life
    got = jax.jit(lambda t, n: features(model, state.variables, t, n))(
        texts["tokens"], texts["length"]
    )
    np.testing.assert_allclose(got, found, atol=1e-4)


def test_sums_that_grow_night_by_night_are_those_of_all_texts_at_once(life):
    state = live(life, [0, 1, 2])
    *_, texts, found = life
    seen = texts["day"] != NEVER
    sums, found, label = state.anchors[GAUSSIANS], found[seen], texts["label"][seen]
    np.testing.assert_array_equal(sums["count"], np.bincount(label, minlength=CLASSES))
    want = np.stack([found[label == k].sum(0) for k in range(CLASSES)])
    np.testing.assert_allclose(sums["sum"], want, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(sums["outer"], found.T @ found, rtol=1e-3, atol=1e-2)


def test_answers_are_those_of_a_linear_discriminant_analysis_of_everything(life):
    state = live(life, [0, 1, 2])
    *_, texts, found = life
    seen = texts["day"] != NEVER
    random = np.random.default_rng(1)
    # Questions between the classes too, where the covariance and the ridge decide.
    mixed = found[random.permutation(len(found))]
    questions = np.concatenate([found, 0.5 * (found + mixed), 0.7 * found + 0.3 * mixed])
    want, distance = discriminant(found[seen], texts["label"][seen], questions)
    clear = np.diff(np.sort(distance, 1)[:, :2], axis=1)[:, 0] > 0.05
    got = nearest(state.anchors[GAUSSIANS], questions.astype(np.float32))
    assert clear.mean() > 0.9 and got.dtype == jnp.int32
    np.testing.assert_array_equal(np.asarray(got)[clear], want[clear])
    means = np.stack([found[seen & (texts["label"] == k)].mean(0) for k in range(UNSEEN)])
    euclid = np.square(questions[:, None] - means).sum(-1).argmin(1)
    assert (euclid != want)[clear].sum() > 10  # the nearest in plain distance would not do


def test_the_order_of_days_does_not_matter(life):
    forth, back = (live(life, days).anchors[GAUSSIANS] for days in ([0, 1, 2], [2, 0, 1]))
    for name, x in forth.items():
        np.testing.assert_allclose(back[name], x, rtol=1e-4, atol=1e-3)


def test_classes_not_yet_seen_are_never_answered(life):
    *_, found = life
    for days, seen in (([0], {0, 1}), ([2], {4, 5}), ([0, 2], {0, 1, 4, 5})):
        sums = live(life, days).anchors[GAUSSIANS]
        assert set(np.asarray(nearest(sums, found)).tolist()) == seen


def test_what_is_no_text_of_today_adds_nothing(life):
    _, state, *_ = life
    after = live(life, [5])
    assert tree.differing(after.anchors, state.anchors) == []
    assert tree.differing(after.params, state.params) == []
    assert int(after.counters["nights"]) == 1
