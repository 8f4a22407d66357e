"""What a compiled program does in one call: matrix products and collectives, loops multiplied out.

XLA's own cost analysis counts the body of a loop once, so a model whose layers are scanned would
seem to cost one layer. Here every loop counts as often as it runs; of the branches of a
conditional, the costliest counts. What is elementwise is left out, as in
:mod:`sleeplm.bench.flops`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import numpy as np

from sleeplm.plan.collectives import Collective, axis_of, groups_of, kind_of, payload
from sleeplm.plan.hlo import Instruction, Module, trips


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one chip in one call.

    Attributes:
      flops: of matrix products; a multiply-add is two.
      collectives: every collective that joins more than one chip.
      bounded: loops that may stop early, and are counted as if they did not.
    """

    flops: float
    collectives: tuple[Collective, ...]
    bounded: tuple[str, ...]


def costs(module: Module, mesh: dict[str, int]) -> Costs:
    """Costs of a program that was compiled for a mesh of these axes, in order, and sizes."""
    found = _Walk(module, mesh).of(module.entry)
    return Costs(found.flops, tuple(c for _, c in found.collectives), tuple(found.bounded))


@dataclasses.dataclass
class _Found:
    flops: float = 0.0
    collectives: list[tuple[str, Collective]] = dataclasses.field(default_factory=list)
    bounded: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: _Found, times: int = 1) -> None:
        self.flops += times * other.flops
        self.bounded += [name for name in other.bounded if name not in self.bounded]
        self.collectives += [
            (channel, dataclasses.replace(c, times=c.times * times))
            for channel, c in other.collectives
        ]

    @property
    def weight(self) -> tuple[float, float]:
        return self.flops, sum(c.sent for _, c in self.collectives)


class _Walk:
    """Costs of computations, each looked at once."""

    def __init__(self, module: Module, mesh: dict[str, int]):
        self._module, self._mesh = module, mesh
        self._known: dict[str, _Found] = {}

    def of(self, computation: str) -> _Found:
        if computation not in self._known:
            self._known[computation] = self._count(computation)
        return self._known[computation]

    def _count(self, computation: str) -> _Found:
        total = _Found()
        for line in self._module.computations[computation]:
            if line.opcode == "while":
                times, exact = trips(self._module, computation, line)
                (body,) = line.called("body")
                total.add(self.of(body), times)
                if not exact:
                    total.add(_Found(bounded=[line.origin]))
            elif line.opcode == "conditional":
                names = line.called("branch_computations")
                names = names or line.called("true_computation") + line.called("false_computation")
                total.add(max((self.of(name) for name in names), key=lambda found: found.weight))
            elif line.opcode in ("fusion", "call", "async-start"):
                for name in line.called("calls") + line.called("to_apply"):
                    # What runs beside the arithmetic of several fusions is named in each of them.
                    seen = {channel for channel, _ in total.collectives if channel}
                    inner = self.of(name)
                    new = [pair for pair in inner.collectives if pair[0] not in seen]
                    total.add(_Found(inner.flops, new, inner.bounded))
            elif line.opcode in ("dot", "convolution", "ragged-dot"):
                total.flops += _flops(self._module, computation, line)
            elif kind := kind_of(line, computation):
                total.collectives += self._collective(computation, line, kind)
        return total

    def _collective(
        self, computation: str, line: Instruction, kind: str
    ) -> list[tuple[str, Collective]]:
        pairs = kind == "collective-permute"
        groups = groups_of(line.attributes, math.prod(self._mesh.values()))
        chips = max(len(group) for group in groups)
        if chips < 2:
            return []
        nbytes = payload(kind, self._module.arrays_of(computation, line.operands), chips)
        channel = re.search(r"channel_id=(\d+)", line.attributes)
        axis = axis_of(groups, self._mesh, pairs)
        made = Collective(kind, axis, chips, nbytes, 1, line.origin)
        return [(channel[1] if channel else "", made)]


def _flops(module: Module, computation: str, line: Instruction) -> float:
    left, right = (module.arrays_of(computation, (name,))[0].shape for name in line.operands[:2])
    (out,) = (array.shape for array in line.arrays[:1])
    if line.opcode == "ragged-dot":
        return 2.0 * math.prod(left) * out[-1]
    if line.opcode == "dot":
        found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.attributes)
        over = [int(n) for n in found[1].split(",") if n] if found else []
        return 2.0 * math.prod(out) * math.prod(left[i] for i in over)
    return _convolution(line, left, right, out)


def _convolution(line: Instruction, left: tuple, right: tuple, out: tuple) -> float:
    """Of a convolution, as which TPUs write products: only what does not fall on padding.

    A product's batch dimensions are spatial ones there, so dilated and padded that each position
    of the result meets one of the kernel's.
    """
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.attributes)
    assert found, line
    into, kernel, result = found[1], found[2], found[3]
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", _window(line.attributes)))
    spatial = sorted(set(into) - set("bf"))
    total = 2.0 * out[result.index("b")] * out[result.index("f")] * right[kernel.index("i")]
    for axis, name in enumerate(spatial):
        at = functools.partial(_entry, window, axis)
        low = int(at("pad", "0_0").split("_")[0])
        total *= _meetings(
            left[into.index(name)], right[kernel.index(name)], out[result.index(name)],
            int(at("stride", "1")), low, int(at("lhs_dilate", "1")), int(at("rhs_dilate", "1")),
        )  # fmt: skip
    groups = re.search(r"batch_group_count=(\d+)", line.attributes)
    return total / (int(groups[1]) if groups else 1)


def _window(attributes: str) -> str:
    found = re.search(r"window=\{([^}]*)\}", attributes)
    return found[1] if found else ""


def _entry(window: dict[str, str], axis: int, name: str, default: str) -> str:
    return window[name].split("x")[axis] if name in window else default


@functools.lru_cache(maxsize=4096)
def _meetings(
    size: int, kernel: int, out: int, stride: int, low: int, dilate: int, spread: int
) -> int:
    """Pairs of a position of the result and one of the kernel that meet an element."""
    at = np.arange(out)[:, None] * stride + np.arange(kernel) * spread - low
    inside = (at >= 0) & (at <= (size - 1) * dilate) & (at % dilate == 0)
    return int(inside.sum())
