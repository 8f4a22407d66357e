"""Settings of dreaming."""

from __future__ import annotations

import dataclasses

import jax

from sleeplm.core import checks

SCORES = ("alignment", "norm", "random")
REWARDS = ("agreement", "questions", "none")
MEASURES = ("logp", "accuracy")
INTO = ("night", "new")
AGREE = ("all", "own")


@dataclasses.dataclass
class DreamConfig:
    """A night's dreaming: rounds of write, select, try and reward (section 6), and what follows.

    The counts of dreams are the paper's (60 written, 15 kept); it gives neither k and b nor the
    settings of a trial. What is said of a night is used where dreaming is part of one
    (:mod:`sleeplm.methods.dreams.stage`).

    Attributes:
      dreams: m, written in a round.
      context_tokens: C, longest context, in tokens. new_tokens: most tokens that a dream adds.
      temperature, top_k: of writing.
      explore: while it writes, every router also uses one random open expert, drawn for each dream.
      alone: a dream is learned as a text of its own, behind the begin of text; else behind its
        context, as it was written.
      ngram: length of the n-grams whose share taken from the contexts is reported.
      score: ``alignment`` of a dream's gradient with the mean gradient of a reference batch,
        ``norm`` of the gradient, or ``random``: the control that both are held against.
      sketch: numbers that a gradient is projected to before it is compared; 0: the whole of it.
      compare: if not 0, rounds also say what the so many best by each score earned, of the dreams
        that were tried: let them be all (``keep``), and all scores are compared on the same dreams.
      score_rows: rows of a dream that its gradient is taken of, where it is learned as several; 0:
        all of them.
      chunk: dreams whose gradients stand in memory at once; on a mesh at least one on each device
        that has rows.
      keep: k, dreams kept by score. extra: b, kept at random.
      rank: of a trial's adapters. steps, learning_rate: of a trial (Adam). batch: rows of a step,
        where a dream is learned as several; 0: all of them.
      at_once: trials that are made as one batch; 0: all. On a mesh as with ``chunk``.
      reward: ``agreement`` with oneself, for want of a task (no tau): the held-back parts of the
        contexts become likelier and memories not unlikelier; ``questions`` (tau): held-back
        questions of the batch are answered better; ``none``: all that are kept are accepted, and
        nothing is tried.
      measure: of the questions, ``logp`` of the right answers or ``accuracy`` of greedy ones.
      margin: what has to be gained for a reward of 1: nats a token (agreement), nats an answer
        (logp), or a share of the questions (accuracy).
      hold: share of every context that agreement holds back.
      agree: with what was held back of ``all`` contexts, or of the dream's ``own`` one alone.
      memories: texts that agreement has the learner tell from cues of earlier days; 0: none.
      worse: nats a token that these memories may lose.
      writer_rank: of the dream writer's own adapters. writer_epochs, writer_learning_rate: of its
        fine-tuning in every round (Adam). writer_restarts: that begins anew each time, as ReST^EM
        does, instead of where the last round ended. writer_rows: dreams that it keeps at once, on
        every device, for a forward pass more; 0: all that were accepted.
      rounds: of a night. contexts: texts of the day that a round is written from. formats: that
        these are continued in, in turn (:mod:`sleeplm.data.formats`). questions: of the day, that a
        round is rewarded by where questions reward.
      reinforce: whether rounds fine-tune the writer; without, the learner itself writes.
      into: where accepted dreams go: ``night``, the expert that tonight has opened, or ``new``, one
        of their own.
      updates: that a night's dreams are learned in, a multiple of ``inner``; rows: of dreams in a
        minibatch, and of every teacher's data; inner: minibatches between new samples of teachers.
      absorb_learning_rate: of these updates; the rest of the optimiser is the night's.
      past: weight of what the night's teachers tell beside dreams, 1 for that of the night; 0:
        dreams alone.
      gate: samples of earlier days that a night's dreaming is judged by; 0: never undone.
      gate_margin: nats a token that these may become unlikelier.
      gate_cluster: share of samples that may be one and the same text.
    """

    dreams: int = 60
    context_tokens: int = 32
    new_tokens: int = 32
    temperature: float = 1.0
    top_k: int = 0
    explore: bool = True
    alone: bool = False
    ngram: int = 4
    score: str = "alignment"
    sketch: int = 0
    compare: int = 0
    score_rows: int = 0
    chunk: int = 4
    keep: int = 12
    extra: int = 3
    rank: int = 8
    steps: int = 8
    learning_rate: float = 1e-3
    batch: int = 0
    at_once: int = 0
    reward: str = "agreement"
    measure: str = "logp"
    margin: float = 0.0
    hold: float = 0.5
    agree: str = "all"
    memories: int = 16
    worse: float = 0.05
    writer_rank: int = 8
    writer_epochs: int = 4
    writer_learning_rate: float = 1e-3
    writer_restarts: bool = True
    writer_rows: int = 0
    rounds: int = 2
    contexts: int = 32
    formats: list[str] = dataclasses.field(default_factory=lambda: ["free"])
    questions: int = 32
    reinforce: bool = True
    into: str = "night"
    updates: int = 48
    rows: int = 8
    inner: int = 12
    absorb_learning_rate: float = 5e-3
    past: float = 1.0
    gate: int = 64
    gate_margin: float = 0.05
    gate_cluster: float = 0.25

    @property
    def kept(self) -> int:
        """k + b, dreams that are tried."""
        return self.keep + self.extra

    @property
    def blocks(self) -> int:
        """How often teachers tell anew while a night's dreams are learned."""
        return self.updates // self.inner

    @property
    def width(self) -> int:
        """Positions of a dream behind its context."""
        return self.context_tokens + self.new_tokens

    def check(self, field: str) -> None:
        counts = ("dreams", "context_tokens", "new_tokens", "ngram", "chunk", "rank", "steps")
        nightly = ("rounds", "contexts", "questions", "updates", "rows", "inner")
        for name in (*counts, *nightly, "writer_rank", "writer_epochs"):
            checks.positive_integer(f"{field}.{name}", getattr(self, name))
        for name in (
            "top_k",
            "sketch",
            "compare",
            "keep",
            "extra",
            "at_once",
            "memories",
            "gate",
            "score_rows",
            "batch",
            "writer_rows",
        ):
            checks.integer(f"{field}.{name}", getattr(self, name))
            checks.at_least(f"{field}.{name}", getattr(self, name), 0)
        checks.require(
            1 <= self.kept <= self.dreams,
            f"{field}.keep",
            self.keep,
            f"keep + extra ({self.kept}) must be between 1 and dreams ({self.dreams})",
        )
        checks.require(
            self.compare <= self.kept,
            f"{field}.compare",
            self.compare,
            f"only dreams that are tried earn something: use at most keep + extra ({self.kept})",
        )
        checks.require(
            self.ngram <= self.new_tokens,
            f"{field}.ngram",
            self.ngram,
            f"use at most new_tokens ({self.new_tokens})",
        )
        checks.divides(f"{field}.inner", self.inner, self.updates, f"{field}.updates")
        self._check_numbers(field)
        checks.one_of(f"{field}.score", self.score, SCORES)
        checks.one_of(f"{field}.reward", self.reward, REWARDS)
        checks.one_of(f"{field}.measure", self.measure, MEASURES)
        checks.one_of(f"{field}.into", self.into, INTO)
        checks.one_of(f"{field}.agree", self.agree, AGREE)

    def _check_numbers(self, field: str) -> None:
        """Numbers, which may also be arrays: nothing can be said of those before the program runs.

        But not ``past``: by it is decided what stands in the program.
        """
        checks.at_least(f"{field}.past", self.past, 0)
        for name in ("temperature", "worse", "gate_margin"):
            if not self._is_array(name):
                checks.at_least(f"{field}.{name}", getattr(self, name), 0)
        for name in ("learning_rate", "writer_learning_rate", "absorb_learning_rate"):
            if not self._is_array(name):
                checks.positive(f"{field}.{name}", getattr(self, name))
        for name in ("hold", "gate_cluster"):
            if not self._is_array(name):
                checks.fraction(f"{field}.{name}", getattr(self, name))
        if not self._is_array("margin"):
            checks.finite(f"{field}.margin", self.margin)
        checks.require(
            self.reward != "agreement" or self._is_array("hold") or 0 < self.hold < 1,
            f"{field}.hold",
            self.hold,
            "agreement needs something to write from and something held back: between 0 and 1",
        )

    def _is_array(self, name: str) -> bool:
        """Whether that number is read off a learner (:mod:`sleeplm.methods.settings`)."""
        return isinstance(getattr(self, name), jax.Array)
