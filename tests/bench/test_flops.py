"""FLOP counts: against what the compiler counts, and against what a night really computes."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import pytest

from sleeplm.bench import flops
from sleeplm.core import tree
from sleeplm.core.errors import ConfigError
from sleeplm.core.losses import forward_kl
from sleeplm.core.types import Memory
from sleeplm.memory.levels import LevelConfig, label_of
from sleeplm.methods import extract, frames
from sleeplm.methods.adapters import adapted, in_adapters, with_adapters
from sleeplm.methods.config import SleepConfig, TeacherConfig
from sleeplm.methods.learner import learner
from sleeplm.methods.objectives import language_model, seeding
from sleeplm.methods.sleep import teachings
from sleeplm.methods.update import moves_awake
from sleeplm.models.config import ModelConfig
from sleeplm.models.decode import generate
from sleeplm.models.transformer import Model

ROWS, LENGTH, D = 4, 16, 64
WITHIN = 0.1


def settings(**changes) -> ModelConfig:
    """Straight-line code (the compiler counts a loop once), and experts that are gathered."""
    levels = [
        LevelConfig(name="fast", kind="graft", width=64, period=1, night=4),
        LevelConfig(name="slow", width=128, slots=4, rank=8, top_k=2),
    ]
    config = ModelConfig(
        **{
            "vocab_size": 128,
            "d_model": D,
            "n_layers": 2,
            "n_heads": 4,
            "n_kv_heads": 2,
            "max_len": 32,
            "dispatch": "gather",
            "levels": levels,
            **changes,
        }
    )
    config.check("model")
    return config


CONFIG = settings()
TOKENS = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)


def compiled(function, *shapes) -> float:
    return jax.jit(function).lower(*shapes).compile().cost_analysis()["flops"]


def shapes_of(model):
    return jax.eval_shape(model.init, jax.random.key(0))


def close(count: float) -> object:
    return pytest.approx(count, rel=WITHIN)


def memory(tokens, reference) -> Memory:
    ones = jnp.ones((ROWS, LENGTH))
    row = jnp.ones((ROWS,))
    return Memory(
        tokens=tokens,
        weights=ones,
        segments=ones.astype(jnp.int32),
        reference=reference,
        reward=row,
        source=row.astype(jnp.int32),
        logp=ones,
    )


def update(model, objective, trainable, params) -> float:
    """What the compiler counts for the loss and its gradients."""

    def gradients(chosen, rest, tokens, reference):
        def loss(chosen):
            variables = {"params": tree.merge(chosen, rest), "slots": model.init_slots()}
            return objective(variables, memory(tokens, reference))[0]

        return jax.value_and_grad(loss)(chosen)

    reference = jax.ShapeDtypeStruct((ROWS, LENGTH, D), jnp.float32)
    return compiled(gradients, *tree.split(params, trainable), TOKENS, reference)


def in_pool(path) -> bool:
    return label_of(path) in ("slow/experts", "slow/router")


# --- against the compiler ------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False, "n_kv_heads": 4}])
def test_a_forward_pass_has_as_many_as_the_compiler_counts(changes):
    config = settings(**changes)
    model = Model(config)

    def logits(params, tokens):
        return model.logits({"params": params, "slots": model.init_slots()}, tokens)

    counted = compiled(logits, shapes_of(model), TOKENS)
    assert ROWS * LENGTH * flops.forward(config, LENGTH) == close(counted)


def test_scores_are_counted_where_they_are_most_of_the_work():
    levels = [
        LevelConfig(name="fast", kind="graft", width=16, period=1, night=4),
        LevelConfig(name="slow", width=16, slots=2, rank=2, top_k=1),
    ]
    sizes = {"vocab_size": 32, "d_model": 16, "n_heads": 2, "n_kv_heads": 1}
    config, length = settings(**sizes, max_len=128, levels=levels), 128
    model = Model(config)

    def logits(params, tokens):
        return model.logits({"params": params, "slots": model.init_slots()}, tokens)

    tokens = jax.ShapeDtypeStruct((ROWS, length), jnp.int32)
    count = flops.forward(config, length)
    assert count > 2 * flops.forward(config, 1)
    counted = compiled(logits, shapes_of(model), tokens)  # which has softmax itself too
    assert ROWS * length * count == pytest.approx(counted, rel=0.2)


def test_levels_that_do_not_run_cost_nothing():
    names = ("fast", "slow")
    levels = [LevelConfig(name=n, width=128, period=i + 1) for i, n in enumerate(names)]
    config = settings(wiring="nested", levels=levels)
    model = Model(config)

    def hidden(params, tokens):
        return model.hidden({"params": params, "slots": model.init_slots()}, tokens)

    counted = compiled(hidden, shapes_of(model), TOKENS)
    assert ROWS * LENGTH * flops.forward(config, LENGTH, logits=False) == close(counted)


@pytest.mark.parametrize(
    ("kind", "trainable"),
    [
        ("all", lambda path: True),
        ("bases", moves_awake(CONFIG.levels)),
        ("base", lambda path: label_of(path) == "slow/base"),
        ("expert", in_pool),
    ],
)
def test_an_update_has_as_many_as_the_compiler_counts(kind, trainable):
    model = Model(CONFIG)
    counted = update(model, language_model(model), trainable, shapes_of(model))
    assert ROWS * LENGTH * flops.train(CONFIG, LENGTH, kind) == close(counted)


def test_an_update_of_adapters_pays_for_the_matrices_that_they_are_added_to():
    model, rank = Model(CONFIG), 32
    params = jax.eval_shape(
        lambda: with_adapters(model.init(jax.random.key(0)), rank, jax.random.key(1))
    )
    counted = update(model, adapted(language_model(model)), in_adapters(), params)
    positions = ROWS * LENGTH
    token = flops.train(CONFIG, LENGTH, "adapters", rank=rank, positions=positions)
    assert positions * token == close(counted)
    assert positions * flops.train(CONFIG, LENGTH, "adapters", rank=rank) < counted / (1 + WITHIN)


@pytest.mark.parametrize("policy", ["full", "dots"])
def test_what_is_computed_again_in_the_backward_pass_counts(policy):
    config = settings(remat=True, remat_policy=policy)
    model = Model(config)
    counted = update(model, language_model(model), lambda path: True, shapes_of(model))
    assert ROWS * LENGTH * flops.train(config, LENGTH, "all") == close(counted)
    again = flops.train(config, LENGTH, "all") - flops.train(CONFIG, LENGTH, "all")
    scores = 4 * LENGTH * CONFIG.n_heads * CONFIG.width_of_head * CONFIG.n_layers
    whole = flops.forward(CONFIG, LENGTH, logits=False)
    assert again == (scores if policy == "dots" else whole)


def test_a_seeding_update_has_as_many_as_the_compiler_counts():
    config = settings(vocab_size=512)  # so that logits weigh
    model = Model(config)
    counted = update(model, seeding(model, forward_kl, alpha=1), in_pool, shapes_of(model))
    token = flops.train(config, LENGTH, "expert", student_logits=1, teacher_logits=1)
    assert ROWS * LENGTH * token == close(counted)


def test_generation_has_as_many_as_the_compiler_counts():
    model = Model(CONFIG)

    def write(params, prompts, key):
        variables = {"params": params, "slots": model.init_slots()}
        lengths, keys = jnp.full((ROWS,), 8), jax.random.split(key, ROWS)
        # Two tokens: one from the prompt, and one time through the loop.
        return generate(model, variables, prompts, lengths, keys, max_new=2).tokens

    key = jax.eval_shape(lambda: jax.random.key(0))
    counted = compiled(write, shapes_of(model), TOKENS, key)
    assert ROWS * flops.decode(CONFIG, LENGTH, 2) == close(counted)


# --- by arithmetic -------------------------------------------------------------------------------


def test_a_token_pays_for_the_experts_it_uses_and_not_for_closed_ones():
    two_layers, one_expert = 2, 4 * D * 8
    several = [flops.forward(CONFIG, LENGTH, open_experts=n) for n in range(5)]
    gained = [b - a for a, b in itertools.pairwise(several)]
    assert gained == [two_layers * one_expert] * 2 + [0, 0]  # top_k = 2
    assert flops.forward(CONFIG, LENGTH) == several[-1]


def test_generation_is_every_token_against_the_whole_cache():
    cue, new = 5, 7
    through = flops.forward(CONFIG, cue + new, logits=False)
    logits = 2 * D * CONFIG.vocab_size
    assert flops.decode(CONFIG, cue, new) == (cue + new - 1) * through + new * logits


def test_a_day_is_its_tokens():
    token = flops.train(CONFIG, LENGTH, "bases")
    assert flops.day(CONFIG, steps=3, batch=5, length=LENGTH) == {"wake": 3 * 5 * LENGTH * token}


def test_what_cannot_learn_is_refused_in_one_line():
    with pytest.raises(ConfigError, match="trainable = 'experts': must be one of .*'expert'"):
        flops.train(CONFIG, LENGTH, "experts")
    with pytest.raises(ConfigError, match="level = 'fast': must be one of slow"):
        flops.train(CONFIG, LENGTH, "expert", level="fast")
    frozen = settings(levels=[LevelConfig(name="slow", width=128)])
    with pytest.raises(ConfigError, match="trainable = 'bases': no part of this model learns"):
        flops.train(frozen, LENGTH, "bases")


# --- against the night ---------------------------------------------------------------------------

TEACHERS = [
    TeacherConfig("dusk", "today", imitate=True, times=2),
    TeacherConfig("dawn", "past", imitate=False, framed=True),
]
NIGHTS = {
    "teachers alone": {"lam": 0.0, "alpha": 1.0},
    "rollouts": {"lam": 1.0, "alpha": 1.0},
    "everything": {"lam": 0.5, "alpha": 0.5, "judge": "cosine"},
    "packed": {"lam": 0.5, "alpha": 1.0, "pack": 16},
}


@pytest.mark.parametrize("name", NIGHTS)
def test_a_night_is_what_its_extractions_and_updates_compute(tiny, monkeypatch, name):
    sleep = tiny.config(SleepConfig, teachers=TEACHERS, updates=8, epochs=2, **NIGHTS[name])
    model = tiny.model()
    c, done = model.config, {"sampled": 0.0, "graded": 0.0}

    def write(model, variables, prompts, *rest, max_new, **named):
        done["sampled"] += len(prompts) * flops.decode(c, prompts.shape[1], max_new)
        return generate(model, variables, prompts, *rest, max_new=max_new, **named)

    def read(self, variables, tokens, *rest):
        done["graded"] += tokens.size * flops.forward(c, tokens.shape[1], logits=False)
        return hidden(self, variables, tokens, *rest)

    def score(states, unembed, *rest):
        done["graded"] += len(states) * (states.shape[1] + 1) * 2 * unembed.size
        return token_logp(states, unembed, *rest)

    hidden, token_logp = Model.hidden, extract.chunked_token_logp
    monkeypatch.setattr(extract, "generate", write)
    monkeypatch.setattr(frames, "generate", write)
    monkeypatch.setattr(Model, "hidden", read)
    monkeypatch.setattr(extract, "chunked_token_logp", score)
    told = teachings(model, sleep, ("fast", "slow"), sleep.teachers, None)

    def night(key, batch):  # only traced: shapes are all that is asked for
        variables = learner(model, sleep).init(model.init(key), key).variables
        return told.extract(variables, told.init(variables["params"], key), batch, key)[0]

    memory = jax.eval_shape(night, jax.random.key(0), tiny.rows(sleep))
    count = flops.night(c, sleep)
    assert sleep.blocks == 2
    assert count["sampled"] == pytest.approx(sleep.blocks * done["sampled"])
    assert count["graded"] == pytest.approx(sleep.blocks * done["graded"])
    students = 1 if sleep.alpha == 1 else 2
    width = memory.tokens.shape[1]
    token = flops.train(c, width, "expert", student_logits=students, teacher_logits=1)
    learned = sleep.blocks * sleep.epochs * memory.tokens.size
    assert count["seeded"] == pytest.approx(learned * token)


def test_cues_of_ones_own_are_written_once_an_evening():
    sleep = SleepConfig(updates=160, cues="self", own_cues=10, own_cue_tokens=6)
    given = dataclasses.replace(sleep, cues="subjects")
    more = flops.night(CONFIG, sleep)["sampled"] - flops.night(CONFIG, given)["sampled"]
    assert more == pytest.approx(10 * flops.decode(CONFIG, 1, 5))


def test_a_night_into_the_base_trains_the_base():
    sleep = SleepConfig(alpha=1.0, into="base")
    expert = flops.night(CONFIG, dataclasses.replace(sleep, into="expert"))
    count = flops.night(CONFIG, sleep)
    width = sleep.length
    per_token = [
        flops.train(CONFIG, width, kind, student_logits=1, teacher_logits=1)
        for kind in ("base", "expert")
    ]
    assert count["seeded"] / expert["seeded"] == pytest.approx(per_token[0] / per_token[1])
    assert count["sampled"] == expert["sampled"]


def test_merging_is_a_night_with_the_same_teachers_none_of_whom_is_imitated():
    sleep = SleepConfig(alpha=0.5, teachers=TEACHERS)
    told = [dataclasses.replace(teacher, imitate=False) for teacher in TEACHERS]
    assert flops.merge(CONFIG, sleep) == flops.night(
        CONFIG, dataclasses.replace(sleep, alpha=1.0, teachers=told)
    )
    assert sum(flops.merge(CONFIG, sleep).values()) < sum(flops.night(CONFIG, sleep).values())
