"""A plan as text to read, and as JSON for machines."""

from __future__ import annotations

import collections
import dataclasses
import json
from typing import Any

from sleeplm.plan.collectives import Collective
from sleeplm.plan.compiling import Plan, Planned

SHOWN = 4  # warnings of a program; the JSON has all


def as_text(plan: Plan) -> str:
    """The plan, one paragraph a program."""
    axes = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    head = (
        f"{plan.topology}: {plan.chips} chips of {in_words(plan.chip.memory)}, mesh {axes}. "
        "Compiled ahead of time, nothing was run. All figures are of one chip and one call."
    )
    return "\n\n".join([head, *(_program(plan, program) for program in plan.programs)])


def _program(plan: Plan, p: Planned) -> str:
    share = p.needs / plan.chip.memory
    verdict = "fits" if p.fits else "DOES NOT FIT"
    kinds = ", ".join(f"{name} {in_words(size)}" for name, size in p.memory.items() if size)
    peak = f", {in_words(p.peak)} at the fullest" if p.peak else ""
    lines = [
        f"{p.name}: {p.about}",
        f"  memory {in_words(p.needs)} ({share:.0%}){peak}, {verdict}: {kinds}",
    ]
    if p.bound is not None:
        per_token = p.flops * plan.chips / p.tokens
        at_most = "; loops that may stop early counted whole" if p.bounded else ""
        lines.append(f"  {p.flops:.3e} FLOPs, {per_token:.3e} a token over all chips{at_most}")
        lines += [f"  {line}" for line in _moved(p.collectives)] or ["  no collectives"]
        lines.append(f"  donation {'took' if p.donated else 'DID NOT TAKE'}")
        each = p.bound.seconds / p.tokens
        lines.append(
            f"  roofline lower bound {each * 1e6:.3g} us a token ({p.bound.by}), "
            f"{p.bound.seconds:.3g} s a call: a real one takes longer"
        )
    lines += [f"  warning: {text}" for text in p.warnings[:SHOWN]]
    if len(p.warnings) > SHOWN:
        lines.append(f"  and {len(p.warnings) - SHOWN} more warnings, see --json")
    return "\n".join(lines)


def by_axis(collectives: tuple[Collective, ...]) -> dict[tuple[str, str], tuple[int, float, float]]:
    """(how often, bytes of whole arrays, bytes that leave a chip) by kind and axis, most first."""
    found: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0, 0.0, 0.0])
    for c in collectives:
        for i, value in enumerate((c.times, c.nbytes * c.times, c.sent)):
            found[c.kind, c.axis][i] += value
    ordered = sorted(found.items(), key=lambda item: -item[1][2])
    return {key: (int(times), whole, sent) for key, (times, whole, sent) in ordered}


def _moved(collectives: tuple[Collective, ...]) -> list[str]:
    return [
        f"{kind} over {axis}: {in_words(whole)} in {times:,}, {in_words(sent)} leave the chip"
        for (kind, axis), (times, whole, sent) in by_axis(collectives).items()
    ]


def as_json(plan: Plan) -> str:
    """The plan with everything that was found; bytes and FLOPs as numbers."""
    return json.dumps(as_dict(plan), indent=1) + "\n"


def as_dict(plan: Plan) -> dict[str, Any]:
    """What :func:`as_json` writes."""
    found = dataclasses.asdict(plan)
    for values, program in zip(found["programs"], plan.programs, strict=True):
        values["flops_per_token"] = program.flops * plan.chips / program.tokens
        values["collectives"] = [
            {"kind": kind, "axis": axis, "times": times, "bytes": whole, "sent": sent}
            for (kind, axis), (times, whole, sent) in by_axis(program.collectives).items()
        ]
        if program.bound is not None:
            values["bound"]["seconds"], values["bound"]["by"] = (
                program.bound.seconds,
                program.bound.by,
            )
            values["lower_bound_seconds_per_token"] = program.bound.seconds / program.tokens
    return {**found, "chips": plan.chips, "fits": plan.fits}


def in_words(count: float) -> str:
    """Bytes in the largest unit that they fill."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"
