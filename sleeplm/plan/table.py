"""Many plans as one table: ``python -m sleeplm.plan.table FILE...``, files of ``plan --json``.

One row a program, in Markdown. All figures are of one chip and one call. Bytes in collectives are
those of whole arrays, over ``data`` and ``fsdp``: gathered, and summed (scattered or not), with
what is summed as a multiple of the gradient of what is trained. A plan is called as its file.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sleeplm.core.errors import ConfigError, SleepError
from sleeplm.plan.findings import SUMS
from sleeplm.plan.report import in_words

HEAD = (
    "plan", "topology", "mesh", "program", "memory", "FLOPs", "gathered", "summed", "of gradient",
    "lower bound", "by", "warnings",
)  # fmt: skip


def table(plans: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """The table, in the order given.

    Args:
      plans: names, and what :func:`~sleeplm.plan.report.as_dict` says of each.
    """
    rows: list[Sequence[str]] = [HEAD, ["---"] * len(HEAD)]
    for name, plan in plans:
        axes = " ".join(f"{axis}={size}" for axis, size in plan["mesh"].items() if size > 1)
        rows += [[name, plan["topology"], axes, *_program(plan, one)] for one in plan["programs"]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _program(plan: Mapping[str, Any], one: Mapping[str, Any]) -> list[str]:
    share = one["needs"] / plan["chip"]["memory"]
    memory = f"{in_words(one['needs'])} ({share:.0%})"
    if not one["fits"]:
        return [one["name"], f"{memory}, DOES NOT FIT", *["" for _ in HEAD[5:]]]
    moved = [c for c in one["collectives"] if "tensor" not in c["axis"]]
    gathered = sum(c["bytes"] for c in moved if c["kind"] == "all-gather")
    summed = sum(c["bytes"] for c in moved if c["kind"] in SUMS)
    times = f"{summed / one['gradient']:.2g}" if one["gradient"] else ""
    return [
        one["name"], memory, f"{one['flops']:.3e}", in_words(gathered), in_words(summed), times,
        f"{one['bound']['seconds']:.3g} s", one["bound"]["by"], str(len(one["warnings"])),
    ]  # fmt: skip


def read(path: pathlib.Path) -> tuple[str, dict[str, Any]]:
    """A plan's name and what its file says.

    Raises:
      ConfigError: the file cannot be read, or is no plan.
    """
    try:
        plan = json.loads(path.read_text())
        table([(path.stem, plan)])  # whatever a row needs is there
    except OSError as error:
        raise ConfigError("file", str(path), f"cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        remedy = "is no plan: write one with sleeplm plan CONFIG --json FILE"
        raise ConfigError("file", str(path), remedy) from None
    return path.stem, plan


if __name__ == "__main__":
    try:
        print(table(read(pathlib.Path(name)) for name in sys.argv[1:]))
    except SleepError as error:
        sys.exit(f"table: {error}")
