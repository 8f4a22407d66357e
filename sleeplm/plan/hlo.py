"""A compiled program's text as computations and instructions: what has to be counted in it."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

from sleeplm.core.errors import ConfigError

HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
SHAPE = re.compile(r"\b(pred|bf16|token|[suf]\d+|f8\w+|c64|c128)\[([\d,]*)\]")
PARENTHESIS = re.compile(r"[()]")
OPCODE = re.compile(r"\s*([\w\-]+)\(")
NAME = re.compile(r"%([\w.\-]+)")
KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Array:
    """Type and shape of one array."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> float:
        bits = re.sub(r"\D", "", self.dtype[:3]) if self.dtype[:2] != "bf" else "16"
        return math.prod(self.shape) * (1 if self.dtype == "pred" else int(bits or 0) / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: what it makes, of what, and the rest of the line as it stands."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    inside: str
    attributes: str
    root: bool

    def called(self, key: str) -> list[str]:
        """Names of the computations that it calls as ``key``."""
        found = re.search(rf"\b{key}=\{{?([%\w.\-, ]+)", self.attributes)
        return [] if found is None else NAME.findall(found[1])

    @property
    def origin(self) -> str:
        """Where it comes from in the traced program, or its own name."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else self.name


@dataclasses.dataclass(frozen=True)
class Module:
    """All computations of a program, by name, each its instructions in order."""

    computations: dict[str, list[Instruction]]
    entry: str

    @functools.cached_property
    def by_name(self) -> dict[str, dict[str, Instruction]]:
        return {c: {i.name: i for i in lines} for c, lines in self.computations.items()}

    def arrays_of(self, computation: str, names: tuple[str, ...]) -> list[Array]:
        """What the named instructions of a computation make."""
        table = self.by_name[computation]
        return [array for name in names if name in table for array in table[name].arrays]


def parse(text: str) -> Module:
    """The text of a compiled program, see ``jax.stages.Compiled.as_text``.

    Raises:
      ConfigError: it has no entry, so it is no such text.
    """
    computations: dict[str, list[Instruction]] = {}
    current: list[Instruction] | None = None
    entry = ""
    for line in text.splitlines():
        if current is None:
            if header := HEADER.match(line):
                current = computations.setdefault(header[2], [])
                entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif found := INSTRUCTION.match(line):
            current.append(_instruction(found[2], found[3], bool(found[1])))
    if not entry:
        raise ConfigError("program", text[:40], "is not the text of a compiled program")
    return Module(computations, entry)


def _instruction(name: str, text: str, root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    result, rest = text[:end], text[end:]
    opcode = OPCODE.match(rest)
    if opcode is None:
        return Instruction(name, "", _arrays(result), (), "", rest, root)
    start = opcode.end() - 1
    stop = _closing(rest, start)
    inside = rest[start + 1 : stop]
    operands = tuple(NAME.findall(inside))
    return Instruction(name, opcode[1], _arrays(result), operands, inside, rest[stop + 1 :], root)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at ``start`` closes."""
    depth = 0
    for found in PARENTHESIS.finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    return len(text) - 1


def _arrays(text: str) -> tuple[Array, ...]:
    return tuple(
        Array(dtype, tuple(int(n) for n in dims.split(",") if n))
        for dtype, dims in SHAPE.findall(text)
    )


def trips(module: Module, computation: str, loop: Instruction) -> tuple[int, bool]:
    """How often a ``while`` runs, and whether that is exact; else it is at most so often.

    A loop that only counts (``lax.scan``) says so, or compares its counter with a constant. One
    that may stop early (generation) compares as well: then the constant is a bound.
    """
    if known := KNOWN_TRIPS.search(loop.attributes):
        return int(known[1]), True
    (condition,) = loop.called("condition")
    limits, exact = _limits(module, condition)
    if not limits:
        return 1, False
    return max(max(limits) - _first(module, computation, loop, condition), 0), exact


def _limits(module: Module, condition: str) -> tuple[list[int], bool]:
    """Constants of a condition, and whether it is one comparison and nothing else."""
    limits, exact = [], True
    for line in module.computations[condition]:
        if line.opcode == "constant" and line.arrays[0].shape == () and line.inside.isdigit():
            limits.append(int(line.inside))
        elif line.opcode == "fusion":
            for inner in line.called("calls"):
                more, plain = _limits(module, inner)
                limits, exact = limits + more, exact and plain
        elif line.opcode not in ("parameter", "get-tuple-element", "compare", "copy", "bitcast"):
            exact = False
    return limits, exact and len(limits) == 1


def _first(module: Module, computation: str, loop: Instruction, condition: str) -> int:
    """Where the counter of a loop begins, if the text says it; else 0."""
    counters = [i for i in module.computations[condition] if i.opcode == "get-tuple-element"]
    if len(counters) != 1 or not (at := re.search(r"index=(\d+)", counters[0].attributes)):
        return 0
    table = module.by_name[computation]
    start = table.get(loop.operands[0]) if loop.operands else None
    if start is None or start.opcode != "tuple":
        return 0
    value = table.get(start.operands[int(at[1])])
    while value is not None and value.opcode in ("copy", "bitcast") and value.operands:
        value = table.get(value.operands[0])
    plain = value is not None and value.opcode == "constant" and value.inside.isdigit()
    return int(value.inside) if plain and value is not None else 0
