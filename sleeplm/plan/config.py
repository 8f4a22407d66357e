"""What is planned: a model with its levels, its night, its dreams, and how large a step is."""

from __future__ import annotations

import dataclasses

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError
from sleeplm.methods.config import SleepConfig
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.models.config import ModelConfig

PROGRAMS = ("wake", "seed", "decode", "dream")
LANES = 128  # columns of D that a chip should have: with fewer, pieces are summed, not gathered


@dataclasses.dataclass
class MeshConfig:
    """Sizes of the axes of a mesh, see :mod:`sleeplm.runtime.rules`.

    Attributes:
      data, fsdp: of these axes; 0: whatever chips are left. Where both are, ``fsdp`` is as large as
        leaves every chip :data:`LANES` columns of a matrix, and beyond that chips are copies.
      tensor: of that one.
    """

    data: int = 0
    fsdp: int = 0
    tensor: int = 1

    def check(self, field: str) -> None:
        checks.positive_integer(f"{field}.tensor", self.tensor)
        for name in ("data", "fsdp"):
            checks.integer(f"{field}.{name}", getattr(self, name))
            checks.at_least(f"{field}.{name}", getattr(self, name), 0)

    def shape(self, chips: int, d_model: int) -> dict[str, int]:
        """Axes and sizes for so many chips, and matrices of so many columns.

        Raises:
          ConfigError: they are not that many.
        """
        left = max(chips // self.tensor, 1)
        data = self.data or (max(left // self.fsdp, 1) if self.fsdp else _copies(left, d_model))
        fsdp = self.fsdp or max(left // data, 1)
        if data * fsdp * self.tensor != chips:
            remedy = f"data x fsdp x tensor must be the topology's {chips} chips"
            raise ConfigError("mesh", [data, fsdp, self.tensor], remedy)
        return {"data": data, "fsdp": fsdp, "tensor": self.tensor}


def _copies(chips: int, d_model: int) -> int:
    """The size of ``data`` with which ``fsdp`` cuts D into no less than ``LANES`` columns."""
    data = 1
    while chips % (2 * data) == 0 and d_model * data < LANES * chips:
        data *= 2
    return data


@dataclasses.dataclass
class PlanConfig:
    """Settings of a plan; ``get_config()`` of an experiment returns one.

    Attributes:
      model: sizes, levels, types, and what is recomputed on the way back (``remat``).
      sleep: the night of the fastest level. Its ``rows`` are replaced: see ``rows``.
      dream: one round of dreaming, of which ``dreams`` is a number of all chips together.
      mesh: how chips are arranged.
      programs: which of :data:`PROGRAMS`.
      rows: sequences of a wake step, of a minibatch at night, of generation and of contexts to
        dream from, for each chip that has rows of its own (of ``data`` and ``fsdp``). At night
        every teacher tells so many.
      length: L, tokens of a sequence awake and asleep. prompt, new: tokens of a prompt, and most
        that are written after it.
      chunk: positions whose logits stand in memory at once.
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    sleep: SleepConfig = dataclasses.field(default_factory=SleepConfig)
    dream: DreamConfig = dataclasses.field(default_factory=DreamConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    programs: list[str] = dataclasses.field(default_factory=lambda: list(PROGRAMS))
    rows: int = 1
    length: int = 1024
    prompt: int = 128
    new: int = 128
    chunk: int = 128

    def check(self, field: str) -> None:
        for name in ("rows", "length", "prompt", "new", "chunk"):
            checks.positive_integer(f"{field}.{name}".lstrip("."), getattr(self, name))
        checks.require(len(self.programs) > 0, "programs", [], f"name some of {PROGRAMS}")
        for name in self.programs:
            checks.one_of("programs", name, PROGRAMS)
        if "seed" in self.programs and not any(level.night for level in self.model.levels):
            names = [level.name for level in self.model.levels]
            remedy = (
                "no level has a night: give one (night, and slots of the next), or leave out seed"
            )
            raise ConfigError("model.levels", names, remedy)
