"""Which chips a collective joins, and what it moves."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence

import numpy as np

from sleeplm.plan.hlo import Array, Instruction

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
LISTED = re.compile(r"replica_groups=\{(\{[\d,{} ]*\})\}")
COUNTED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^ ]*)\))? \{([^}]*)\}")
IOTA = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")
PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{} ]*\})\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of collective at one place of a program.

    Attributes:
      kind: one of :data:`KINDS`. axis: mesh axes that it joins, with x between, or ``?``.
      chips: how many it joins at a time.
      nbytes: of the whole array: what is reduced, or what is gathered, on one chip, each time.
      times: how often it runs in one call of the program.
      origin: where it comes from in the traced program.
    """

    kind: str
    axis: str
    chips: int
    nbytes: float
    times: int
    origin: str

    @property
    def sent(self) -> float:
        """Bytes that leave a chip at least, in all: a ring's, which no algorithm beats."""
        share = (self.chips - 1) / self.chips
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return factor * self.nbytes * self.times


def kind_of(line: Instruction, computation: str) -> str | None:
    """The kind of collective that an instruction is, None if it is none.

    TPUs reduce and scatter in a computation of that name that says ``all-reduce``.
    """
    name = line.opcode.removesuffix("-start")
    if name == "all-reduce" and "all-reduce-scatter" in computation:
        return "reduce-scatter"
    return name if name in KINDS else None


def payload(kind: str, operands: Sequence[Array], chips: int) -> float:
    """Bytes of the whole array, from those that one chip gives."""
    given = sum(array.nbytes for array in operands)
    return given * chips if kind == "all-gather" else given


def groups_of(attributes: str, devices: int) -> list[list[int]]:
    """Positions on the mesh that talk to each other, as the text of an instruction says it."""
    if found := LISTED.search(attributes):
        return [_numbers(group) for group in found[1].strip("{}").split("},{")]
    if found := COUNTED.search(attributes):
        return _counted(found[2], found[3]).reshape(_numbers(found[1])).tolist()
    if found := NAMED.search(attributes):
        return _named(found[1], found[2], found[3])
    if found := PAIRS.search(attributes):
        return [_numbers(pair) for pair in found[1].strip("{}").split("},{")]
    return [list(range(devices))]


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _counted(dims: str, order: str | None) -> np.ndarray:
    """Positions 0, 1, ... in an array of these dimensions, which are then put in this order."""
    shape = _numbers(dims)
    ids = np.arange(math.prod(shape)).reshape(shape)
    return ids.transpose(_numbers(order)) if order else ids


def _named(axes: str, ids: str | None, joined: str) -> list[list[int]]:
    """Groups along named axes of a mesh of the program's own, whose positions may be reordered."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    dims, at = [], []
    for name, size in sizes.items():
        # Of an axis a part may be joined: 'a':(2)4 is 4 after the first 2.
        for before, part in re.findall(rf"'{name}'(?::\((\d+)\)(\d+))?", joined):
            first, mine = (int(before), int(part)) if part else (1, size)
            dims += [first, mine, size // (first * mine)]
            at.append(len(dims) - 2)
            break
        else:
            dims.append(size)
    groups = np.array(_over(dims, at))
    order = IOTA.search(ids) if ids else None
    given = _counted(order[1], order[2]).reshape(-1) if order else np.arange(groups.size)
    return given[groups].tolist()


def _over(sizes: Sequence[int], joined: Sequence[int]) -> list[list[int]]:
    """Groups of positions that differ in the joined dimensions only."""
    ids = np.arange(math.prod(sizes)).reshape(tuple(sizes))
    count = math.prod(sizes[i] for i in joined)
    return np.moveaxis(ids, list(joined), range(-len(joined), 0)).reshape(-1, count).tolist()


def axis_of(groups: Sequence[Sequence[int]], mesh: dict[str, int], pairs: bool = False) -> str:
    """The mesh axes that groups of positions lie along, as ``data``, ``data x fsdp`` or ``?``.

    Args:
      mesh: names and sizes, in order. pairs: groups are (from, to), which differ along the axes.
    """
    names, sizes = list(mesh), list(mesh.values())
    if pairs:
        at = [np.unravel_index([a, b], sizes) for a, b in groups]
        moved = [n for i, n in enumerate(names) if any(x[i][0] != x[i][1] for x in at)]
        return " x ".join(moved) or "?"
    wanted = {frozenset(group) for group in groups}
    axes = [i for i, size in enumerate(sizes) if size > 1]
    for count in range(1, len(axes) + 1):
        for joined in itertools.combinations(axes, count):
            if {frozenset(group) for group in _over(sizes, joined)} == wanted:
                return " x ".join(names[i] for i in joined)
    return "?"
