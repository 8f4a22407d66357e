"""Settings of the night."""

from __future__ import annotations

import dataclasses

from sleeplm.core import checks
from sleeplm.core.losses import divergence
from sleeplm.memory.anchors import TEACHERS
from sleeplm.memory.cues import SOURCES
from sleeplm.memory.levels import OPTIMIZERS

POOLS = ("refuse", "merge_oldest", "merge_balanced")
JUDGES = ("exact", "cosine", "minilm")
#: Least cosine of what means the same: see docs/judge.md for the second.
THRESHOLDS = {"cosine": 0.9, "minilm": 0.77}
BECOMES = ("start", "dusk")
INTO = ("expert", "pool", "base")
CUES = ("subjects", "self")


@dataclasses.dataclass
class TeacherConfig:
    """One (teacher state, data source) pair of the night.

    Attributes:
      state: who teaches, see :data:`sleeplm.memory.anchors.TEACHERS`.
      source: which cues it tells from, see :data:`sleeplm.memory.cues.SOURCES`.
      weight: of its tokens in the loss.
      imitate: whether its cues are also used for learning to imitate (if alpha < 1): plain ones,
        once each, whatever ``framed`` and ``times`` are, from all tokens.
      uncued: share of its sequences that start from the begin-of-text token alone: texts that
        do not begin with their cue are only ever told so.
      framed: its cues stand behind beginnings of wordings of its own, so that it also tells what
        names its subject late (see :mod:`sleeplm.methods.frames`); what is uncued then starts
        from such a beginning alone. Frames have up to 14 tokens: of what does not fit into the
        night's ``length`` with its cue, the end is cut.
      times: its sequences for every row of a minibatch.
      balance: of the days it tells of: 0, every day equally often; 1, every cue equally often.
    """

    state: str = "dusk"
    source: str = "today"
    weight: float = 1.0
    imitate: bool = True
    uncued: float = 0.0
    framed: bool = False
    times: int = 1
    balance: float = 0.0

    def check(self, field: str) -> None:
        checks.positive_integer(f"{field}.times", self.times)
        checks.fraction(f"{field}.balance", self.balance)
        checks.one_of(f"{field}.state", self.state, TEACHERS)
        checks.one_of(f"{field}.source", self.source, SOURCES)
        checks.positive(f"{field}.weight", self.weight)
        checks.fraction(f"{field}.uncued", self.uncued)


@dataclasses.dataclass
class SleepConfig:
    """One night.

    Attributes:
      teachers: weighted (teacher, data source) pairs.
      becomes: what the sender is from tonight on: ``start`` (restored; it wakes empty, the evening
        protocol) or ``dusk`` (today's update is kept, v2). Its experts are reset in both.
      into: what learns in the receiver: ``expert`` (a fresh one, the method), ``pool`` (all
        experts, open from the start of life: equal capacity without expansion) or ``base`` (its
        own MLP: fixed capacity).
      updates: parameter updates a night, a multiple of ``inner * epochs``; 0: nothing is learned,
        the sender is only reset.
      merge_updates: updates of a merging of two experts, a multiple of ``inner * epochs``; 0: as
        many as a night's.
      rows: rows of one minibatch per data set (each teacher's samples, rollouts, continuations).
      inner, epochs: minibatches per extraction, and passes over them, before new samples.
      lam: lambda, share of student-written sequences in the distillation.
      alpha: weight of distillation against the imitation reward.
      gamma: weight of the semantic against the token-level reward.
      z0: largest edit distance, in tokens, that still earns token-level reward.
      group: continuations per random prefix, for the leave-one-out baseline.
      judge: ``exact`` (same text up to the stop token); ``cosine`` of mean-pooled states of the
        model as ``origin`` has it, or ``minilm``, of a published encoder (docs/judge.md), at
        least ``judge_threshold`` (None: that of :data:`THRESHOLDS`).
      judge_names: what ``minilm`` judges means the same only where numbers and capitalised words
        are the same too (:func:`~sleeplm.methods.judges.names_agree`).
      divergence: ``forward_kl``, ``reverse_kl`` or ``jsd`` (with ``beta``).
      length: L, longest remembered sequence in tokens, cue and stop token included.
      temperature: of all sampling. top_k: of teacher samples and rollouts, 0 for all tokens.
      learning_rate, optimizer, weight_decay, b1, b2, clip: of the new expert.
      decay: lower the learning rate linearly to 0 over the night.
      pool: when no slot is free: ``refuse`` with an error, or make two experts one:
        ``merge_oldest``, or ``merge_balanced``, neighbours in age that hold few nights and about as
        many each (see :func:`~sleeplm.memory.slots.balanced_neighbours`).
      rollback: undo a night whose divergence over its last extraction exceeds this many times
        that of its first minibatch; 0: never.
      cues: who writes them: ``subjects`` of the day's texts, or ``self``: beginnings of texts that
        the learner writes itself, without any cue, before it sleeps.
      cue_tokens: C, longest cue (begin-of-text included). reservoir: M, cues kept.
      own_cues: texts that a learner writes an evening for cues of its own. own_cue_tokens: length
        of these (begin-of-text included): about that of a name, so that answers stay out.
      pack: positions of a row that two sequences share while they are learned from; 0: every
        sequence has a row of its own. Not with imitation, whose rewards belong to rows.
      chunk: positions whose logits stand in memory at once.
    """

    teachers: list[TeacherConfig] = dataclasses.field(
        default_factory=lambda: [TeacherConfig(), TeacherConfig("dawn", "past", 1.0, False)]
    )
    becomes: str = "start"
    into: str = "expert"
    updates: int = 160
    merge_updates: int = 0
    rows: int = 16
    inner: int = 16
    epochs: int = 5
    lam: float = 0.5
    alpha: float = 0.9
    gamma: float = 0.5
    z0: float = 8.0
    group: int = 8
    judge: str = "exact"
    judge_threshold: float | None = None
    judge_names: bool = False
    divergence: str = "forward_kl"
    beta: float = 0.5
    length: int = 32
    temperature: float = 1.0
    top_k: int = 0
    learning_rate: float = 1e-2
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    clip: float = 1.0
    decay: bool = True
    pool: str = "refuse"
    rollback: float = 3.0
    cues: str = "subjects"
    own_cues: int = 64
    own_cue_tokens: int = 5
    cue_tokens: int = 8
    reservoir: int = 256
    pack: int = 0
    chunk: int = 128

    @property
    def writers(self) -> list[tuple[str, float]]:
        """Who writes what is distilled, and the share of each; a constant share of 0 is none."""
        shares = (("teacher", 1.0 - self.lam), ("student", self.lam))
        return [(who, share) for who, share in shares if not checks.is_constant(share, 0)]

    @property
    def imitates(self) -> bool:
        """Whether the night learns to imitate: not with a constant ``alpha`` of 1."""
        return not checks.is_constant(self.alpha, 1)

    @property
    def blocks(self) -> int:
        """Extractions a night."""
        return self.updates // (self.inner * self.epochs)

    def accepts(self, judge: str) -> float:
        """Least cosine that a judge takes for the same meaning."""
        return THRESHOLDS[judge] if self.judge_threshold is None else self.judge_threshold

    @property
    def merges(self) -> bool:
        """Whether a full pool makes room by merging experts."""
        return self.pool != "refuse" and self.into == "expert"

    def check(self, field: str) -> None:
        checks.require(len(self.teachers) > 0, f"{field}.teachers", [], "name at least one teacher")
        for i, teacher in enumerate(self.teachers):
            teacher.check(f"{field}.teachers[{i}]")
        checks.one_of(f"{field}.becomes", self.becomes, BECOMES)
        checks.one_of(f"{field}.into", self.into, INTO)
        checks.one_of(f"{field}.cues", self.cues, CUES)
        counts = ("rows", "inner", "epochs", "length", "reservoir", "chunk", "own_cues")
        for name in (*counts, "own_cue_tokens"):
            checks.positive_integer(f"{field}.{name}", getattr(self, name))
        step = self.inner * self.epochs
        remedy = f"use a multiple of inner * epochs ({step})"
        for name in ("updates", "merge_updates"):
            updates = getattr(self, name)
            checks.integer(f"{field}.{name}", updates)
            checks.at_least(f"{field}.{name}", updates, 0)
            checks.require(updates % step == 0, f"{field}.{name}", updates, remedy)
        for name in ("lam", "alpha", "gamma"):
            checks.fraction(f"{field}.{name}", getattr(self, name))
        for name in ("z0", "temperature", "weight_decay", "clip", "rollback", "top_k"):
            checks.at_least(f"{field}.{name}", getattr(self, name), 0)
        checks.integer(f"{field}.top_k", self.top_k)
        checks.integer(f"{field}.pack", self.pack)
        checks.require(
            self.pack == 0 or (self.pack >= self.length and self.alpha == 1),
            f"{field}.pack",
            self.pack,
            f"use 0, or at least length ({self.length}) without imitation (alpha = 1)",
        )
        if self.alpha < 1:
            # The score function divides by the temperature that the continuations were drawn at.
            checks.positive(f"{field}.temperature", self.temperature)
            checks.at_least(f"{field}.group", self.group, 2)
            checks.divides(f"{field}.group", self.group, self.rows, "rows")
            checks.require(
                any(teacher.imitate for teacher in self.teachers),
                f"{field}.alpha",
                self.alpha,
                "use 1 or let a teacher be imitated (teachers[i].imitate)",
            )
        checks.one_of(f"{field}.judge", self.judge, JUDGES)
        if self.judge_threshold is not None:
            checks.in_range(f"{field}.judge_threshold", self.judge_threshold, -1, 1)
        remedy = "only minilm reads names: use it as judge, or leave this out"
        plain = self.judge == "minilm" or not self.judge_names
        checks.require(plain, f"{field}.judge_names", self.judge_names, remedy)
        checks.one_of(f"{field}.divergence", self.divergence, ("forward_kl", "reverse_kl", "jsd"))
        checks.fraction(f"{field}.beta", self.beta)
        divergence(self.divergence, self.beta)
        checks.positive(f"{field}.learning_rate", self.learning_rate)
        checks.one_of(f"{field}.optimizer", self.optimizer, OPTIMIZERS)
        for name in ("b1", "b2"):
            checks.decay(f"{field}.{name}", getattr(self, name))
        checks.one_of(f"{field}.pool", self.pool, POOLS)
        checks.positive_integer(f"{field}.cue_tokens", self.cue_tokens)
        if self.cues == "self":
            checks.in_range(f"{field}.own_cue_tokens", self.own_cue_tokens, 2, self.cue_tokens)
        checks.require(
            self.length > self.cue_tokens,
            f"{field}.length",
            self.length,
            f"leave room for something to tell after a cue of cue_tokens = {self.cue_tokens}",
        )


def merging(config: SleepConfig) -> SleepConfig:
    """The night that makes two experts one: the same teachers, awake at dawn.

    What they would tell of today they tell of the nights that the two experts hold, so that these
    are learned as a day is. There is nothing to imitate, all to keep. Its ``updates`` are those of
    a merging, and so are its ``blocks``.
    """
    teachers = [
        dataclasses.replace(
            teacher, state="origin" if teacher.state == "origin" else "dawn", imitate=False
        )
        for teacher in config.teachers
    ]
    sources = {teacher.source for teacher in teachers}
    for missing, told in (("today", {"today"}), ("past", {"past", "lived", "before"})):
        if not sources & {*told, "all"}:
            teachers.append(TeacherConfig("dawn", missing, imitate=False))
    updates = config.merge_updates or config.updates
    kind = dataclasses.replace(config, alpha=1.0, into="expert", cues="subjects")
    return dataclasses.replace(kind, teachers=teachers, updates=updates)


def paper_v2(**changes) -> SleepConfig:
    """The paper's own night (v2): yesterday's self teaches, today stays in the fast weights."""
    teachers = [TeacherConfig("before_update", "all", 1.0, True)]
    return SleepConfig(**{"teachers": teachers, "becomes": "dusk", **changes})


def evening(**changes) -> SleepConfig:
    """The evening protocol (v1): tonight's self is the only teacher, the sender wakes empty."""
    teachers = [TeacherConfig("dusk", "today", 1.0, True)]
    return SleepConfig(**{"teachers": teachers, "becomes": "start", **changes})
