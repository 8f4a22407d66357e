"""The backbone of a run: pretrained once for a configuration and its data, then cached."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sleeplm.bench.streams import DayStreams, StackedStreams
from sleeplm.core import checks
from sleeplm.core.errors import CheckpointError, SleepError
from sleeplm.core.phase import repeat
from sleeplm.core.types import Array, Extract, Params, State
from sleeplm.methods.pretrain import newborn, pretrain
from sleeplm.models.graft import backbone_config
from sleeplm.models.transformer import Model
from sleeplm.pretrained.hf_export import require_same_backbone
from sleeplm.pretrained.published import find_backbone
from sleeplm.runtime import hosts
from sleeplm.runtime.checkpoint import Checkpoints
from sleeplm.runtime.learners import born, of_learners, put_params, side_by_side
from sleeplm.runtime.lifecycle import Moment
from sleeplm.runtime.rules import placed_shapes, shardings
from sleeplm.runtime.run import Run, Stage

STAGE = "pretrain"
#: The stage of a run that found its backbones in the cache: it has no moments, and keeps them.
FOUND = "backbone"


def check_backbone(config: Any) -> None:
    """Checks that a published backbone is there and that ``model`` has its sizes.

    Raises:
      ConfigError: it names the file or the key of ``config.json`` that does not agree.
    """
    if not config.backbone:
        return
    model = backbone_config(config.model)
    published = find_backbone(config.backbone, max_len=model.max_len)
    found = published.config
    require_same_backbone(model, found, "model")
    checks.require(model.bos == found.bos, "model.bos", model.bos, f"must be {found.bos}")
    # A conversation's texts hold several turns: they end otherwise than a turn does.
    if model.eos != found.eos and not (config.chat or config.dream_chat):
        tokenizer = published.read_tokenizer()
        ends = {*tokenizer.stops, *tokenizer.special.values()}
        remedy = f"must be {found.eos}, or the id of another special token"
        checks.require(model.eos in ends, "model.eos", model.eos, remedy)


def imported(run: Run, model: Model, name: str, learners: int, mesh: Mesh | None = None) -> Params:
    """Parameters of the published backbone ``name``, the same for all learners of a run.

    Every device reads its own part of the files, so that none has to hold a whole model.
    """
    run.say(f"reading the backbone {name}")
    found = find_backbone(name, max_len=model.config.max_len)
    like = _shapes(model, learners)
    places = None if mesh is None else shardings(like, mesh, of_learners)
    return found.load(model.config, places, learners)


def pretrained(
    run: Run,
    model: Model,
    learners: Sequence[Any],
    materials: Sequence[Any],
    mesh: Mesh | None = None,
    *,
    extract: Extract | None = None,
) -> Params:
    """Parameters of the learners' backbones: from the cache, or trained now and put there.

    If one is not in the cache, all are trained, together in one compiled program. Either way the
    run keeps them, and goes on with those whatever is in the cache by then.

    Args:
      learners: the configuration of each has ``pretrain``
        (:class:`~sleeplm.methods.pretrain.PretrainConfig`), ``seed`` and ``cache``.
      materials: each has ``pretrain``, the documents as lists of tokens.
      mesh: that training is spread over, and that the parameters shall lie on; None: one device.
      extract: which tokens are learned; None: all of them. The same documents have to have the same
        one: the cache does not tell.

    Returns:
      The parameters with the E learners in front of every array.

    Raises:
      ConfigError: the run has lived on backbones of the cache, has not kept them (earlier versions
        did not), and they are not there any more.
    """
    if learners[0].backbone:
        return imported(run, model, learners[0].backbone, len(learners), mesh)
    if run.has(FOUND):
        like = _shapes(model, len(learners))
        return _keep(run, like if mesh is None else placed_shapes(like, mesh, of_learners))
    stores = [
        pathlib.Path(one.cache).expanduser() / cache_key(model, one, material)
        for one, material in zip(learners, materials, strict=True)
    ]
    if not run.has(STAGE):
        found = _cached(run, model, stores, mesh)
        if found is not None:
            # A stage that begins makes the run forget those after it, of which there may be some.
            return found if run.has() else _keep(run, found)
        remedy = "does not have the backbones that the run was begun with, by the same jax: name "
        remedy += "the cache that has them (trained anew, its arms would begin anew too)"
        checks.require(not run.has(), "cache", learners[0].cache, remedy)
    trained = _train(run, model, learners, materials, mesh, extract)
    for e, store in enumerate(stores):
        _write(store, jax.tree.map(lambda x, e=e: x[e], trained), run)
    return trained


def _shapes(model: Model, learners: int) -> Params:
    """Shapes of the backbones of E learners."""
    return jax.eval_shape(jax.vmap(model.init), jax.random.split(jax.random.key(0), learners))


def _keep(run: Run, params: Params) -> Params:
    """Keeps backbones in the run; or what it has kept, for which their shapes are enough."""
    return run.stage(Stage(FOUND, lambda: params, [], None))


def _cached(
    run: Run, model: Model, stores: Sequence[pathlib.Path], mesh: Mesh | None
) -> Params | None:
    """The backbones of all learners, if the cache has every one of them."""
    like = jax.eval_shape(model.init, jax.random.key(0))
    like = like if mesh is None else placed_shapes(like, mesh)
    parts = [_read(store, like, run) for store in stores]
    if any(params is None for params in parts):
        return None
    run.say("pretrained backbones found in the cache")
    return put_params(jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts), mesh)


def _train(
    run: Run,
    model: Model,
    learners: Sequence[Any],
    materials: Sequence[Any],
    mesh: Mesh | None,
    extract: Extract | None,
) -> Params:
    settings = learners[0].pretrain
    phase = pretrain(model, settings, extract)
    stream = StackedStreams(
        [
            DayStreams([material.pretrain], settings.batch, settings.length, one.seed)
            for one, material in zip(learners, materials, strict=True)
        ]
    )
    step = side_by_side(repeat(settings.chunk, phase).step, mesh)
    keys = jnp.stack([jax.random.key(one.seed) for one in learners])

    def moment(done: int) -> Moment:
        def train(state):
            return step(state, stream.take(0, settings.chunk), {}, done)

        label = f"step {done + settings.chunk}/{settings.steps}"
        return Moment(label, {"event": "pretrain", "step": done + settings.chunk}, train)

    agenda = [moment(done) for done in range(0, settings.steps, settings.chunk)]

    def make(key: Array) -> State:
        return newborn(model, phase, model.init(key), key)

    return run.stage(Stage(STAGE, lambda: born(make, mesh, keys), agenda, stream)).params


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
    if not _is_there(store):
        return None
    try:
        with Checkpoints(store, warn=run.say) as checkpoints:
            return checkpoints.restore(like).learner if checkpoints.steps() else None
    except CheckpointError as error:
        begun = run.has()
        then = "" if begun else ", it is trained again"
        run.say(f"the cached backbone cannot be used{then}: {error}")
        if run.leads and not begun:  # else nothing is trained, and it is all there is
            shutil.rmtree(store, ignore_errors=True)
        hosts.largest(0)  # nobody writes there before it is gone
        return None


def _write(store: pathlib.Path, params: Params, run: Run) -> None:
    """Keeps the backbone for other runs; this one goes on if that is not possible.

    It is written in a folder of this run's own and moved when it is whole: runs that train the same
    backbone at once do not meet.
    """
    own = store.with_name(f"{store.name}.{_own_name(run)}")
    try:
        with hosts.fail_together():
            if run.leads:
                own.mkdir(parents=True, exist_ok=True)
        if not _is_there(own):
            raise CheckpointError(f"{own}: is not what the first process has made")
        with Checkpoints(own, keep=1, asynchronous=False) as checkpoints:
            checkpoints.save(0, params, None, {"kind": "pretrained backbone"})
        with hosts.fail_together():
            if run.leads:
                _move(own, store)
    except (SleepError, OSError) as error:
        if hosts.is_loss(error):
            raise
        run.say(f"the pretrained backbone is not cached: {error}")


def _own_name(run: Run) -> str:
    """The same in all processes of a run, and in no other run."""
    return hashlib.sha256(str(run.directory.absolute()).encode()).hexdigest()[:8]


def _move(own: pathlib.Path, store: pathlib.Path) -> None:
    """What another run has put there meanwhile is the same and stays; what is unfinished goes."""
    if store.exists() and not any(store.glob("[0-9]*")):
        shutil.rmtree(store)
    try:
        own.rename(store)
    except OSError:
        if not store.exists():
            raise
        shutil.rmtree(own)


def _is_there(store: pathlib.Path) -> bool:
    """Whether all processes see it."""
    return not hosts.largest(int(not store.exists()))
