"""What dreaming costs: against what the compiler counts, and against what a night really writes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.bench import dreamflops, flops, handover
from sleeplm.bench.arms import PARTLY, build_arm
from sleeplm.bench.costs import Reading
from sleeplm.bench.lives import learners_of
from sleeplm.bench.material import prepare
from sleeplm.core import tree
from sleeplm.core.errors import ConfigError
from sleeplm.memory.levels import LevelConfig
from sleeplm.methods import extract, frames
from sleeplm.methods.adapters import beside, fresh_adapters
from sleeplm.methods.config import TeacherConfig
from sleeplm.methods.dreams import rounds, write
from sleeplm.methods.dreams.config import SCORES, DreamConfig
from sleeplm.methods.dreams.rounds import in_bases
from sleeplm.methods.dreams.select import score
from sleeplm.methods.dreams.write import Contexts, whole
from sleeplm.methods.objectives import language_model
from sleeplm.methods.schedule import ScheduleConfig
from sleeplm.models.config import ModelConfig
from sleeplm.models.decode import generate
from sleeplm.models.transformer import Model

#: Straight-line code (the compiler counts a loop once), and experts that are gathered.
CONFIG = ModelConfig(
    **{"vocab_size": 128, "d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2},
    max_len=32,
    dispatch="gather",
    levels=[
        LevelConfig(name="fast", kind="graft", width=64, period=1, night=4),
        LevelConfig(name="slow", width=128, slots=4, rank=8, top_k=2),
    ],
)
ROWS, LENGTH, RANK = 4, 16, 8
DREAM = DreamConfig(
    **{"dreams": 6, "context_tokens": 8, "new_tokens": 4, "contexts": 5, "keep": 2, "extra": 1},
    **{"memories": 3, "steps": 2, "updates": 6, "inner": 2, "rows": 2, "gate": 7, "rounds": 3},
)


def gradient_flops(of) -> float:
    """What the compiler counts for the loss of a batch, and its gradient by ``of(params)``."""
    model = Model(CONFIG)
    memory = whole(Contexts(jnp.ones((ROWS, LENGTH), jnp.int32), jnp.full((ROWS,), LENGTH)))

    def gradients(params, chosen):
        _, put = of(params)  # drawing adapters is not learning them

        def loss(chosen):
            variables = {"params": params, "slots": model.init_slots()}
            return language_model(model)(put(variables, chosen), memory)[0]

        return jax.value_and_grad(loss)(chosen)

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    chosen = jax.eval_shape(lambda params: of(params)[0], shapes)
    return jax.jit(gradients).lower(shapes, chosen).compile().cost_analysis()["flops"]


def test_adapters_beside_their_matrices_cost_what_the_compiler_counts():
    def of(params):
        return fresh_adapters(params, RANK, jax.random.key(0)), beside

    token = dreamflops.adapters(CONFIG, LENGTH, RANK)
    assert ROWS * LENGTH * token == pytest.approx(gradient_flops(of), rel=0.1)


def test_the_gradients_that_dreams_are_selected_by_cost_what_the_compiler_counts():
    def of(params):
        chosen, rest = tree.split(params, in_bases)
        return chosen, lambda variables, mine: {**variables, "params": tree.merge(mine, rest)}

    token = flops.train(CONFIG, LENGTH, "mlps")
    assert ROWS * LENGTH * token == pytest.approx(gradient_flops(of), rel=0.1)


def test_what_is_written_in_a_night_of_dreams_is_what_its_steps_write(tiny, monkeypatch):
    teachers = [TeacherConfig("dusk", "today", times=2), TeacherConfig("dawn", "past", framed=True)]
    sleep, model = tiny.config(teachers=teachers, alpha=1.0), tiny.model()
    written = []

    def counting(model, variables, prompts, *rest, max_new, **named):
        written.append(len(prompts) * flops.decode(model.config, prompts.shape[1], max_new))
        return generate(model, variables, prompts, *rest, max_new=max_new, **named)

    for module in (rounds, write, extract, frames):
        monkeypatch.setattr(module, "generate", counting)
    made, state = tiny.learner(model, sleep, dream=DREAM)
    contexts = {"tokens": np.ones((5, 8), np.int32), "length": np.full(5, 8)}
    batch = {"contexts": contexts, "round": np.int32(0), "today": np.int32(1)}
    batch["rows"] = np.arange(4, dtype=np.int32).reshape(2, 2)

    def writes(step) -> float:
        written.clear()
        jax.eval_shape(step, state, batch, jax.random.key(0))  # only traced
        return sum(written)

    costs = dreamflops.a_round(model.config, sleep, DREAM)
    assert costs["dreamt"] == pytest.approx(writes(made.dreaming.round))
    costs = dreamflops.absorbing(model.config, sleep, DREAM)
    assert costs["dreamt"] == pytest.approx(writes(made.dreaming.absorb))
    width = sleep.cue_tokens + sleep.length - 1
    read = 2 * DREAM.gate * width * flops.forward(model.config, width)
    costs = dreamflops.gate(model.config, sleep, DREAM)
    assert costs["gated"] - read == pytest.approx(writes(made.dreaming.end))


@pytest.mark.parametrize("compare", [0, 2])
@pytest.mark.parametrize("kind", SCORES)
def test_every_pass_that_takes_dreams_gradients_is_counted(tiny, monkeypatch, kind, compare):
    """Those that only compare scores too: each score that is asked for, and no score twice."""
    dream, sleep = dataclasses.replace(DREAM, score=kind, compare=compare), tiny.config(alpha=1.0)
    model, asked, counted = tiny.model(), [], []

    def counting(kind, objective, variables, memory, key, *, reference, **named):
        asked.append(kind)
        rows = {"random": [], "norm": [memory], "alignment": [memory, reference]}[kind]
        for row in rows:
            token = flops.train(model.config, row.tokens.shape[-1], "mlps")
            counted.append(row.tokens.size * token)
        return score(kind, objective, variables, memory, key, reference=reference, **named)

    monkeypatch.setattr(rounds, "score", counting)
    made, state = tiny.learner(model, sleep, dream=dream)
    contexts = {"tokens": np.ones((5, 8), np.int32), "length": np.full(5, 8)}
    batch = {"contexts": contexts, "round": np.int32(0), "today": np.int32(1)}
    jax.eval_shape(made.dreaming.round, state, batch, jax.random.key(0))  # only traced
    assert sorted(asked) == sorted(SCORES if compare else [kind])
    selected = dreamflops.a_round(model.config, sleep, dream).get("selected", 0.0)
    assert selected == pytest.approx(sum(counted)) and bool(counted) == (asked != ["random"])


def test_a_night_is_its_rounds_what_is_absorbed_and_the_gate(tiny):
    sleep = tiny.config(alpha=1.0)
    whole_night = dreamflops.night(CONFIG, sleep, DREAM)
    a_round, absorbing = (
        f(CONFIG, sleep, DREAM) for f in (dreamflops.a_round, dreamflops.absorbing)
    )
    assert whole_night["tried"] == 3 * a_round["tried"]
    assert whole_night["dreamt"] == pytest.approx(3 * (a_round["dreamt"] + absorbing["dreamt"]))
    pieces = dreamflops.night(CONFIG, sleep, dataclasses.replace(DREAM, writer_rows=2))
    again = DREAM.rounds * DREAM.writer_epochs * DREAM.kept * DREAM.width
    again *= flops.forward(CONFIG, DREAM.width)
    assert pieces["reinforced"] - whole_night["reinforced"] == pytest.approx(again)
    without = dataclasses.replace(DREAM, score="random", reinforce=False)
    assert {"selected", "reinforced"}.isdisjoint(dreamflops.night(CONFIG, sleep, without))
    alone = dreamflops.absorbing(CONFIG, sleep, dataclasses.replace(DREAM, past=0.0))
    assert alone["dreamt"] == 0 and alone["absorbed"] < absorbing["absorbed"] / 3


@pytest.fixture(scope="module")
def reading(brief):
    """Who reads what, in a run whose nights are long beside its dreams' questions."""
    sleep = {"updates": 48, "inner": 2, "learning_rate": 1e-3}
    config = brief.config(dream=DREAM, sleep=sleep, seeds=2)
    learners = learners_of(config)
    return Reading(config, learners, [prepare(one) for one in learners])


@pytest.mark.parametrize("reward", ["agreement", "questions"])
def test_the_control_without_dreams_costs_as_much_as_sleep_with_them(reading, reward):
    """Also where questions are read for every trial: as long ones as the days ask at most."""
    dream = dataclasses.replace(DREAM, reward=reward)
    config = dataclasses.replace(reading.config, dream=dream)
    usual = sum(flops.night(config.model, config.sleep).values())
    dreams = sum(dreamflops.night(config.model, config.sleep, dream, longest(reading)).values())
    longer = build_arm("sleep_longer", config, 0, dataclasses.replace(reading, config=config))
    assert longer.dream is None
    cost = sum(flops.night(config.model, longer.sleep).values())
    one_extraction = usual / config.sleep.blocks
    assert cost == pytest.approx(usual + dreams, abs=one_extraction / 2)
    assert longer.sleep.updates > config.sleep.updates
    own = {"updates": longer.sleep.updates, "merge_updates": config.sleep.updates}
    assert vars(longer.sleep) == {**vars(config.sleep), **own}
    if reward == "questions":  # or nothing would be held: reading them is most of what dreams cost
        unread = dreams - DREAM.rounds * read_for_rewards(config.model, *longest(reading))
        assert cost > usual + unread + one_extraction


@pytest.mark.parametrize("name", PARTLY)
@pytest.mark.parametrize("reward", ["agreement", "questions"])
def test_dreams_that_lack_a_part_have_what_it_costs_in_longer_nights(reading, name, reward):
    """If they are to cost as much as whole ones; else their nights are the usual ones."""
    dream = dataclasses.replace(DREAM, reward=reward, reinforce=True, writer_rank=4)
    config = dataclasses.replace(
        reading.config, dream=dream, schedule=ScheduleConfig(when="day_end")
    )

    def built(name, **settings):
        own = dataclasses.replace(config, **settings)
        arm = build_arm(name, own, 0, dataclasses.replace(reading, config=own))
        question = (0, 0) if reward == "agreement" else longest(reading)
        night = sum(flops.night(config.model, arm.sleep).values())
        return (
            arm,
            night,
            sum(dreamflops.night(config.model, arm.sleep, arm.dream, question).values()),
        )

    one_extraction = sum(flops.night(config.model, config.sleep).values()) / config.sleep.blocks
    whole, night, dreams = built("dream")
    less, as_long, fewer = built(name)
    assert less.sleep == whole.sleep and as_long == night
    assert fewer < dreams or name == "dream_no_explore"
    equal, longer, the_same = built(name, equal_flops=True)
    assert the_same == fewer and equal.dream == less.dream
    assert longer + fewer == pytest.approx(night + dreams, abs=one_extraction / 2)
    more = equal.sleep.updates - config.sleep.updates
    assert equal.instead == pytest.approx(more / equal.sleep.updates)
    assert (more > 0) == (dreams - fewer > one_extraction / 2)


def longest(reading) -> tuple[int, int]:
    """The most tokens of a training question of any day with the begin of text, and of an answer
    with its end; found one by one."""
    prompts, answers = [], []
    for material in reading.materials:
        for document in (d for day in material.curriculum.days for d in day if d.prompt):
            prompt, whole = material.tokenizer.encode_batch([document.prompt, document.text])
            prompts.append(1 + len(prompt))
            answers.append(len(whole) - len(prompt) + 1)
    return max(prompts), max(answers)


def read_for_rewards(model, prompt: int, answer: int) -> float:
    """By the unchanged learner and by every trial: all questions, and logits of answers alone."""
    hidden = (prompt + answer) * flops.forward(model, prompt + answer, logits=False)
    logits = answer * 2 * model.d_model * model.vocab_size
    return (1 + DREAM.kept) * DREAM.questions * (hidden + logits)


def test_what_questions_cost_is_not_told_without_their_length(reading):
    config = dataclasses.replace(
        reading.config, dream=dataclasses.replace(DREAM, reward="questions")
    )
    with pytest.raises(ConfigError, match=r"^question = \(0, 0\): dreams are rewarded by quest"):
        build_arm("sleep_longer", config, classes=0)
    assert build_arm("sleep", config, classes=0)  # others do not ask


def test_an_exported_control_has_as_long_nights_as_the_one_that_lived(reading):
    config = dataclasses.replace(
        reading.config, dream=dataclasses.replace(DREAM, reward="questions")
    )
    lived = build_arm("sleep_longer", config, 0, dataclasses.replace(reading, config=config))
    again = build_arm("sleep_longer", config, 0, handover._reading("sleep_longer", config))
    assert again.sleep == lived.sleep
    assert handover._reading("sleep", config) is None
