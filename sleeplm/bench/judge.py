"""What a judge of meaning costs: ``python -m sleeplm.bench.judge [D]``.

Extractions of a night with imitation, of a learner of the bench's size (or D wide), judged by
equality and by the sentence encoder. They take turns, so that whatever else runs here slows both
alike. Twice: every text is different (a learner that knows nothing), and student and teacher say
the same.
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

from sleeplm.bench.presets import bench, night
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
    print(f"D = {config.model.d_model}: {rows.size} continuations an extraction")
    ways = {name: _extraction(model, config.sleep, batch, judges[name]) for name in judges}
    for title, temperature in (("all texts differ", 1.0), ("all texts agree", 0.0)):
        seconds = interleaved(ways, state, temperature)
        exact, ours = (float(np.median(seconds[name])) for name in judges)
        print(
            f"{title}: exact {exact:.3f} s, minilm {ours:.3f} s (medians of {ROUNDS}): "
            f"{ours / exact:.2f} times"
        )
    _alone(encoder, judges["minilm"], tokenizer.decode_batch, rows.size, config)


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


def interleaved(
    ways: dict[str, Callable], state: State, temperature: float
) -> dict[str, list[float]]:
    """Seconds of every way, turn by turn; the first turn compiles and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, run in ways.items():
            began = time.perf_counter()
            jax.block_until_ready(run(state, jax.random.key(turn), temperature))
            if turn:
                seconds[name].append(time.perf_counter() - began)
            elif temperature:
                print(f"  {name}: compiled and run in {time.perf_counter() - began:.1f} s")
    return seconds


def _alone(
    encoder: SentenceEncoder, judge: Judge, decode: Callable, rows: int, config: Any
) -> None:
    """The judge on random rows, eight for each reference, and the part of it on the host."""
    random, length = np.random.default_rng(0), config.sleep.length
    shape = (rows // config.sleep.group, length)
    told = np.repeat(random.integers(3, config.model.vocab_size, shape), config.sleep.group, 0)
    own = random.integers(3, config.model.vocab_size, (rows, length))
    mask = np.ones((rows, length), bool)
    run = jax.jit(lambda judge, *x: judge({}, *x))
    whole, host = [], []
    for turn in range(ROUNDS + 1):
        began = time.perf_counter()
        jax.block_until_ready(run(judge, own, mask, told, mask))
        whole.append(time.perf_counter() - began)
        began = time.perf_counter()
        encoder.pieces(decode([*own.tolist(), *told[:: config.sleep.group].tolist()]))
        host.append(time.perf_counter() - began)
        if not turn:
            whole, host = [], []
    print(
        f"the judge alone, all texts different: {np.median(whole):.3f} s, of which texts and word "
        f"pieces on the host {np.median(host):.4f} s"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
