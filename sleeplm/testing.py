"""The seven laws of a phase, as checks that a test of your own can call.

Every phase of this library keeps them, and a method built from them should::

    1. jitted equals eager                     5. save, kill, restore: a bit-identical next step
    2. traced once, however often it is run    6. what is frozen is bit-identical after a step
    3. jit, shard_map and pmap agree           7. vmapping over seeds equals a loop over seeds
    4. chain(a, b) equals a, then b by hand

Each law is a function that returns nothing, or raises ``AssertionError`` with the law, the leaf
and the difference. :func:`check_laws` runs them all::

    def make_phase(axis_name=None):
        return my_phase(model, axis_name=axis_name)

    def test_my_phase_keeps_the_laws(tmp_path):
        check_laws(make_phase, state, batches, directory=tmp_path, frozen=["params/embed"])

``state.private`` is always made anew with the phase's ``init``. On a machine with one device,
``XLA_FLAGS=--xla_force_host_platform_device_count=4`` (set before jax is imported) simulates four.
"""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sleeplm.core.phase import add_metrics, chain
from sleeplm.core.shares import Axis
from sleeplm.core.types import Array, Phase, PyTree, State
from sleeplm.runtime import parallel
from sleeplm.runtime.checkpoint import Checkpoints


class MakePhase(Protocol):
    """Builds the phase under test; ``axis_name`` is the mapped axis, None outside of one."""

    def __call__(self, axis_name: Axis = None) -> Phase: ...


class Tolerance(NamedTuple):
    """How far floats may be apart; everything else must be equal."""

    rtol: float = 2e-4
    atol: float = 2e-5


def check_laws(
    make_phase: MakePhase,
    state: State,
    batches: Sequence[PyTree],
    *,
    frozen: Frozen = (),
    devices: int | None = None,
    directory: str | Path | None = None,
    specs: parallel.Specs = parallel.batch_specs,
    tolerance: Tolerance = Tolerance(),  # noqa: B008
) -> None:
    """All seven laws.

    Args:
      make_phase: builds the phase, see :class:`MakePhase`.
      state: a learner for which ``batches`` make sense; ``private`` is replaced.
      batches: at least 3, of one structure and shape, with different contents.
      frozen: what must not move, see :func:`frozen_stay_frozen`.
      devices: how many to spread rows over; None: all.
      directory: for the checkpoint of law 5; None: a temporary one.
      specs: where the rows of a batch are, see :func:`sleeplm.runtime.parallel.batch_specs`.
      tolerance: of laws 1, 3, 4 and 7. Laws 5 and 6 compare bits.
    """
    shared = functools.cache(make_phase)  # one phase compiles once, whatever law asks for it
    jitted_equals_eager(shared, state, batches[:1], tolerance)
    traces_once(shared, state, batches)
    parallel_forms_agree(
        shared, state, batches[:2], devices=devices, specs=specs, tolerance=tolerance
    )
    chain_equals_by_hand(shared(), shared(), state, batches[0], tolerance)
    resumes_bit_identical(make_phase, state, batches, directory)
    frozen_stay_frozen(shared, state, batches, frozen)
    vmapped_seeds_equal_a_loop(shared, state, batches[0], tolerance=tolerance)


def jitted_equals_eager(
    make_phase: MakePhase,
    state: State,
    batches: Sequence[PyTree],
    tolerance: Tolerance = Tolerance(),  # noqa: B008
) -> None:
    """Law 1: the compiled step and the step run operation by operation agree."""
    phase = make_phase()
    start = begin(phase, state)
    eager = run(phase.step, start, batches)
    same("1 (jitted equals eager)", run(jax.jit(phase.step), start, batches), eager, tolerance)


def traces_once(make_phase: MakePhase, state: State, batches: Sequence[PyTree]) -> None:
    """Law 2: the step is traced for the first batch and never again."""
    phase = make_phase()
    step = counting(phase.step)
    run(jax.jit(step), begin(phase, state), batches)
    if step.traces != 1:
        raise AssertionError(
            f"law 2 (traced once): {step.traces} traces in {len(batches)} steps; the state that "
            "comes out differs from the one that goes in: "
            + (_changed_types(phase, state, batches[0]) or "only in what jax hides (weak types)")
        )


def parallel_forms_agree(
    make_phase: MakePhase,
    state: State,
    batches: Sequence[PyTree],
    *,
    devices: int | None = None,
    specs: parallel.Specs = parallel.batch_specs,
    tolerance: Tolerance = Tolerance(),  # noqa: B008
) -> None:
    """Law 3: one device, jit over a mesh, shard_map and pmap agree."""
    count = len(jax.devices()) if devices is None else devices
    mesh = parallel.mesh({parallel.DATA: count})
    alone = make_phase()
    start = begin(alone, state)
    want = run(parallel.jit_step(alone.step, donate=False), start, batches)

    def make_step(axis_name: Axis):
        return make_phase(axis_name=axis_name).step

    sharded = parallel.replicate(start, mesh)
    forms = {
        "jit over a mesh": parallel.jit_step(alone.step, mesh, donate=False, specs=specs),
        "shard_map": parallel.shard_map_step(make_step, mesh, donate=False, specs=specs),
    }
    for name, step in forms.items():
        same(f"3 ({name})", run(step, sharded, batches), want, tolerance)
    step = parallel.pmap_step(make_step, devices=jax.devices()[:count], donate=False)
    pieces = [parallel.stack_batch(batch, count, specs=specs) for batch in batches]
    got = run(step, parallel.stack_state(start, count), pieces)
    for device in range(count):
        mine = jax.tree.map(lambda x, i=device: x[i], got)
        same(f"3 (pmap, device {device})", mine, want, tolerance)


def chain_equals_by_hand(
    a: Phase,
    b: Phase,
    state: State,
    batch: PyTree,
    tolerance: Tolerance = Tolerance(),  # noqa: B008
) -> None:
    """Law 4: ``chain(a, b)`` equals a, then b, each with its own key and private state."""
    both, key = chain(a, b), jax.random.key(11)
    start = begin(both, state)
    got, metrics = jax.jit(both.step)(start, batch, key)
    parts, private = [], []
    now = start
    for i, phase in enumerate((a, b)):
        now = now.replace(private=start.private[i])
        now, part = jax.jit(phase.step)(now, batch, jax.random.fold_in(key, i))
        private.append(now.private)
        parts.append(part)
    want = now.replace(private=tuple(private)), add_metrics(*parts)
    same("4 (chain equals by hand)", (got, metrics), want, tolerance)


def resumes_bit_identical(
    make_phase: MakePhase,
    state: State,
    batches: Sequence[PyTree],
    directory: str | Path | None = None,
) -> None:
    """Law 5: a learner built anew and restored takes the same next steps, bit for bit."""
    half = len(batches) // 2
    phase = make_phase()
    saved = run(jax.jit(phase.step), begin(phase, state), batches[:half]).state
    want = run(jax.jit(phase.step), saved, batches[half:])
    with tempfile.TemporaryDirectory() as temporary:
        where = Path(directory or temporary) / "law-5"
        with Checkpoints(where) as checkpoints:
            checkpoints.save(half, saved, None, {})
        again = make_phase()
        shapes = jax.eval_shape(lambda: begin(again, state))
        with Checkpoints(where) as checkpoints:
            restored = checkpoints.restore(shapes).learner
    same("5 (restored learner)", restored, saved, None)
    got = run(jax.jit(again.step), restored, batches[half:])
    same("5 (next steps after restoring)", got, want, None)


#: Paths like ``"params/embed"`` (regular expressions that match from the start of the path of a
#: leaf), or a function from a state to whatever must not move.
Frozen = Sequence[str] | Callable[[State], PyTree]


def frozen_stay_frozen(
    make_phase: MakePhase, state: State, batches: Sequence[PyTree], frozen: Frozen
) -> None:
    """Law 6: what is frozen, and every masked slot, keeps its bits through all batches.

    Args:
      frozen: paths, or a function that picks what must not move out of a state.
    """
    phase = make_phase()
    start = begin(phase, state)
    end = run(jax.jit(phase.step), start, batches).state
    if callable(frozen):
        same("6 (frozen stay frozen)", frozen(end), frozen(start), None)
        return
    leaves = paths(start)
    for pattern in frozen:
        if not any(re.match(pattern, path) for path in leaves):
            raise AssertionError(f"law 6 (frozen stay frozen): no leaf matches {pattern!r}")
    chosen = [path for path in leaves if any(re.match(p, path) for p in frozen)]
    after = paths(end)
    moved, still = ({path: tree[path] for path in chosen} for tree in (after, leaves))
    same("6 (frozen stay frozen)", moved, still, None)


def vmapped_seeds_equal_a_loop(
    make_phase: MakePhase,
    state: State,
    batch: PyTree,
    seeds: int = 2,
    tolerance: Tolerance = Tolerance(),  # noqa: B008
) -> None:
    """Law 7: one vmapped step over seeds equals a loop over them.

    Each seed has a private state, a key and floating-point parameters of its own (the given ones,
    moved by a thousandth).
    """
    phase = make_phase()
    keys = jax.random.split(jax.random.key(7), seeds)

    def make(key: Array) -> State:
        grown = jax.tree.map(
            lambda x: x * (1 + 1e-3 * jax.random.normal(key)).astype(x.dtype), state.params
        )
        moved = state.replace(params=grown, key=key)
        return moved.replace(private=phase.init(moved.params, key))

    states = [jax.jit(make)(key) for key in keys]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    got = jax.jit(jax.vmap(phase.step, in_axes=(0, None, 0)))(stacked, batch, keys)
    step = jax.jit(phase.step)
    for i, (one, key) in enumerate(zip(states, keys, strict=True)):
        mine = jax.tree.map(lambda x, i=i: x[i], got)
        same(f"7 (seed {i} of a vmap)", mine, step(one, batch, key), tolerance)


# --- tools -------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """A state after some steps, and the metrics of the last one."""

    state: State
    metrics: PyTree


def begin(phase: Phase, state: State) -> State:
    """The state with a private part that the phase made."""
    return state.replace(private=phase.init(state.params, jax.random.key(5)))


def run(step: Callable, state: State, batches: Sequence[PyTree]) -> Outcome:
    """Steps over the batches; step i has the key ``fold_in(key(3), i)``."""
    metrics = None
    for i, batch in enumerate(batches):
        state, metrics = step(state, batch, jax.random.fold_in(jax.random.key(3), i))
    return Outcome(state, metrics)


class counting:
    """The same step with an attribute ``traces``: how often Python ran through it."""

    def __init__(self, step: Callable):
        self.step, self.traces = step, 0
        self.__name__ = getattr(step, "__name__", "step")  # the compilation cache goes by it

    def __call__(self, *args: PyTree) -> PyTree:
        self.traces += 1
        return self.step(*args)


def paths(tree: PyTree) -> dict[str, Array]:
    """``{"params/blocks/...": leaf}``."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def same(law: str, got: PyTree, want: PyTree, tolerance: Tolerance | None) -> None:
    """Raises AssertionError at the leaf that differs most; without a tolerance, at any bit."""
    left, right = paths(got), paths(want)
    if left.keys() != right.keys():
        odd = sorted(left.keys() ^ right.keys())[:3]
        raise AssertionError(f"law {law}: leaves that only one side has: {', '.join(odd)}")
    worst: tuple[float, str] = (0.0, "")
    for path, x in left.items():
        a, b = _host(x), _host(right[path])
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            raise AssertionError(
                f"law {law}: {path}: {a.dtype}{a.shape} against {b.dtype}{b.shape}"
            )
        worst = max(worst, (_excess(a, b, tolerance), f"{path}: {_difference(a, b)}"))
    if worst[0] > 0:
        raise AssertionError(f"law {law}: {worst[1]}")


def _host(x: Array) -> np.ndarray:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.asarray(jax.device_get(x))


def _excess(a: np.ndarray, b: np.ndarray, tolerance: Tolerance | None) -> float:
    """Above 0 if two arrays are further apart than they may be."""
    if a.tobytes() == b.tobytes():
        return 0.0
    if tolerance is None or not jnp.issubdtype(a.dtype, jnp.floating):
        return float("inf")
    a, b = a.astype(np.float64), b.astype(np.float64)
    if (np.isnan(a) != np.isnan(b)).any() or (np.isinf(a) != np.isinf(b)).any():
        return float("inf")
    finite = np.isfinite(a)
    a, b = a[finite], b[finite]
    room = tolerance.atol + tolerance.rtol * np.abs(b)
    gap = np.abs(a - b)
    return float(np.max(gap, initial=0.0)) if (gap > room).any() else 0.0


def _difference(a: np.ndarray, b: np.ndarray) -> str:
    if a.tobytes() == b.tobytes():
        return "equal"
    wide = [x.astype(np.float64).reshape(-1) for x in (a, b)]
    gap = np.where(np.isnan(wide[0]) | np.isnan(wide[1]), np.inf, np.abs(wide[0] - wide[1]))
    at = int(np.argmax(gap))
    where = np.unravel_index(at, a.shape) if a.shape else ()
    index = f"[{', '.join(map(str, where))}]"
    return f"{wide[0][at]:.9g} against {wide[1][at]:.9g} at {index}, {int((gap > 0).sum())} differ"


def _changed_types(phase: Phase, state: State, batch: PyTree) -> str:
    start = begin(phase, state)
    after = jax.eval_shape(phase.step, start, batch, jax.random.key(0))[0]
    before, after = paths(jax.eval_shape(lambda: start)), paths(after)
    names = [n for n in before if n not in after or str(before[n]) != str(after[n])]
    return ", ".join(names[:3])
