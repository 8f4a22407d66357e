"""Is a step the same on any mesh? ``python -m sleeplm.bench.meshes [PHASE ...] [--mesh SHAPE]``.

``--form shard_map`` and ``--form pmap`` (over learners) ask it of the other forms, on the meshes
that they have: without ``replica``, and with nothing else.

Takes wake steps, a seeding step (rollouts and imitation included) and a learned round of dreams of
a small learner on one device, and on 1, 2, 4 and 8 simulated ones under every factorisation of
the axes ``replica``, ``data``, ``fsdp`` and ``tensor``; prints the largest differences. With
``replica`` as many learners live side by side, each held to itself alone.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError, SleepError
from sleeplm.core.phase import consolidate
from sleeplm.core.types import Array, Metrics, Phase, PyTree, State
from sleeplm.memory.cues import remember
from sleeplm.memory.levels import LevelConfig, get_level, with_levels
from sleeplm.memory.slots import fresh_slot, open_slot
from sleeplm.methods.config import SleepConfig, TeacherConfig
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.dreams.dream import dreams
from sleeplm.methods.learner import learner
from sleeplm.methods.objectives import language_model
from sleeplm.methods.sleep import night
from sleeplm.methods.update import optimizer
from sleeplm.methods.wake import wake
from sleeplm.models.config import ModelConfig
from sleeplm.models.transformer import Model
from sleeplm.runtime import parallel
from sleeplm.runtime.rules import AXES, REPLICA, place, state_specs

TOLERANCE = 1e-5
FORMS = ("jit", "shard_map", "pmap")
SIZES = (1, 2, 4, 8)
ROWS, LENGTH, CUE = 16, 12, 4
FAST = LevelConfig("fast", kind="graft", width=16, period=1, night=4, learning_rate=3e-3)
SLOW = LevelConfig(
    "slow", width=16, period=2, optimizer="sgd", learning_rate=0.1, slots=3, rank=8, top_k=2
)
MODEL = Model(
    ModelConfig(
        vocab_size=40,
        d_model=16,
        n_layers=2,
        n_heads=8,
        n_kv_heads=4,  # fewer than 8 devices: cut through the width of a head
        max_len=16,
        levels=[FAST, SLOW],
        tie_embeddings=False,
        scan_layers=True,
    )
)
# Plain gradient descent: Adam would blow the noise of rounding up to a whole step.
SLEEP = SleepConfig(
    updates=2,
    inner=2,
    epochs=1,
    rows=ROWS,
    group=2,
    length=7,
    lam=0.5,
    alpha=0.5,
    becomes="start",
    temperature=0.2,  # so that some sequences are repeats, whose rows have no weight
    optimizer="sgd",
    learning_rate=0.5,
    cue_tokens=CUE,
    reservoir=16,
    chunk=8,
    judge="exact",
    teachers=[TeacherConfig(state="dusk", source="all")],
)
DREAMS = DreamConfig(
    dreams=8, context_tokens=6, new_tokens=4, keep=3, extra=1, ngram=2, chunk=4, rank=8, steps=2,
    learning_rate=0.05, memories=8, worse=1.0, margin=-0.05,
)  # fmt: skip

Step = Callable[[State, PyTree, Array], tuple[State, Metrics]]


class Case(NamedTuple):
    """A phase to hold against itself: ``state(e)`` and ``batches(e)`` are those of learner e.

    ``make(axis)`` is the step for rows that are spread over a named axis.
    """

    step: Step
    state: Callable[[int], State]
    batches: Callable[[int], list[PyTree]]
    make: Callable[[Any], Step]


class Differences(NamedTuple):
    """Largest absolute differences from one device; whole numbers that differ are counted.

    ``moved`` is how far a parameter came on one device: equality would mean nothing without.
    """

    loss: float
    params: float
    others: float
    integers: int
    moved: float

    @property
    def good(self) -> bool:
        near = all(gap <= TOLERANCE for gap in (self.loss, self.params, self.others))
        return near and not self.integers and self.moved > 100 * TOLERANCE


def awake() -> Case:
    """Three wake steps; the last rows of each batch are padding."""
    phase = wake(MODEL, chunk=8)
    return Case(
        phase.step,
        _newborns(phase),
        lambda e: [_text(9 * e + i) for i in range(3)],
        lambda axis: wake(MODEL, chunk=8, axis_name=axis).step,
    )


def seeding() -> Case:
    """An extraction and two updates of a night that has begun."""
    parts = night(MODEL, SLEEP, "fast", "slow")
    rows = {"rows": np.arange(2 * ROWS, dtype=np.int32).reshape(2, ROWS), "today": np.int32(0)}
    born, begin = _newborns(parts.seed), jax.jit(parts.begin)
    return Case(
        parts.seed.step,
        lambda e: begin(born(e), rows, _key(e, 50))[0],
        lambda e: [rows],
        lambda axis: night(MODEL, SLEEP, "fast", "slow", axis_name=axis).seed.step,
    )


def dreaming() -> Case:
    """A round of dreams, and an update on those that were accepted."""

    def make(axis: Any = None) -> Phase:
        extract = dreams(MODEL, DREAMS, axis_name=axis)
        task = language_model(MODEL, chunk=8)
        return consolidate(extract, task, optimizer(SLEEP), axis_name=axis)

    phase = make()

    def contexts(e: int) -> list[PyTree]:
        text = _text(70 + e)
        length = np.minimum((text["segments"] > 0).sum(1), 6).astype(np.int32)
        given = {"tokens": text["tokens"][:, :6], "length": length}
        return [{"contexts": given, "today": np.int32(1)}]

    return Case(phase.step, _newborns(phase), contexts, lambda axis: make(axis).step)


CASES: dict[str, Callable[[], Case]] = {"wake": awake, "seeding": seeding, "dreaming": dreaming}


def _newborns(phase: Phase) -> Callable[[int], State]:
    """Learners whose levels and one expert say something, with cues of two days."""
    born = learner(MODEL, SLEEP)

    @jax.jit
    def make(key: Array) -> State:
        keys = jax.random.split(key, 5)
        params = MODEL.init(keys[0])
        fast = get_level(params, "fast")
        down = 0.3 * jax.random.normal(keys[1], fast["base"]["down"]["kernel"].shape)
        fast = {**fast, "base": {**fast["base"], "down": {"kernel": down}}}
        slow = fresh_slot(get_level(params, "slow"), jnp.int32(0), keys[2], 0.0)
        b = 0.3 * jax.random.normal(keys[3], slow["experts"]["b"].shape)
        b = slow["experts"]["b"].at[:, 0].set(b[:, 0])
        slow = {**slow, "experts": {**slow["experts"], "b": b}}
        params = with_levels(params, {"fast": fast, "slow": slow})
        state = born.init(params, keys[4])
        day = jax.tree.map(lambda x: 1.5 * x, get_level(params, "fast"))
        params = with_levels(params, {"fast": day})  # the teacher is not what the student becomes
        slots = {**state.slots, "slow": open_slot(state.slots["slow"], jnp.int32(0), jnp.int32(0))}
        cues = state.cues
        for day in (-1, 0):
            tokens = jax.random.randint(jax.random.fold_in(key, day + 2), (6, CUE), 3, 40)
            cues = remember(cues, tokens, jnp.arange(6) % 3 + 2, jnp.int32(day), keys[day + 1])
        private = phase.init(params, keys[4])
        return state.replace(params=params, slots=slots, cues=cues, private=private)

    return lambda e: make(_key(e, 0))


def _key(e: int, i: int) -> Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(4), e), i)


def _text(seed: int) -> PyTree:
    """Rows of two documents and ragged padding; the last two rows are nothing but padding."""
    random = np.random.default_rng(seed)
    tokens = random.integers(3, 40, (ROWS, LENGTH)).astype(np.int32)
    tokens[:, 0] = MODEL.config.bos
    end = random.integers(5, LENGTH + 1, (ROWS, 1))
    end[-2:] = 0
    index = np.arange(LENGTH)
    segments = np.where(index < end, 1 + (index >= 4), 0).astype(np.int32)
    return {"tokens": np.where(segments > 0, tokens, 0), "segments": segments}


def factorisations(devices: int) -> Iterator[dict[str, int]]:
    """Every way to lay that many devices out, sizes of 1 left out."""

    def rest(axes: tuple[str, ...], left: int) -> Iterator[dict[str, int]]:
        if not axes:
            if left == 1:
                yield {}
            return
        for size in (n for n in range(left, 0, -1) if left % n == 0):
            for others in rest(axes[1:], left // size):
                yield {axes[0]: size, **others} if size > 1 else others

    yield from rest(AXES, devices)


class Lived(NamedTuple):
    """A learner after its steps, on the host, the last loss, and how far its parameters came."""

    state: State
    loss: np.ndarray
    moved: float = 0.0

    def only(self, e: int) -> Lived:
        """One of several that lived side by side."""
        return Lived(jax.tree.map(lambda x: x[e], self.state), self.loss[e])


class Comparison:
    """One phase, held on many meshes to what it does on one device."""

    def __init__(self, case: Case):
        self.case = case
        self._one = parallel.jit_step(case.step)
        self._alone = functools.cache(self._live_alone)

    def _live_alone(self, e: int) -> Lived:
        before = jax.device_get(self.case.state(e).params)
        start, batches = self.case.state(e), self.case.batches(e)
        lived = self._live(self._one, start, batches, lambda i: _key(e, i))
        after = lived.state.params
        moved = jax.tree.map(lambda a, b: np.max(np.abs(a - b), initial=0.0), after, before)
        return lived._replace(moved=float(max(jax.tree.leaves(moved))))

    @staticmethod
    def _live(
        step: Step, state: State, batches: list, key: Callable[[int], Array], gives: bool = True
    ) -> Lived:
        metrics: Metrics = {}
        for i, batch in enumerate(batches):
            before, (state, metrics) = state, step(state, batch, key(i))
            if gives and not all(x.is_deleted() for x in jax.tree.leaves(before.params)):
                raise AssertionError("the old state was not given away")
        total, weight = metrics["loss"]
        return Lived(jax.device_get(_without_keys(state)), np.asarray(total / weight))

    def on(self, shape: dict[str, int], form: str = "jit") -> Differences:
        """The largest differences on a mesh of that shape, in one of :data:`FORMS`."""
        mesh, step = parallel.mesh(shape), self.case.step
        count = shape.get(REPLICA, 1)
        numbers = range(count)
        if count == 1:
            over = parallel.jit_step(step, mesh, state_specs=state_specs)
            if form == "shard_map":
                over = parallel.shard_map_step(self.case.make, mesh, state_specs=state_specs)
            state, batches = self.case.state(0), self.case.batches(0)
            got = self._live(over, place(state, mesh), batches, lambda i: _key(0, i))
            return _compare(got, self._alone(0))
        specs = parallel.of_learners()
        over = parallel.jit_step(jax.vmap(step), mesh, specs=specs, state_specs=state_specs)
        state = _stack([self.case.state(e) for e in numbers])
        batches = [_stack(list(b)) for b in zip(*map(self.case.batches, numbers), strict=True)]

        def keys(i: int) -> Array:
            return jnp.stack([_key(e, i) for e in numbers])

        if form == "pmap":  # takes what lies on one device, and gives nothing of it away
            over = parallel.pmap_learners(step, donate=False)
            got = self._live(over, state, batches, keys, gives=False)
        else:
            got = self._live(over, place(state, mesh), batches, keys)
        each = [_compare(got.only(e), self._alone(e)) for e in numbers]
        loss, params, others, integers, _ = np.max(each, axis=0)  # NaN, if there is one
        moved = min(one.moved for one in each)
        return Differences(float(loss), float(params), float(others), int(integers), moved)


def _stack(trees: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *trees)


def _without_keys(state: State) -> State:
    return state.replace(key=jax.random.key_data(state.key))


def _compare(got: Lived, want: Lived) -> Differences:
    """Raises ValueError if the learners have other arrays."""
    floats, wrong = {"params": 0.0, "others": 0.0}, 0
    for field, mine in vars(got.state).items():
        theirs = getattr(want.state, field)
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
            if not np.issubdtype(a.dtype, np.floating):
                wrong += int((a != b).sum())
                continue
            kind = "params" if field == "params" else "others"
            gap = np.where(np.isnan(a) & np.isnan(b), 0.0, np.abs(a - b))
            floats[kind] = float(np.maximum(floats[kind], np.max(gap, initial=0.0)))
    loss = float(np.abs(got.loss - want.loss))
    return Differences(loss, floats["params"], floats["others"], wrong, want.moved)


def _has(form: str, shape: dict[str, int]) -> bool:
    """Whether a form has a mesh of that shape."""
    if form == "pmap":
        return set(shape) == {REPLICA}
    return form == "jit" or (REPLICA not in shape and bool(shape))


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sleeplm.bench.meshes")
    parser.add_argument("phases", nargs="*", help=f"of {', '.join(CASES)}; none: all")
    parser.add_argument("--mesh", action="append", help="data=2,tensor=4; repeat for more")
    parser.add_argument("--devices", type=int, help="only meshes of that many")
    parser.add_argument("--form", default="jit", help=f"one of {', '.join(FORMS)}")
    parser.add_argument("--json", action="store_true", help="one JSON document a mesh")
    return parser.parse_args(argv)


def _shape(text: str) -> dict[str, int]:
    shape = {}
    for part in filter(None, text.split(",")):
        axis, _, size = part.partition("=")
        checks.one_of("--mesh", axis, AXES)
        if not size.isdecimal():
            raise ConfigError("--mesh", text, "write AXIS=SIZE,AXIS=SIZE")
        shape[axis] = int(size)
    return shape


def main(argv: list[str]) -> int:
    """Prints the table; returns 1 if anything differs by more than it may."""
    args = _parse(argv)
    for phase in args.phases:
        checks.one_of("phase", phase, CASES)
    checks.one_of("--form", args.form, FORMS)
    shapes = [_shape(text) for text in args.mesh or ()]
    for shape in shapes:
        remedy = "shard_map has no replica, pmap nothing else: name another mesh, or another form"
        checks.require(_has(args.form, shape), "--mesh", shape, f"not with {args.form}: {remedy}")
    if not shapes:
        sizes = [args.devices] if args.devices else SIZES
        shapes = [m for n in sizes for m in factorisations(n) if _has(args.form, m)]
    jax.config.update("jax_num_cpu_devices", max(SIZES))
    good = True
    for phase in args.phases or CASES:
        comparison = Comparison(CASES[phase]())
        for shape in shapes:
            began = time.perf_counter()
            found = comparison.on(shape, args.form)
            good &= found.good
            if args.json:
                line = json.dumps({"phase": phase, "mesh": shape, **found._asdict()})
            else:
                name = " ".join(f"{axis}={size}" for axis, size in shape.items()) or "one device"
                line = (
                    f"{phase:8}  {name:34}  loss {found.loss:.1e}  params {found.params:.1e}  rest "
                    f"{found.others:.1e}  integers {found.integers}  moved {found.moved:.0e}"
                    f"  ({time.perf_counter() - began:.0f} s)"
                )
            print(line, flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except SleepError as error:
        sys.exit(f"meshes: {error}")
