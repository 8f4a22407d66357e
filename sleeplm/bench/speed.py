"""How learners are best run side by side on this machine: ``python -m sleeplm.bench.speed [E]``.

Wake steps and a stretch of a night of E learners (5), of the bench's own size, as one batch and one
after the other. Both programs take turns, so that whatever else runs here slows both alike.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sleeplm.bench.presets import bench, night
from sleeplm.bench.turns import in_turns
from sleeplm.core.phase import Phase, repeat
from sleeplm.core.side_by_side import for_each
from sleeplm.core.types import PyTree, State
from sleeplm.methods.learner import learner
from sleeplm.models.transformer import Model

ROUNDS, STEPS = 7, 5


def main(learners: int = 5) -> None:
    """Prints the seconds of both, and their ratio."""
    config = bench(sleep=night(updates=12, inner=6, epochs=1))
    model = Model(config.model)
    life = learner(model, config.sleep)

    def born(key: jax.Array) -> State:
        return life.init(model.init(key), key)

    state = jax.jit(jax.vmap(born))(jax.random.split(jax.random.key(0), learners))
    shape = (learners, STEPS, config.day.batch, config.day.length)
    tokens = np.random.default_rng(0).integers(3, config.model.vocab_size, shape, np.int32)
    text = {"tokens": jnp.asarray(tokens), "segments": jnp.ones(shape, jnp.int32)}
    inner, each = config.sleep.inner, config.sleep.rows
    rows = jnp.arange(inner * each, dtype=jnp.int32).reshape(inner, each)
    rest = {
        "rows": jnp.broadcast_to(rows, (learners, inner, each)),
        "today": jnp.zeros(learners, jnp.int32),
    }
    awake = repeat(STEPS, Phase(lambda params, key: (), life.wake)).step
    for name, step, batch in (("awake", awake, text), ("asleep", life.rests[0].seed, rest)):
        compare(name, step, state, batch)


def compare(name: str, step: Callable, state: State, batch: PyTree) -> None:
    """Times a step of all learners in both ways, turn by turn."""
    ways = {
        label: jax.jit(for_each(lambda s, b: step(s, b, jax.random.key(1)), batched))
        for label, batched in (("one batch", True), ("one by one", False))
    }
    runs = {label: functools.partial(run, state, batch) for label, run in ways.items()}
    batch_median, single_median = (times.median for times in in_turns(runs, ROUNDS).values())
    print(
        f"{name}: one batch {batch_median:.3f} s, one by one {single_median:.3f} s (medians of "
        f"{ROUNDS}): one by one takes {single_median / batch_median:.2f} of the time"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
