"""Saving and restoring a run: learner, data stream and position, in one atomic step.

Everything that knows the checkpoint library (orbax) is in this file. A checkpoint is one
directory named after its step; it holds

* ``learner``: the leaves of the learner pytree, typed PRNG keys and bfloat16 included;
* ``stream``: the state of a grain iterator, when one is given;
* ``metadata``: one JSON document with the caller's metadata, a JSON stream state, and a
  description of every leaf, so that a learner of another structure is refused in one line;
* ``checksums.json``: size and digest of every file, so that damage is noticed.

A save writes to a temporary directory and renames it at the end: a process killed at any moment
leaves the older checkpoints as they were, and the next start removes what was half written.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from sleeplm.core.checks import at_least, positive_integer
from sleeplm.core.errors import CheckpointError, ConfigError
from sleeplm.core.types import PyTree
from sleeplm.runtime import checksums, hosts

LEARNER, STREAM, METADATA = "learner", "stream", "metadata"
# Orbax rewrites this one of its files while it commits; it holds time stamps only.
UNSEALED = ("_CHECKPOINT_METADATA",)


class Restored(NamedTuple):
    """What :meth:`Checkpoints.restore` found.

    Attributes:
      step: the step it was saved under.
      learner: pytree with the structure of ``like`` and the saved values.
      stream: the iterator that was given, moved to the saved position; otherwise the saved JSON
        state, or None.
      metadata: the dict given to :meth:`Checkpoints.save`.
    """

    step: int
    learner: PyTree
    stream: Any
    metadata: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run directory.

    Use as a context manager, or call :meth:`close` at the end. One process at a time, or
    the processes of one job together, may use a directory. Saving a step that already exists
    replaces it.

    Args:
      directory: where checkpoints are kept; made if missing. Half-written saves of an earlier,
        killed process are removed.
      keep: how many of the newest checkpoints are kept.
      asynchronous: whether :meth:`save` returns while the files are still being written.
      warn: receives one line for every damaged checkpoint that is passed over.

    Raises:
      ConfigError: a setting is out of range.
      CheckpointError: the directory cannot be used.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep: int = 3,
        asynchronous: bool = True,
        warn: Callable[[str], object] = warnings.warn,
    ):
        positive_integer("checkpoint.keep", keep)
        self.directory = epath.Path(directory).absolute()
        if self.directory.is_file():
            raise CheckpointError(f"{self.directory}: cannot be used: it is a file")
        self._asynchronous, self._warn = asynchronous, warn
        self._writing = -1
        try:
            self._orbax = ocp.training.Checkpointer(
                self.directory,
                # A plain function: orbax copies its options deeply, and with a method its object.
                context=_context(lambda: self._seal()),
                preservation_policy=ocp.training.preservation_policies.LatestN(keep),
                cleanup_tmp_directories=True,
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.directory}: cannot be used: {_reason(error)}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Steps that have a checkpoint or whose save has begun, oldest first."""
        return [checkpoint.step for checkpoint in self._orbax.checkpoints]

    def save(self, step: int, learner: PyTree, stream: Any, metadata: dict[str, Any]) -> None:
        """Saves learner, stream and metadata as one checkpoint, or not at all.

        The values are those of this moment: the caller may go on, donate them and advance the
        iterator. An earlier save that is still being written is waited for.

        Args:
          step: the name of the checkpoint, at least 0.
          learner: pytree of arrays (jax, numpy, typed PRNG keys, numbers).
          stream: a grain iterator, a JSON-able state, or None.
          metadata: JSON-able dict.

        Raises:
          ConfigError: the metadata or the stream cannot be written as JSON.
          CheckpointError: this save, or the one still being written, failed.
        """
        at_least("checkpoint.step", step, 0)
        _require_json("checkpoint.metadata", metadata)
        iterator = _is_iterator(stream)
        if not iterator:
            _require_json("checkpoint.stream", stream)
        document = {
            "metadata": metadata,
            "leaves": _describe(learner),
            "iterator": iterator,
            "stream": None if iterator else stream,
        }
        parts = {LEARNER: _not_empty(_flatten(learner)), METADATA: document}
        if iterator:
            parts[STREAM] = stream
        self.wait()
        self._writing = int(step)
        try:
            self._orbax.save_checkpointables_async(int(step), parts, force=True, overwrite=True)
        except Exception as error:
            raise CheckpointError(f"{self._path(step)}: save failed: {_reason(error)}") from error
        if not self._asynchronous:
            self.wait()

    def restore(self, like: PyTree, stream: Any = None, step: int | None = None) -> Restored:
        """Restores the newest readable checkpoint, or the one of ``step``.

        A damaged checkpoint is reported through ``warn``, renamed to ``damaged-STEP`` and the one
        before is taken; with an explicit ``step`` it is an error.

        Args:
          like: pytree of arrays or ``jax.ShapeDtypeStruct``; shardings are respected.
          stream: a grain iterator to be moved to the saved position, or None.
          step: which checkpoint; None means the newest.

        Raises:
          CheckpointError: there is no checkpoint, none can be read, or it is of another learner.
        """
        self.wait()
        self._orbax.reload()
        steps = self.steps()
        if step is not None:
            if step not in steps:
                raise CheckpointError(f"{self._path(step)}: no such checkpoint; there are {steps}")
            return self._load(step, like, stream)
        if not steps:
            raise CheckpointError(f"{self.directory}: there is no checkpoint to continue from")
        damaged: list[int] = []
        for candidate in reversed(steps):
            try:
                restored = self._load(candidate, like, stream)
            except _Damaged as error:
                self._warn(f"{error}; it is passed over for the one before it")
                damaged.append(candidate)
            else:
                self._set_aside(damaged)
                return restored
        raise CheckpointError(f"{self.directory}: none of the checkpoints {steps} can be read")

    def wait(self) -> None:
        """Returns when nothing is being written any more; raises CheckpointError if it failed."""
        try:
            self._orbax.wait()
        except Exception as error:
            path = self._path(self._writing)
            raise CheckpointError(f"{path}: save failed: {_reason(error)}") from error

    def close(self) -> None:
        """Finishes what is being written and releases threads."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def _path(self, step: int) -> epath.Path:
        return self.directory / str(step)

    def _seal(self) -> None:
        """Runs in the writing thread when all files are there, just before they are committed."""
        if jax.process_index() == 0:
            for path in self.directory.iterdir():
                # The temporary directory is the step's name with a suffix; where the file system
                # has no atomic rename it is the final name itself.
                if path.name.split(".")[0] == str(self._writing) and path.is_dir():
                    checksums.seal(path, ignore=UNSEALED)

    def _load(self, step: int, like: PyTree, stream: Any) -> Restored:
        # Processes that took different checkpoints would wait for each other.
        fault = checksums.fault(self._path(step)) if jax.process_index() == 0 else None
        if hosts.largest(int(fault is not None)):
            raise _Damaged(
                f"{self._path(step)}: damaged checkpoint ({fault or 'so the first says'})"
            )
        document = self._read(step, {METADATA: None})[METADATA]
        _check_same(self._path(step), document["leaves"], _describe(like))
        iterator = _is_iterator(stream)
        if iterator and not document["iterator"]:
            raise CheckpointError(f"{self._path(step)}: was saved without a data iterator")
        wanted = {name: _placed(leaf) for name, leaf in _flatten(like).items()}
        leaves = self._read(step, {LEARNER: _not_empty(wanted)})[LEARNER]
        if iterator:
            stream = self._read(step, {STREAM: stream})[STREAM]
        else:
            stream = document["stream"]
        values = [leaves[n] if n in leaves else _empty(leaf) for n, leaf in wanted.items()]
        learner = jax.tree.unflatten(jax.tree.structure(like), values)
        return Restored(step, learner, stream, document["metadata"])

    def _read(self, step: int, parts: dict[str, Any]) -> dict[str, Any]:
        found, damage = {}, None
        try:
            found = self._orbax.load_checkpointables(step, parts)
        except Exception as error:
            damage = error
        if hosts.largest(int(damage is not None)):
            reason = _reason(damage) if damage else "another process cannot read it"
            raise _Damaged(f"{self._path(step)}: damaged checkpoint ({reason})") from damage
        return found

    def _set_aside(self, steps: list[int]) -> None:
        """Renames damaged checkpoints, which would otherwise count as the newest to keep."""
        if jax.process_index() == 0:
            for step in steps:
                names = (
                    f"damaged-{step}{suffix}" for suffix in ("", *map("-{}".format, range(99)))
                )
                target = next(path for n in names if not (path := self.directory / n).exists())
                self._path(step).rename(target)
        if steps:
            hosts.largest(0)  # all wait for the first
            self._orbax.reload()


class _Damaged(CheckpointError):
    """One checkpoint that cannot be read."""


def _context(seal: Callable[[], None]) -> ocp.Context:
    # JSON made of numbers alone would otherwise be taken for a pytree of arrays.
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name=METADATA)
    context = ocp.Context()
    context.checkpointables.registry = registry
    context.asynchronous.post_finalization_callback = seal
    return context


def _is_iterator(stream: Any) -> bool:
    return isinstance(stream, ocp.handlers.StatefulCheckpointable)


def _flatten(tree: PyTree) -> dict[str, Any]:
    """``{path: leaf}``: independent of the node types of the learner, which orbax need not know."""
    return {
        jax.tree_util.keystr(path): _as_array(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _as_array(leaf: Any) -> Any:
    return leaf if hasattr(leaf, "dtype") else np.asarray(leaf, jnp.result_type(leaf))


def _not_empty(leaves: dict[str, Any]) -> dict[str, Any]:
    """Leaves with at least one element: orbax refuses to save the others."""
    return {name: leaf for name, leaf in leaves.items() if leaf.size}


def _empty(leaf: Any) -> Any:
    """What orbax does not save, committed to its device like the rest.

    A step compiled for a mixture would be compiled once more for the state that it returns.
    """
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
    return jax.device_put(leaf, leaf.sharding) if isinstance(leaf, jax.Array) else leaf


def _placed(leaf: Any) -> Any:
    """A shape without a sharding is restored to the default device, wherever it was saved from."""
    if not isinstance(leaf, jax.ShapeDtypeStruct) or leaf.sharding is not None:
        return leaf
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)


def _describe(tree: PyTree) -> dict[str, str]:
    """``{path: "float32[2,3]"}``."""
    return {
        name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for name, leaf in _flatten(tree).items()
    }


def _check_same(path: epath.Path, saved: dict[str, str], wanted: dict[str, str]) -> None:
    names = [n for n in {**saved, **wanted} if saved.get(n) != wanted.get(n)]
    if not names:
        return
    first, others = names[0], ""
    if len(names) > 1:
        others = f" (and {len(names) - 1} more leaves differ)"
    raise CheckpointError(
        f"{path}: saved from another learner: {first} is {saved.get(first, 'absent')} there and "
        f"{wanted.get(first, 'absent')} here{others}; use the configuration it was saved with"
    )


def _require_json(field: str, value: Any) -> None:
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(field, value, f"must be JSON-able: {error}") from error


def _reason(error: BaseException) -> str:
    """The innermost cause of an error, short enough to be part of one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:160] + "..."
