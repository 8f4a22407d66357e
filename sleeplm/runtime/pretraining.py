"""The backbone of a run: pretrained once for a configuration and its data, then cached."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import shutil
from typing import Any

import jax

from sleeplm.core.errors import CheckpointError
from sleeplm.core.phase import repeat
from sleeplm.core.types import Array, Params
from sleeplm.methods.pretrain import newborn, pretrain
from sleeplm.models.transformer import Model
from sleeplm.runtime.checkpoint import Checkpoints
from sleeplm.runtime.lifecycle import Moment
from sleeplm.runtime.run import Run, Stage
from sleeplm.runtime.streams import DayStreams

STAGE = "pretrain"


def pretrained(run: Run, model: Model, config: Any, material: Any, key: Array) -> Params:
    """Parameters of the backbone: from the cache, or trained now and put there.

    Args:
      config: has ``pretrain`` (:class:`~sleeplm.methods.pretrain.PretrainConfig`), ``seed`` and
        ``cache``.
      material: has ``pretrain``, the documents as lists of tokens.
    """
    init = jax.jit(model.init)
    params = init(key)
    name = cache_key(model, config, material)
    store = pathlib.Path(config.cache).expanduser() / name
    if not run.has(STAGE):
        cached = _read(store, params, run)
        if cached is not None:
            run.say(f"pretrained backbone found in {store}")
            return cached
    phase = pretrain(model, config.pretrain)
    settings = config.pretrain
    stream = DayStreams([material.pretrain], settings.batch, settings.length, config.seed)
    step = jax.jit(repeat(settings.chunk, phase).step, donate_argnums=0)

    def moment(done: int) -> Moment:
        def train(state):
            batch = stream.take(0, settings.chunk)
            return step(state, batch, jax.random.fold_in(state.key, done))

        label = f"step {done + settings.chunk}/{settings.steps}"
        return Moment(label, {"event": "pretrain", "step": done + settings.chunk}, train)

    agenda = [moment(done) for done in range(0, settings.steps, settings.chunk)]
    # Buffers are donated from step to step: what is in ``params`` must not be.
    state = run.stage(Stage(STAGE, lambda: newborn(model, phase, init(key), key), agenda, stream))
    _write(store, state.params, run)
    return state.params


def cache_key(model: Model, config: Any, material: Any) -> str:
    """Hash of everything that the pretrained parameters depend on."""
    content = {
        "model": dataclasses.asdict(model.config),
        "pretrain": dataclasses.asdict(config.pretrain),
        "seed": config.seed,
        "documents": hashlib.sha256(json.dumps(material.pretrain).encode()).hexdigest(),
        "jax": jax.__version__,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _read(store: pathlib.Path, like: Params, run: Run) -> Params | None:
    if not store.exists():
        return None
    try:
        with Checkpoints(store, warn=run.say) as checkpoints:
            return checkpoints.restore(like).learner if checkpoints.steps() else None
    except CheckpointError as error:
        run.say(f"the cached backbone cannot be used, it is trained again: {error}")
        shutil.rmtree(store, ignore_errors=True)
        return None


def _write(store: pathlib.Path, params: Params, run: Run) -> None:
    """Keeps the backbone for other runs; this one goes on if that is not possible."""
    try:
        with Checkpoints(store, keep=1, asynchronous=False) as checkpoints:
            if not checkpoints.steps():
                checkpoints.save(0, params, None, {"kind": "pretrained backbone"})
    except (CheckpointError, OSError) as error:
        run.say(f"the pretrained backbone is not cached: {error}")
