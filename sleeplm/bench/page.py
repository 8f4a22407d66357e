"""The content of a retention report, as blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sleeplm.bench.blocks import (
    Block,
    Bullets,
    Heading,
    Picture,
    Table,
    Text,
    bold,
    nats,
    number,
    picked,
    share,
    signed,
    small,
    spread,
    yes,
)
from sleeplm.methods.dreams.config import SCORES

#: Half-lives above this are not told from each other, nights.
LONGEST_HALF_LIFE = 1000

#: Heading of a column, and the cell of an arm in it (empty where the arm has no such figure).
Column = tuple[str, Callable[[Mapping[str, Any]], str]]


def blocks(report: Mapping[str, Any], picture: str) -> list[Block]:
    """The content of the page of ``report`` (``report.json``).

    Args:
      picture: file name of the picture.
    """
    arms = report["arms"]
    parts: list[Block] = [Heading(str(report.get("experiment") or "Retention"), 1)]
    parts += [Text(line) for line in _world(report)]
    parts += _table(arms, _RECALL)
    parts += [Text(_notes(arms)), *_differences(report), *_bar(report)]
    parts += [Heading("Certification"), Bullets(_certification(report["certified"]))]
    parts += [Heading("Recall"), Picture(_ALT, picture)]
    parts += _section("Recall against age", [_listed(arms, "age", "nights since", share)])
    parts += _section("Dusk and dawn", _table(arms, _NIGHT), _DUSK)
    parts += _section("Log-probability beside recall", _lift(arms), _LIFT)
    parts += _section("Answers as text", _table(arms, _TEXT), _TEXT_SCORES)
    for title, name, show in _BY_NIGHT:
        parts += _section(title, [_listed(arms, name, "after night", show)])
    parts += _section("Routing", _table(arms, _ROUTING), _ROUTED)
    parts += _section("Dreams", _dreams(arms), _DREAMT)
    parts += _section("Knowledge", _table(arms, _KNOWLEDGE), _KNOWN)
    parts += [Heading("Cost"), *_cost(report)]
    return parts


def _world(report: Mapping[str, Any]) -> list[str]:
    """What was run, a line a run."""
    world, digest, runs = report.get("world") or {}, report.get("digest") or {}, report.get("runs")
    if not runs:
        return list(filter(None, [_facts(world, digest)]))
    worlds = world if list(world) == runs else dict.fromkeys(runs, world)
    return [f"**{run}**: {_facts(worlds[run] or {}, digest[run])}" for run in runs]


def _facts(world: Mapping[str, Any], digest: Any) -> str:
    told = {key: _told(value) for key, value in world.items()}
    facts = [f"{key.replace('_', ' ')} {value}" for key, value in told.items() if value]
    return "; ".join([*facts, f"configuration {digest[:12]}"] if digest else facts)


def _told(value: Any) -> str:
    """A value in words; of a list the one number, or the range, that it holds."""
    if not isinstance(value, list):
        return str(value)
    if not value or not all(isinstance(entry, int | float) for entry in value):
        return ""
    return " to ".join(str(end) for end in dict.fromkeys((min(value), max(value))))


def _notes(arms: Mapping[str, Any]) -> str:
    counts = {name: arm["seeds"] for name, arm in arms.items()}
    seeds = ", ".join(f"{name} {count}" for name, count in counts.items())
    if len(arms) > 2 and len(set(counts.values())) == 1:
        seeds = f"{next(iter(counts.values()))} each"
    kinds = sorted({arm["mean_recall_last"]["interval"] for arm in arms.values()} - {"none"})
    wordings = {w for arm in arms.values() for w in arm["wording"] if isinstance(w, str)}
    exam = f"Exams: {wordings.pop()}. " if len(wordings) == 1 else ""
    return (
        f"{exam}Recall at the end is the mean over days after the last night. "
        f"Intervals: 95% bootstrap {' / '.join(kinds) or 'needs more'}. Seeds: {seeds}. "
        "Forgetting is the drop from the best recall before the last night; backward transfer is "
        "the change since a day's own night; forward transfer is what was known of a day before "
        "it, less what was known at the start of life; the half-life is that of recall against "
        "age, in nights."
    )


def _differences(report: Mapping[str, Any]) -> list[Block]:
    gains = report.get("difference") or {}
    rows = [
        [
            name.replace("_minus_", " minus "),
            bold(spread(gain["mean_recall_last"], signed)),
            spread(gain.get("forgetting"), signed),
            spread(gain.get("pretrain_lost"), signed),
            f"{gain['mean_recall_last']['seeds']} ({gain['mean_recall_last']['interval']})",
        ]
        for name, gain in gains.items()
    ]
    if not rows:
        return []
    headings = ["arms", "recall at the end", "forgetting", "pretraining lost", "pairs (interval)"]
    return [Heading("Paired differences"), Table(headings, rows)]


def _bar(report: Mapping[str, Any]) -> list[Block]:
    judged = report.get("bar") or {}
    best, replay = judged.get("minus_best_without_raw_text"), judged.get("minus_static_replay")
    lines = []
    if best:
        lines.append(
            "sleep minus the best other arm that keeps no raw text "
            f"({best['arm']}), recall at the end: {bold(spread(best, signed))}"
        )
    if replay:
        lines.append(
            f"sleep minus static_replay, recall at the end: {bold(spread(replay, signed))}"
        )
    return [Bullets(lines)] if lines else []


def _certification(certified: Mapping[str, Any]) -> list[str]:
    awake, loses = certified["awake"], certified["wake_only_loses"]
    known = (
        f"awake recall of the day's facts at least {awake['needed']}: "
        f"**{yes(awake['ok'])}** (lowest {awake['lowest']:.3f}), in {awake['arm']}"
    )
    if loses is None:
        return [known, "wake_only loses them: not measured (no such arm, or a single day)"]
    lost = (
        f"wake_only loses them (at most {loses['allowed']} left of the earlier days): "
        f"**{yes(loses['ok'])}** ({loses['left']:.3f} left)"
    )
    return [known, lost]


def _lift(arms: Mapping[str, Any]) -> list[Block]:
    """Lift and recall in one cell an age."""
    known = {name: arm["curves"] for name, arm in arms.items() if "lift_age" in arm["curves"]}
    if not known:
        return []
    ages = picked(max(len(curves["lift_age"]["mean"]) for curves in known.values()))
    rows = []
    for name, curves in known.items():
        pairs = list(zip(curves["age"]["mean"], curves["lift_age"]["mean"], strict=True))
        cells = [pairs[age] if age < len(pairs) else (None, None) for age in ages]
        rows.append([name, *(" / ".join(filter(None, (share(r), nats(g)))) for r, g in cells)])
    return [Table(["nights since", *map(str, ages)], rows)]


def _dreams(arms: Mapping[str, Any]) -> list[Block]:
    tables = (_DREAMS, _BY_SCORE, _FALSEHOODS)
    return [table for columns in tables for table in _table(arms, columns)]


def _listed(
    arms: Mapping[str, Any], name: str, first: str, show: Callable[[Any], str]
) -> Table | None:
    """A row an arm of the curve ``name``; None if no arm has it."""
    means = {
        arm: figures["curves"][name]["mean"]
        for arm, figures in arms.items()
        if name in figures["curves"]
    }
    if not means:
        return None
    places = picked(max(map(len, means.values())))
    rows = [
        [arm, *(show(values[place]) if place < len(values) else "" for place in places)]
        for arm, values in means.items()
    ]
    offset = 0 if name.endswith("age") else 1
    return Table([first, *(str(place + offset) for place in places)], rows)


def _cost(report: Mapping[str, Any]) -> list[Block]:
    """Costs beside scores, means over seeds: totals first, then by kind."""
    kinds = {
        cost: list(
            dict.fromkeys(k for arm in report["arms"].values() for k in arm["compute"][cost])
        )
        for cost in ("tokens", "flops", "seconds")
    }
    totals: list[Column] = [("recall at the end", _figure("mean_recall_last"))]
    parts: list[Column] = []
    shows = {"tokens": "{:,.0f}", "flops": "{:.3g}", "seconds": "{:,.1f}"}
    for cost, names in kinds.items():
        unit = "FLOPs" if cost == "flops" else cost
        for name in names:
            column = (f"{name} {unit}", _amount(cost, name, shows[cost]))
            (totals if name == "total" else parts).append(column)
    kept: list[Column] = [
        ("cues", lambda arm: _entry(arm, "cues", "entries", "{:,.0f}")),
        ("bytes of cues", lambda arm: _entry(arm, "cues", "bytes", "{:,.0f}")),
        ("longest cue", lambda arm: _entry(arm, "cues", "longest", "{:,.0f}")),
        ("cues written by", lambda arm: _entry(arm, "cues", "written_by", "{}")),
        ("keeps raw text", lambda arm: yes(arm["raw_text"]) if "raw_text" in arm else ""),
        ("nights", lambda arm: _entry(arm, "log", "nights", "{:.3g}")),
        ("rolled back", lambda arm: _entry(arm, "log", "rolled_back", "{:.3g}")),
        ("nights of dreams kept", lambda arm: _entry(arm, "log", "dreams_absorbed", "{:.3g}")),
        ("dreaming undone", lambda arm: _entry(arm, "log", "dreams_undone", "{:.3g}")),
    ]
    tables = [table for each in (totals, parts, kept) for table in _table(report["arms"], each)]
    seconds = report.get("seconds")
    note = "Means over seeds. FLOPs and tokens count sampling and padding too."
    note += "" if seconds is None else f" The whole experiment: {seconds:.1f} s."
    return [*tables, Text(note)]


def _table(arms: Mapping[str, Any], columns: Sequence[Column]) -> list[Block]:
    """A row an arm, with the columns that any arm has something in; nothing without any."""
    cells = {heading: [show(arm) for arm in arms.values()] for heading, show in columns}
    told = {heading: column for heading, column in cells.items() if any(column)}
    if not told:
        return []
    lines = zip(*told.values(), strict=True)
    rows = [[name, *line] for name, line in zip(arms, lines, strict=True) if any(line)]
    return [Table(["arm", *told], rows)]


def _section(title: str, parts: Sequence[Block | None], note: str = "") -> list[Block]:
    found = [part for part in parts if part is not None]
    return [Heading(title), *([Text(note)] if note else []), *found] if found else []


def _figure(name: str, show: Callable[[Any], str] | None = None) -> Callable[[Mapping], str]:
    return lambda arm: spread(arm["figures"].get(name), show or share)


def _amount(cost: str, kind: str, shape: str) -> Callable[[Mapping[str, Any]], str]:
    def cell(arm: Mapping[str, Any]) -> str:
        amounts = arm["compute"][cost]
        return shape.format(amounts[kind]) if kind in amounts else ""

    return cell


def _entry(arm: Mapping[str, Any], group: str, name: str, shape: str) -> str:
    value = arm.get(group, {}).get(name)
    return "" if value is None else shape.format(value)


def _half_life(arm: Mapping[str, Any]) -> str:
    life = arm["half_life"]
    if life is None:
        return ""
    mean = _nights(life["mean"])
    if life["interval"] == "none" or (life["low"], life["high"]) == (None, None):
        return mean
    return f"{mean} ({_nights(life['low'])} to {_nights(life['high'])})"


def _nights(value: float | None) -> str:
    if value is None:
        return "no decay"
    return f">{LONGEST_HALF_LIFE}" if value > LONGEST_HALF_LIFE else f"{value:.3g}"


_ALT = "Recall of every day's facts after every night, against age, and against compute"
_RECALL: tuple[Column, ...] = (
    ("recall at the end (95%)", _figure("mean_recall_last")),
    ("forgetting", _figure("forgetting")),
    ("backward transfer", _figure("backward_transfer", signed)),
    ("forward transfer", _figure("forward_transfer", signed)),
    ("half-life (nights)", _half_life),
    ("pretraining lost", _figure("pretrain_lost")),
)
_NIGHT: tuple[Column, ...] = (
    ("today at dusk (teacher)", _figure("recall_at_dusk")),
    ("today at dawn (student)", _figure("recall_at_dawn")),
    ("older days, overnight", _figure("change_overnight", signed)),
    ("pretraining before life", lambda arm: share(arm["pretrain_start"])),
    ("after the last night", _figure("pretrain_last")),
    ("KL to the original", _figure("kl_last", small)),
    ("perplexity of general text, rise", _figure("perplexity_rise", signed)),
    ("largest cluster", _figure("cluster_largest")),
)
_TEXT: tuple[Column, ...] = (
    ("exact match (95%)", _figure("em_last")),
    ("exact match before life", _figure("em_start")),
    ("token F1 (95%)", _figure("f1_last")),
    ("F1 before life", _figure("f1_start")),
    ("judged the same (95%)", _figure("judged_last")),
    ("judged before life", _figure("judged_start")),
)
_ROUTING: tuple[Column, ...] = (
    ("learned routing", _figure("routing_learned")),
    ("oracle routing", _figure("routing_oracle")),
    ("gate weight on the day's own expert", _figure("routing_own_share")),
)
_KNOWLEDGE: tuple[Column, ...] = (
    ("bits held", _figure("bits_held", number(",.0f"))),
    ("parameters", lambda arm: _entry(arm, "bits", "parameters", "{:,.0f}")),
    ("bits per parameter", _figure("bits_per_parameter", small)),
)
_DREAMS: tuple[Column, ...] = (
    ("different from one another", _figure("dreams_unique")),
    ("tokens", _figure("dreams_length", number(".1f"))),
    ("copied from the contexts", _figure("dreams_copied")),
    ("accepted, of those tried", _figure("dreams_accepted")),
    ("held-back text likelier, nats a token", _figure("dreams_lift_held", signed)),
    ("memories likelier, nats a token", _figure("dreams_lift_memories", signed)),
    ("answers likelier, nats", _figure("dreams_lift_logp", signed)),
)
_BY_SCORE: tuple[Column, ...] = tuple(
    (f"{what} the best by {score}", _figure(f"dreams_{name}_by_{score}", show))
    for name, what, show in (
        ("earned", "accepted of", share),
        ("lift_held", "held-back text likelier by", signed),
        ("lift_logp", "answers likelier by", signed),
    )
    for score in SCORES
)
_FALSEHOODS: tuple[Column, ...] = (
    ("written: say something of a known subject", _figure("dreams_told_written")),
    ("of these false", _figure("dreams_false_written")),
    ("tried: false", _figure("dreams_false_tried")),
    ("accepted: false", _figure("dreams_false_accepted")),
    ("repeat a planted falsehood: written", _figure("dreams_planted_written")),
    ("tried", _figure("dreams_planted_tried")),
    ("accepted", _figure("dreams_planted_accepted")),
)
_BY_NIGHT = (
    ("Pretraining facts", "pretrain", share),
    ("KL to the original model, nats a token", "kl", small),
    ("Loss on general text, nats a token", "general", number(",.3f")),
    ("Largest cluster of identical answers", "cluster", share),
)
_DUSK = (
    "Recall of today's facts before its night, when the awake model teaches, and after it; and the "
    "change of older days' recall from dusk to dawn. The largest cluster is the share of an "
    "exam's answers that are one and the same, in the worst night."
)
_LIFT = (
    "Recall of generated answers / rise of the right answer's log-probability since the start of "
    "life, nats an answer. Lift without recall: there, but not reached."
)
_TEXT_SCORES = (
    "What is answered in words, whatever its tokens, to the questions of all days: after the last "
    "night, and by the model that has read nothing of them. SQuAD's exact match and F1 of words, "
    "case, punctuation and articles aside, and the share that a judge of meaning accepts."
)
_ROUTED = (
    "Recall after the last night as the router sends questions, and with only the day's own expert "
    "open; and how much of the gate weight that expert gets."
)
_DREAMT = (
    "What learners wrote for themselves at night: means over rounds and nights. How much likelier "
    "held-back texts and memories became is of every dream that was tried."
)
_KNOWN = (
    "Bits of the answers that are right after the last night, and the parameters that hold them."
)
