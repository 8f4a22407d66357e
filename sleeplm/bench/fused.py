"""What one program for N settings saves: ``python -m sleeplm.bench.fused [N [ROUNDS]]``.

Wake steps and nights of a tiny learner with N learning rates, shares of rollouts and weights of
imitation: all side by side in one program (fused), and one program after another with the numbers
as constants (apart). Both take turns, so that whatever else runs here slows both alike; nothing
compiled is kept from one turn to the next.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sleeplm.core.phase import Phase, repeat
from sleeplm.core.side_by_side import for_each
from sleeplm.core.types import PyTree, State
from sleeplm.memory.levels import LevelConfig
from sleeplm.methods.config import SleepConfig, evening
from sleeplm.methods.learner import Learner, learner
from sleeplm.methods.settings import replaced, tuned_learner, with_settings
from sleeplm.models.config import ModelConfig
from sleeplm.models.transformer import Model

STEPS, BATCH, LENGTH = 20, 8, 32
#: What varies, and between which values.
RANGES = {
    "model.levels[0].learning_rate": (1e-3, 1e-2),
    "sleep.learning_rate": (1e-3, 3e-2),
    "sleep.lam": (0.2, 0.8),
    "sleep.alpha": (0.5, 0.9),
}


@dataclasses.dataclass
class Life:
    """A model and its nights."""

    model: ModelConfig
    sleep: SleepConfig


def tiny() -> Life:
    """A learner of a few thousand parameters, with rollouts and imitation."""
    fast = LevelConfig("fast", kind="graft", width=16, period=1, night=STEPS)
    slow = LevelConfig("slow", width=64, slots=4, rank=4, top_k=2)
    shape: dict[str, Any] = {
        "vocab_size": 256,
        "d_model": 32,
        "n_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 1,
    }
    sleep = evening(updates=8, inner=4, epochs=1, rows=8, length=24, lam=0.5, alpha=0.5)
    return Life(ModelConfig(**shape, levels=[fast, slow]), sleep)


def build(config: Life) -> Learner:
    """The learner of a configuration."""
    return learner(Model(config.model), config.sleep)


def day_and_night(made: Learner, sleep: SleepConfig) -> Callable[[State, PyTree], PyTree]:
    """Some wake steps and a short night of one learner."""
    rows = jnp.arange(sleep.inner * sleep.rows, dtype=jnp.int32).reshape(sleep.inner, sleep.rows)
    night = {"rows": rows, "today": jnp.int32(0)}
    (rest,) = made.rests

    def live(state: State, text: PyTree) -> PyTree:
        awake = repeat(STEPS, Phase(lambda params, key: (), made.wake))
        state, _ = awake.step(state, text, state.key)
        state, _ = rest.begin(state, night, state.key)

        def block(state: State, i: jax.Array):
            return rest.seed(state, night, jax.random.fold_in(state.key, i))

        state, metrics = jax.lax.scan(block, state, jnp.arange(sleep.blocks))
        state, _ = rest.end(state, night, state.key)
        return state.params, metrics["loss"]

    return live


def main(settings: int = 8, rounds: int = 3) -> None:
    """Prints the seconds of both, compilation included, their ratio, and how far results differ."""
    config, random = tiny(), np.random.default_rng(0)
    values = {name: np.linspace(*ends, settings, dtype=np.float32) for name, ends in RANGES.items()}
    tuned = tuned_learner(build, config, RANGES)
    state = jax.jit(tuned.init)(Model(config.model).init(jax.random.key(0)), jax.random.key(1))
    states = jax.jit(jax.vmap(lambda own: with_settings(state, own)))(values)
    tokens = random.integers(3, config.model.vocab_size, (STEPS, BATCH, LENGTH), np.int32)
    text = {"tokens": jnp.asarray(tokens), "segments": jnp.ones(tokens.shape, jnp.int32)}
    texts = jax.tree.map(lambda x: jnp.stack([x] * settings), text)
    plain = jax.jit(build(config).init)(
        Model(config.model).init(jax.random.key(0)), jax.random.key(1)
    )

    def fused() -> Any:
        return jax.jit(for_each(day_and_night(tuned, config.sleep)))(states, texts)

    def apart() -> Any:
        found = []
        for e in range(settings):
            own = replaced(config, {name: float(x[e]) for name, x in values.items()})
            found.append(jax.jit(day_and_night(build(own), own.sleep))(plain, text))
        return jax.tree.map(lambda *x: jnp.stack(x), *found)

    jax.config.update("jax_enable_compilation_cache", False)
    ways: dict[str, Callable[[], Any]] = {"fused": fused, "apart": apart}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        found = {}
        for name, run in ways.items():
            jax.clear_caches()
            began = time.perf_counter()
            found[name] = jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - began)
        gaps = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), found["fused"], found["apart"])
        gap = max(float(x) for x in jax.tree.leaves(gaps))
        took = ", ".join(f"{name} {times[-1]:.1f} s" for name, times in seconds.items())
        print(f"turn {turn + 1}/{rounds}: {took}; largest difference {gap:.1e}", flush=True)
    together, one_by_one = (float(np.median(times)) for times in seconds.values())
    print(
        f"{settings} settings, compilation included (medians of {rounds}): fused {together:.1f} s, "
        f"apart {one_by_one:.1f} s: {one_by_one / together:.1f} times as long"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
