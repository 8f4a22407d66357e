"""The programs of a life, with shapes instead of arrays: nothing here is as large as the model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sleeplm.core import tree
from sleeplm.core.types import PyTree, State
from sleeplm.methods.dreams.dream import round_of
from sleeplm.methods.extract import row_keys
from sleeplm.methods.learner import Learner, learner
from sleeplm.methods.sleep import learns_at_night
from sleeplm.methods.update import moves_awake
from sleeplm.models.decode import generate
from sleeplm.models.transformer import Model
from sleeplm.plan.config import PlanConfig
from sleeplm.runtime.parallel import batch_specs, jit_step, row_axes
from sleeplm.runtime.rules import DATA, FSDP, state_specs

KEY = jax.eval_shape(lambda: jax.random.key(0))


@dataclasses.dataclass(frozen=True)
class Program:
    """One step of a learner, with the shapes of what it is given.

    Attributes:
      name: one of :data:`~sleeplm.plan.config.PROGRAMS`. about: what one call does, in words.
      step: ``(state, batch, key) -> (state, metrics)``.
      state: shapes of a :class:`~sleeplm.core.types.State`, or of the variables only.
      batch: shapes. specs: where its rows are, see :func:`~sleeplm.runtime.parallel.batch_specs`.
      tokens: that one call is about, over all chips.
      reads: how often at least all matrices are needed, one time after the other.
      gradient: bytes of the gradients, in float32, that one call sums over rows.
      cache: shapes of the largest key/value cache that stands in memory, if there is one.
    """

    name: str
    about: str
    step: Callable[..., Any]
    state: PyTree
    batch: PyTree
    specs: Callable[..., PyTree]
    tokens: int
    reads: int
    gradient: float
    cache: PyTree

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """The program for a mesh, the state donated and laid out by the rules."""
        compiled = jit_step(self.step, mesh, specs=self.specs, state_specs=_laid_out)
        return compiled.lower(self.state, self.batch, KEY)  # type: ignore[attr-defined]

    def arguments(self, mesh: Mesh) -> tuple[PyTree, PyTree]:
        """State and batch as shapes that know where they lie."""

        where = self.specs(self.batch, row_axes(mesh))
        batch = jax.tree.map(functools.partial(_place, mesh), self.batch, where)
        return placed(self.state, mesh), batch


def placed(state: PyTree, mesh: Mesh) -> PyTree:
    """Shapes that know where they lie by the rules."""
    return jax.tree.map(functools.partial(_place, mesh), state, _laid_out(state, mesh))


def _place(mesh: Mesh, x: jax.ShapeDtypeStruct, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))


def _laid_out(state: PyTree, mesh: Mesh) -> PyTree:
    return state_specs(state, mesh, learners=False)


def programs(config: PlanConfig, mesh: Mesh) -> list[Program]:
    """The programs that a plan asks for, for the rows of a mesh."""
    rows = config.rows * mesh.shape.get(DATA, 1) * mesh.shape.get(FSDP, 1)
    model = Model(config.model)
    sleep = dataclasses.replace(config.sleep, rows=rows, length=config.length)
    life = learner(model, sleep, chunk=config.chunk)
    state = jax.eval_shape(life.init, jax.eval_shape(model.init, KEY), KEY)
    make = {"wake": _wake, "seed": _seed, "decode": _decode, "dream": _dream}
    config = dataclasses.replace(config, sleep=sleep)
    return [make[name](config, model, life, state, rows) for name in config.programs]


def _ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _wake(config: PlanConfig, model: Model, life: Learner, state: State, rows: int) -> Program:
    text = _ints(rows, config.length)
    return Program(
        "wake", f"one update on {rows} x {config.length} tokens", life.wake, state,
        {"tokens": text, "segments": text}, batch_specs, rows * config.length,
        _passes(model), _gradient(state.params, moves_awake(model.config.levels)), (),
    )  # fmt: skip


def _seed(config: PlanConfig, model: Model, life: Learner, state: State, rows: int) -> Program:
    rest, sleep, made = life.rests[0], config.sleep, config.sleep.inner * rows
    told = sum(teacher.times * (1 if sleep.lam in (0, 1) else 2) for teacher in sleep.teachers)
    longest = sleep.cue_tokens + sleep.length - 1
    updates = sleep.inner * sleep.epochs
    texts = f"write {made * told} x {sleep.length}, {updates} updates"
    return Program(
        "seed", f"{rest.sender} into {rest.receiver}: {texts}", rest.seed, state,
        {"rows": _ints(sleep.inner, rows), "today": _ints()}, batch_specs,
        updates * rows * told * sleep.length,
        sleep.length - 1 + updates * _passes(model),
        updates * _gradient(state.params, learns_at_night(rest.receiver, sleep.into)),
        _cache(model, made * max(teacher.times for teacher in sleep.teachers), longest),
    )  # fmt: skip


def _decode(config: PlanConfig, model: Model, life: Learner, state: State, rows: int) -> Program:
    def step(variables: PyTree, batch: PyTree, key: jax.Array) -> tuple[PyTree, PyTree]:
        keys = row_keys(key, jnp.arange(rows))
        samples = generate(
            model, variables, batch["prompts"], batch["lengths"], keys, max_new=config.new
        )
        return variables, {"tokens": samples.tokens, "length": samples.length}

    def specs(batch: PyTree, axis: Any) -> PyTree:
        return {"prompts": PartitionSpec(axis), "lengths": PartitionSpec(axis)}

    return Program(
        "decode", f"{rows} prompts of {config.prompt}, {config.new} new tokens each", step,
        {"params": state.params, "slots": state.slots},
        {"prompts": _ints(rows, config.prompt), "lengths": _ints(rows)}, specs,
        rows * config.new, config.new, 0.0, _cache(model, rows, config.prompt + config.new),
    )  # fmt: skip


def _dream(config: PlanConfig, model: Model, life: Learner, state: State, rows: int) -> Program:
    learned, dream = moves_awake(model.config.levels), config.dream
    run = round_of(model, dream, trainable=learned)

    def step(variables: PyTree, batch: PyTree, key: jax.Array) -> tuple[PyTree, PyTree]:
        accepted, metrics = run(variables, batch, key)
        return variables, (accepted, metrics)

    contexts = {"tokens": _ints(rows, dream.context_tokens), "length": _ints(rows)}
    length = dream.context_tokens + dream.new_tokens
    return Program(
        "dream", f"{dream.dreams} dreams of {dream.new_tokens}, {dream.kept} tried", step,
        {"params": state.params, "slots": state.slots, "cues": state.cues},
        {"contexts": contexts, "today": _ints()}, batch_specs,
        dream.dreams * dream.new_tokens,
        dream.new_tokens + 2 + 2 * dream.steps,
        (dream.dreams + 1) * _gradient(state.params, learned), _cache(model, dream.dreams, length),
    )  # fmt: skip


def _passes(model: Model) -> int:
    """How often an update needs every matrix: forward, backward, and again if it recomputes."""
    return 3 if model.config.remat else 2


def _gradient(params: PyTree, learns: Callable[[tuple], bool]) -> float:
    return 4.0 * tree.size(tree.split(params, learns)[0])


def _cache(model: Model, rows: int, length: int) -> PyTree:
    return jax.eval_shape(lambda: model.init_cache(rows, length))
