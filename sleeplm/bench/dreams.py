"""Trials of dreams at once against one after the other: ``python -m sleeplm.bench.dreams``.

    python -m sleeplm.bench.dreams                       # 60 trials, as the paper has dreams
    python -m sleeplm.bench.dreams --trials 8 --width 64 --rounds 1

Every dream is tried by a LoRA copy of its own, of a learner of the bench's size (or ``--width``
wide). Three ways take turns, so that whatever else runs here slows all alike: all trials as one
batch; a compiled loop over trials; and a Python loop over one compiled trial. The first turn
compiles and is told apart. Bytes of one more dream are what it keeps, from shapes, and what the
compiled batch says it needs beside that.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sleeplm.bench.presets import bench
from sleeplm.bench.turns import in_turns
from sleeplm.core import checks, tree
from sleeplm.core.types import Array, Memory, Variables
from sleeplm.methods.dreams.trials import attempt, attempts, begin, sharing_experts
from sleeplm.methods.dreams.write import Contexts, whole
from sleeplm.methods.objectives import language_model
from sleeplm.models.transformer import Model


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints seconds of each way, their ratios, and bytes of one more dream."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    for name, value in (("trials", 60), ("length", 32), ("rank", 8), ("steps", 8), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--width", type=int, default=0, help="D of the model; 0: the bench's")
    options = parser.parse_args(arguments)
    for name in ("trials", "length", "rank", "steps", "rounds"):
        checks.positive_integer(f"--{name}", getattr(options, name))
    checks.at_least("--width", options.width, 0)
    model = Model(_sized(options.width))
    variables = {"params": model.init(jax.random.key(0)), "slots": model.init_slots()}
    memory, keys = texts(model, options.trials, options.length)
    how = {"rank": options.rank, "steps": options.steps}
    print(
        f"{jax.devices()[0].device_kind}, {tree.size(variables['params']) / 1e6:.2f}M parameters, "
        f"{options.trials} trials of {options.length} tokens, {options.steps} steps, rank "
        f"{options.rank}"
    )
    times = in_turns(ways(model, variables, memory, keys, **how), options.rounds)
    batch = times["one batch"]
    for name, own in times.items():
        print(
            f"  {name:34} {own.median:8.3f} s, {own.median / batch.median:.2f} x; "
            f"with compilation {own.first:.3f} s, {own.first / batch.first:.2f} x"
        )
    kept, beside = bytes_of_one_more(model, variables, memory, keys, **how)
    whole_model = tree.nbytes(variables["params"])
    print(
        f"  one more dream keeps {kept:,} bytes (adapters and moments; the model has "
        f"{whole_model:,})" + ("" if beside is None else f" and needs {beside:,} while it learns")
    )


def _sized(width: int) -> Any:
    config = bench().model
    if not width:
        return config
    heads = max(width // 64, 1)
    return dataclasses.replace(config, d_model=width, n_heads=heads, n_kv_heads=heads)


def texts(model: Model, trials: int, length: int) -> tuple[Memory, Array]:
    """Random dreams [T, 1, L], and the trials' keys [T]."""
    shape = (trials, length)
    tokens = np.random.default_rng(0).integers(3, model.config.vocab_size, shape, np.int32)
    memory = whole(Contexts(jnp.asarray(tokens), jnp.full(trials, length)))
    return jax.tree.map(lambda x: x[:, None], memory), jax.random.split(jax.random.key(1), trials)


def ways(
    model: Model, variables: Variables, memory: Memory, keys: Array, *, rank: int, steps: int
) -> dict[str, Callable[[], Any]]:
    """The same trials in three ways."""
    objective, update = language_model(sharing_experts(model)), optax.adam(1e-3)
    make = functools.partial(attempts, objective, update, rank=rank, steps=steps)
    at_once, in_loop = jax.jit(make()), jax.jit(make(at_once=1))
    one = jax.jit(attempt(objective, update, rank=rank, steps=steps))
    each = [jax.tree.map(lambda x, i=i: x[i], memory) for i in range(len(keys))]
    return {
        "one batch": lambda: at_once(variables, memory, keys),
        "a compiled loop": lambda: in_loop(variables, memory, keys),
        "a loop over one compiled trial": lambda: [
            one(variables, row, key) for row, key in zip(each, keys, strict=True)
        ],
    }


def bytes_of_one_more(
    model: Model, variables: Variables, memory: Memory, keys: Array, *, rank: int, steps: int
) -> tuple[int, int | None]:
    """Bytes that one more dream keeps, and what else the compiled batch needs for it.

    The second is the difference of two batches' temporary memory, as the compiler reports it;
    None where it does not.
    """
    objective, update = language_model(sharing_experts(model)), optax.adam(1e-3)
    kept = jax.eval_shape(lambda p, k: begin(p, update, rank, k), variables["params"], keys[0])
    tries = jax.jit(attempts(objective, update, rank=rank, steps=steps))
    half = len(keys) // 2

    def needed(count: int) -> int | None:
        some = jax.tree.map(lambda x: x[:count], (memory, keys))
        found = tries.lower(variables, *some).compile().memory_analysis()
        return getattr(found, "temp_size_in_bytes", None)

    few, many = (needed(count) for count in (half, len(keys))) if half else (None, None)
    more = None if few is None or many is None else (many - few) // (len(keys) - half)
    return tree.nbytes(kept), more


if __name__ == "__main__":
    main()
