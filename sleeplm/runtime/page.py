"""The page of a retention report, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEADINGS = (
    "arm",
    "recall at the end (95%)",
    "forgetting",
    "backward transfer",
    "awake",
    "pretraining lost",
)


def render_page(report: Mapping[str, Any], picture: str) -> str:
    """The page of ``report`` (see ``report.summarize``) with ``picture`` embedded."""
    arms = report["arms"]
    parts = [
        f"# {report.get('experiment') or 'Retention'}",
        _world(report),
        _table(HEADINGS, [_row(name, arm) for name, arm in arms.items()]),
        _notes(arms),
        _difference(report),
        "## Certification",
        _certification(report["certified"]),
        "## Recall",
        f"![Recall of every day's facts after every night, and against age]({picture})",
        "## Recall against age",
        _ages(arms),
        "## Cost",
        _cost(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _world(report: Mapping[str, Any]) -> str:
    world = report.get("world") or {}
    facts = [f"{key.replace('_', ' ')} {value}" for key, value in world.items()]
    if report.get("digest"):
        facts.append(f"configuration {str(report['digest'])[:12]}")
    return "; ".join(facts)


def _row(name: str, arm: Mapping[str, Any]) -> list[str]:
    last = arm["mean_recall_last"]
    awake = sum(arm["awake"]) / len(arm["awake"])
    return [
        name,
        f"{last['mean']:.3f} ({last['low']:.3f} to {last['high']:.3f})",
        f"{arm['forgetting']:.3f}",
        f"{arm['backward_transfer']:+.3f}",
        f"{awake:.3f}",
        f"{arm['pretrain_lost']:.3f}",
    ]


def _notes(arms: Mapping[str, Any]) -> str:
    seeds = ", ".join(f"{name} {arm['seeds']}" for name, arm in arms.items())
    kinds = sorted({arm["mean_recall_last"]["interval"] for arm in arms.values()})
    return (
        "Recall at the end is the mean over days after the last night. "
        f"Intervals: 95% bootstrap {' / '.join(kinds)}. Seeds: {seeds}. "
        "Forgetting is the drop from the best recall before the last night; backward transfer is "
        "the change since a day's own night; awake is the recall of today's facts before sleep."
    )


def _difference(report: Mapping[str, Any]) -> str:
    if "difference" not in report:
        return ""
    gain = report["difference"]["sleep_minus_wake_only"]["mean_recall_last"]
    return (
        f"Sleep minus wake_only, recall at the end: **{gain['mean']:+.3f}** "
        f"({gain['low']:+.3f} to {gain['high']:+.3f}, paired {gain['interval']})."
    )


def _certification(certified: Mapping[str, Any]) -> str:
    awake, loses = certified["awake"], certified["wake_only_loses"]
    known = (
        f"- awake recall of the day's facts at least {awake['needed']}: "
        f"**{_yes(awake['ok'])}** (lowest {awake['lowest']:.3f})"
    )
    lines = [known]
    if loses is None:
        lines.append("- wake_only loses them: not measured (no such arm, or a single day)")
    else:
        lines.append(
            f"- wake_only loses them (at most {loses['allowed']} left of the earlier days): "
            f"**{_yes(loses['ok'])}** ({loses['left']:.3f} left)"
        )
    return "\n".join(lines)


def _ages(arms: Mapping[str, Any]) -> str:
    nights = max(len(arm["age"]) for arm in arms.values())
    rows = [[name, *(f"{recall:.3f}" for recall in arm["age"])] for name, arm in arms.items()]
    rows = [row + [""] * (nights + 1 - len(row)) for row in rows]
    return _table(["nights since", *map(str, range(nights))], rows)


def _cost(report: Mapping[str, Any]) -> str:
    rows = []
    for name, arm in report["arms"].items():
        for seed, cost in enumerate(arm["cost"]):
            row = {"arm": name, "seed": str(seed)}
            row |= {f"{key} tokens": f"{value:,}" for key, value in (cost["tokens"] or {}).items()}
            row |= {f"{key} s": f"{value:.1f}" for key, value in _seconds(cost["seconds"]).items()}
            rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = _table(names, [[row.get(name, "") for name in names] for row in rows])
    total = report.get("seconds")
    return table if total is None else f"{table}\n\nThe whole experiment: {total:.1f} s."


def _seconds(seconds: Any) -> dict[str, float]:
    if seconds is None:
        return {}
    return dict(seconds) if isinstance(seconds, Mapping) else {"all": float(seconds)}


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _yes(ok: bool) -> str:
    return "yes" if ok else "no"
