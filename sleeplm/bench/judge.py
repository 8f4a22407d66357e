"""What a judge of meaning costs: ``python -m sleeplm.bench.judge [D]``.

Extractions of a night with imitation, of a learner of the bench's size (or D wide), judged by
equality and by the sentence encoder. They take turns, so that whatever else runs here slows both
alike. Twice: every text is different (a learner that knows nothing), and student and teacher say
the same.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sleeplm.bench.presets import bench, night
from sleeplm.bench.turns import in_turns
from sleeplm.core.types import Array, State
from sleeplm.data.atlas import atlas
from sleeplm.data.facts import statements
from sleeplm.data.text import train_tokenizer
from sleeplm.methods.judges import SemanticJudge, semantic_judge
from sleeplm.methods.learner import learner
from sleeplm.methods.rewards import Judge, exact_match_judge
from sleeplm.methods.sleep import teachings
from sleeplm.models.encoder import SentenceEncoder
from sleeplm.models.transformer import Model
from sleeplm.pretrained.minilm import minilm

ROUNDS = 5


def main(width: int = 0) -> None:
    """Prints seconds of an extraction by judge, their ratio, and of the judge alone."""
    config = bench(sleep=night(alpha=0.9, pack=0))
    if width:
        heads = max(width // 64, 1)
        wide: Any = {"d_model": width, "n_heads": heads, "n_kv_heads": heads}
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, **wide))
    world = atlas(0, 1, 60)
    tokenizer = train_tokenizer(statements(world, world.facts), config.model.vocab_size)
    model, encoder = Model(config.model), minilm()
    life = learner(model, dataclasses.replace(config.sleep, alpha=1.0))
    state = jax.jit(lambda key: life.init(model.init(key), key))(jax.random.key(0))
    rows = np.arange(config.sleep.inner * config.sleep.rows, dtype=np.int32)
    batch = {
        "rows": jnp.asarray(rows.reshape(config.sleep.inner, -1)),
        "today": jnp.int32(0),
    }
    judges = {
        "exact": exact_match_judge(eos=2),
        "minilm": semantic_judge(encoder, tokenizer.decode_batch),
    }
    print(
        f"{jax.devices()[0].device_kind}, D = {config.model.d_model}: {rows.size} continuations an "
        "extraction"
    )
    ways = {name: _extraction(model, config.sleep, batch, judges[name]) for name in judges}
    alone, host = _alone(encoder, judges["minilm"], tokenizer.decode_batch, rows.size, config)
    for title, temperature in (("all texts differ", 1.0), ("all texts agree", 0.0)):
        times = in_turns(
            {name: _turns(run, state, temperature) for name, run in ways.items()}, ROUNDS
        )
        exact, ours = (times[name].median for name in judges)
        print(
            f"{title}: exact {exact:.3f} s, minilm {ours:.3f} s (medians of {ROUNDS}): "
            f"{ours / exact:.2f} times, {1e3 * (ours - exact):.1f} ms more"
        )
        if temperature:
            compiled = (f"{name} {own.first:.1f} s" for name, own in times.items())
            print(f"  compiled and run: {', '.join(compiled)}")
    print(
        f"the judge alone, all texts different: {1e3 * alone:.1f} ms, of which texts and word "
        f"pieces on the host {1e3 * host:.1f} ms"
    )


def _extraction(model: Model, sleep: Any, batch: Any, judge: Judge) -> Callable:
    sender, receiver = (level.name for level in model.config.levels)

    def run(state: State, batch: Any, key: Array, temperature: Any):
        asked = dataclasses.replace(sleep, temperature=temperature)
        extract = teachings(model, asked, (sender, receiver), sleep.teachers, None)
        return extract.extract(state.variables, extract.init(state.params, key), batch, key)[0]

    compiled = jax.jit(run)
    if isinstance(judge, SemanticJudge):
        batch = {**batch, "judge": judge}
    return lambda state, *rest: compiled(state, batch, *rest)


def _turns(run: Callable, state: State, temperature: float) -> Callable[[], Any]:
    """The same with other keys at every turn: tokenizers remember words that they have met."""
    keys = map(jax.random.key, itertools.count())
    return lambda: run(state, next(keys), temperature)


def _alone(
    encoder: SentenceEncoder, judge: Judge, decode: Callable, rows: int, config: Any
) -> tuple[float, float]:
    """Seconds of the judge on random rows, eight for each reference; of its part on the host."""
    random, length = np.random.default_rng(0), config.sleep.length
    shape = (rows // config.sleep.group, length)
    told = np.repeat(random.integers(3, config.model.vocab_size, shape), config.sleep.group, 0)
    own = random.integers(3, config.model.vocab_size, (rows, length))
    mask = np.ones((rows, length), bool)
    run = jax.jit(lambda judge, *x: judge({}, *x))
    ways: dict[str, Callable[[], Any]] = {
        "whole": lambda: run(judge, own, mask, told, mask),
        "host": lambda: bool(
            encoder.pieces(decode([*own.tolist(), *told[:: config.sleep.group].tolist()]))
        ),
    }
    times = in_turns(ways, ROUNDS)
    return times["whole"].median, times["host"].median


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
