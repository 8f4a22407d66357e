"""The seven laws, for the phases of this library; and that a phase which breaks one is caught."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

from sleeplm import testing
from sleeplm.core.phase import from_function
from sleeplm.memory.levels import get_level, with_levels
from sleeplm.methods.config import evening
from sleeplm.methods.sleep import sleep
from sleeplm.methods.wake import wake

#: What neither wake nor sleep may touch: the backbone and the slow level's own MLP.
STILL = [
    "params/(embed|final_norm|blocks/attn)",
    "params/blocks/levels/slow/(base|norm)",
    "cues",
    "key",
]


@pytest.mark.slow
def test_wake_keeps_the_laws(tiny, tmp_path):
    model = tiny.model(
        [
            tiny.level("fast", kind="graft", period=1),
            tiny.level("middle", kind="graft", period=2, optimizer="sgd"),
            tiny.level("slow"),
        ]
    )
    state = tiny.learner(model, tiny.config())[1]
    testing.check_laws(
        lambda axis_name=None: wake(model, chunk=8, axis_name=axis_name),
        state,
        tiny.texts(4),
        directory=tmp_path,
        frozen=[*STILL, "slots"],
    )


def after_a_day(tiny, model, config):
    """A learner whose sender is no longer what it was at the start."""
    state = tiny.learner(model, config)[1]
    moved = jax.tree.map(lambda x: x * 1.5, get_level(state.params, "fast"))
    return state.replace(params=with_levels(state.params, {"fast": moved}))


def night_config(tiny):
    # Plain gradient descent: Adam would blow rounding noise up to a full step.
    return tiny.config(evening, optimizer="sgd", learning_rate=0.5, alpha=0.5, length=7)


def other_slots(state):
    """Slow's experts, but for the first free slot."""
    slow = get_level(state.params, "slow")
    return {
        "experts": jax.tree.map(lambda x: x[:, 1:], slow["experts"]),
        "w": slow["router"]["w"][:, :, 1:],
        "bias": slow["router"]["bias"][:, 1:],
    }


@pytest.mark.slow
def test_a_whole_night_with_its_whole_objective_keeps_the_laws(tiny, tmp_path):
    """Begin, extractions with rollouts and imitation, updates, end: all that a night is.

    But for law 4, about ``chain``: two whole nights in one program take a minute to compile.
    """
    model, config = tiny.model(), night_config(tiny)
    state = after_a_day(tiny, model, config)
    batches = [tiny.rows(config, first=i) for i in range(3)]

    def make(axis_name=None):
        return sleep(model, config, "fast", "slow", axis_name=axis_name)

    shared = functools.cache(make)
    testing.jitted_equals_eager(shared, state, batches[:1])
    testing.traces_once(shared, state, batches)
    testing.parallel_forms_agree(shared, state, batches[:2])
    testing.resumes_bit_identical(make, state, batches, tmp_path)
    testing.frozen_stay_frozen(shared, state, batches, STILL)
    testing.frozen_stay_frozen(shared, state, batches[:1], other_slots)  # a night, a slot
    testing.vmapped_seeds_equal_a_loop(shared, state, batches[0])


# --- phases that break a law are caught ----------------------------------------------------------


def embed(state, change):
    return state.replace(params={**state.params, "embed": state.params["embed"] + change})


def mean_over_local_rows(axis_name=None):
    """Forgets to sum over devices."""

    def step(state, batch, key):
        return embed(state, batch["tokens"].mean(dtype=jnp.float32)), {}

    return from_function(step)


def sums_over_devices(axis_name=None):
    def step(state, batch, key):
        total = batch["tokens"].sum().astype(jnp.float32)
        return embed(state, total if axis_name is None else jax.lax.psum(total, axis_name)), {}

    return from_function(step)


def changes_type(axis_name=None):
    def step(state, batch, key):
        counters = {**state.counters, "step": state.counters["step"] * 1.0}
        return state.replace(counters=counters), {}

    return from_function(step)


def remembers_outside_of_the_state(axis_name=None):
    """Every phase that is built moves by another amount."""
    built.append(1)
    amount = float(len(built))
    return from_function(lambda state, batch, key: (embed(state, amount), {}))


def looks_at_python(axis_name=None):
    def step(state, batch, key):
        traced = isinstance(state.counters["step"], jax.core.Tracer)
        return embed(state, 1.0 if traced else 2.0), {}

    return from_function(step)


def another_function_at_every_trace(axis_name=None):
    return from_function(lambda state, batch, key: (embed(state, jnp.float32(counted())), {}))


built: list[int] = []


def counted():
    built.append(1)
    return len(built)


@pytest.fixture(scope="module")
def lawless(tiny):
    return tiny.learner(tiny.model(), tiny.config())[1], tiny.texts(4)


def test_law_1_catches_a_step_that_asks_whether_it_is_traced(lawless):
    with pytest.raises(AssertionError, match=r"law 1 .*params/embed: .* against .* differ"):
        testing.jitted_equals_eager(looks_at_python, *lawless)


def test_law_2_catches_a_state_that_changes_its_type(lawless):
    with pytest.raises(AssertionError, match=r"law 2 .*2 traces in 4 steps.*counters/step"):
        testing.traces_once(changes_type, *lawless)


def test_law_3_catches_a_phase_that_does_not_sum_over_devices(lawless):
    with pytest.raises((AssertionError, ValueError), match=r"law 3|out_specs"):
        testing.parallel_forms_agree(mean_over_local_rows, *lawless)


def test_law_3_holds_for_a_phase_that_does(lawless):
    testing.parallel_forms_agree(sums_over_devices, *lawless)


def test_law_4_catches_a_phase_whose_steps_are_not_functions(lawless):
    state, batches = lawless
    phase = another_function_at_every_trace()
    with pytest.raises(AssertionError, match="law 4"):
        testing.chain_equals_by_hand(phase, phase, state, batches[0])


def test_law_5_catches_what_is_kept_outside_of_the_state(lawless, tmp_path):
    with pytest.raises(AssertionError, match=r"law 5 .*next steps.*params/embed"):
        testing.resumes_bit_identical(remembers_outside_of_the_state, *lawless, tmp_path)


def test_law_6_catches_what_moves_and_names_that_match_nothing(lawless):
    with pytest.raises(AssertionError, match=r"law 6 .*params/embed"):
        testing.frozen_stay_frozen(sums_over_devices, *lawless, ["params/embed"])
    with pytest.raises(AssertionError, match=r"law 6 .*no leaf matches 'params/embeds'"):
        testing.frozen_stay_frozen(sums_over_devices, *lawless, ["params/embeds"])


def test_law_7_catches_a_step_that_differs_under_vmap(lawless):
    state, batches = lawless
    with pytest.raises(AssertionError, match="law 7"):
        testing.vmapped_seeds_equal_a_loop(another_function_at_every_trace, state, batches[0])
