"""A program compiled for a pod, and what the compiler says it needs."""

from __future__ import annotations

import dataclasses
import math
import re
import time
import warnings
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from sleeplm.core.platform import written_for
from sleeplm.core.types import PyTree, State
from sleeplm.memory.levels import get_level
from sleeplm.models.transformer import Model
from sleeplm.plan.chips import Chip
from sleeplm.plan.collectives import Collective
from sleeplm.plan.config import PlanConfig
from sleeplm.plan.costs import costs
from sleeplm.plan.findings import large_whole, unexpected, waiting
from sleeplm.plan.hlo import parse
from sleeplm.plan.memory import by_kind, nbytes
from sleeplm.plan.programs import KEY, Program, placed, programs
from sleeplm.plan.roofline import Bound, lower_bound
from sleeplm.plan.topology import chip_of, devices
from sleeplm.runtime.parallel import mesh as make_mesh
from sleeplm.runtime.rules import cache_specs

#: What the compiler says where there is no room: for all, or beside the arguments.
TOO_LARGE = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", re.IGNORECASE)
BESIDE = re.compile(r"HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM", re.IGNORECASE)
#: For a compiler in a hurry: less searching, and no products cut up to run beside what they
#: wait for.
FAST: dict[str, Any] = {
    "exec_time_optimization_effort": -1.0,
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000,
}
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Planned:
    """What one program needs of one chip; bytes and FLOPs are those of one call.

    Attributes:
      name, about, tokens: see :class:`~sleeplm.plan.programs.Program`.
      fits: whether the compiler found room for it.
      needs: bytes of all that a call is given, returns and works with. Where parts of it share room
        that is more than there ever is at once, and may be more than a chip's memory.
      peak: bytes at the fullest by the compiler's count; 0 where it has none.
      memory: bytes by kind, see :data:`~sleeplm.plan.memory.KINDS`; ``padding`` of these to whole
        tiles; ``cache``, the largest key/value cache; ``activations``, all else that a call needs.
        Without the last two where it does not fit.
      gradient: bytes of the gradients of what is trained, in float32; 0 where nothing is.
      flops: of matrix products. collectives: all of them, of loops as often as they run.
      donated: whether the old state's memory is the new one's.
      bound: the least time of one call, None where it does not fit.
      bounded: loops that may stop early and are counted whole.
      warnings: one line each. seconds: that compiling took.
    """

    name: str
    about: str
    tokens: int
    fits: bool
    needs: float
    memory: dict[str, float]
    gradient: float = 0.0
    peak: float = 0.0
    flops: float = 0.0
    collectives: tuple[Collective, ...] = ()
    donated: bool = False
    bound: Bound | None = None
    bounded: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """All programs of one configuration on one topology.

    Attributes:
      senders: bytes on a chip of one state of each level that is consolidated; a learner keeps
        three of each for its teachers.
    """

    topology: str
    mesh: dict[str, int]
    chip: Chip
    programs: tuple[Planned, ...]
    senders: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def chips(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def fits(self) -> bool:
        return all(program.fits for program in self.programs)


def plan(config: PlanConfig, topology: str, *, fast: bool = False) -> Plan:
    """Compiles the programs of a configuration for a topology such as ``v5e:4x4``.

    Args:
      fast: see :func:`compiled`.

    Raises:
      ConfigError: a setting or a topology that cannot work, or libtpu is not installed.
    """
    config.check("")
    chip, found = chip_of(topology), devices(topology)
    mesh = make_mesh(config.mesh.shape(len(found), config.model.d_model), found)
    with written_for("tpu"):
        made = programs(config, mesh)
        done = tuple(compiled(program, mesh, chip, fast=fast) for program in made)
        senders = bytes_of_senders(config, mesh)
    return Plan(topology, dict(mesh.shape), chip, done, senders)


def all_fit(config: PlanConfig, topology: str, *, fast: bool = False) -> bool:
    """Whether all programs of a configuration fit; compiles none after the first that does not."""
    one_each = (dataclasses.replace(config, programs=[name]) for name in config.programs)
    return all(plan(one, topology, fast=fast).fits for one in one_each)


def compiled(program: Program, mesh: Mesh, chip: Chip, *, fast: bool = False) -> Planned:
    """One program, compiled for the devices of a mesh.

    Args:
      fast: compile in a quarter of the time, to a program with the same FLOPs that is worse
        scheduled: it needs more memory than a real one, and moves more bytes.
    """
    state, batch = program.arguments(mesh)
    kinds: dict[str, float] = dict(by_kind(state, batch))
    began = time.monotonic()
    whole = large_whole(state, chip.memory)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        lowered = program.lower(mesh)
        try:
            done = lowered.compile(FAST if fast else None)
        except jax.errors.JaxRuntimeError as error:
            needs = room(str(error), sum(kinds.values()))
            if needs is None:
                raise
            return Planned(
                program.name, program.about, program.tokens, False, needs, kinds, program.gradient,
                warnings=whole, seconds=time.monotonic() - began,
            )  # fmt: skip
    refused = [str(w.message) for w in said if "donated" in str(w.message)]
    memory: Any = done.memory_analysis()
    found = costs(parse(done.as_text() or ""), dict(mesh.shape))
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    kinds["padding"] = arguments - sum(kinds.values())
    cache = cache_bytes(program, mesh)
    kinds["cache"] = min(cache, temporary)
    kinds["activations"] = temporary + fresh - kinds["cache"]
    bound = lower_bound(
        chip, flops=found.flops, moved=arguments + fresh, weights=weights(state),
        reads=program.reads, sent=sum(c.sent for c in found.collectives),
    )  # fmt: skip
    unusual = unexpected(found.collectives, program.state, program.gradient)
    return Planned(
        program.name, program.about, program.tokens, True, arguments + fresh + temporary, kinds,
        gradient=program.gradient, peak=getattr(memory, "peak_memory_in_bytes", 0),
        flops=found.flops, collectives=found.collectives, bound=bound,
        bounded=found.bounded,
        donated=not refused and memory.alias_size_in_bytes >= _state_bytes(state),
        warnings=(*whole, *waiting(bound), *unusual),
        seconds=time.monotonic() - began,
    )  # fmt: skip


def bytes_of_senders(config: PlanConfig, mesh: Mesh) -> dict[str, int]:
    """Bytes on a chip of every level that has nights."""
    params = placed(jax.eval_shape(Model(config.model).init, KEY), mesh)
    names = [level.name for level in config.model.levels if level.night]
    return {name: sum(map(nbytes, jax.tree.leaves(get_level(params, name)))) for name in names}


def weights(state: PyTree) -> float:
    """Bytes on a chip of the parameters of every layer."""
    params = state.params if isinstance(state, State) else state["params"]
    return float(sum(nbytes(x) for x in jax.tree.leaves(params["blocks"])))


def cache_bytes(program: Program, mesh: Mesh) -> float:
    """Bytes on a chip of a program's key/value cache, laid out by the rules."""

    def place(x: Any, spec: Any) -> int:
        where = NamedSharding(mesh, spec)
        return nbytes(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where))

    return float(
        sum(jax.tree.leaves(jax.tree.map(place, program.cache, cache_specs(program.cache, mesh))))
    )


def _state_bytes(state: PyTree) -> int:
    """Bytes of the large arrays of a state; scalars may be handed over otherwise."""
    return sum(nbytes(x) for x in jax.tree.leaves(state) if nbytes(x) >= 2**12)


def room(message: str, arguments: float) -> float | None:
    """Bytes that the compiler wanted, if it is room that was missing.

    Args:
      message: its error. arguments: bytes of what the program is given.
    """
    for pattern, more in ((TOO_LARGE, 0.0), (BESIDE, arguments)):
        if found := pattern.search(message):
            return float(found[1]) * UNITS[found[2].upper()] + more
    return None
