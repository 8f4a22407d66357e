"""Generated grid tasks: families of rules, each drawn with parameters of its own.

None is a task of ARC; that some of ARC's tasks follow rules of the same kinds (turns, mirrored
tiles, recolourings) is the point of them. Families named in :data:`HELD_OUT` are never pretrained
on. A task is a function of ``(seed, number)`` alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from sleeplm.core import checks
from sleeplm.data import grid_rules as rules
from sleeplm.data import grid_scenes as scenes
from sleeplm.data.grids import (
    AUGMENTATIONS,
    BOS,
    EDIT,
    EOS,
    FIRST_EDIT,
    LOSSES,
    RATES,
    STEPS,
    GridTask,
    Pair,
    grid_of,
    pair_tokens,
)

FAMILIES: Mapping[str, rules.Family] = {
    "turn": rules.turn,
    "recolour": rules.recolour,
    "replace": rules.replace,
    "keep": rules.keep,
    "tile": rules.tile,
    "mirror": rules.mirror,
    "scale": rules.scale,
    "crop": scenes.crop,
    "part": rules.part,
    "halves": scenes.halves,
    "gravity": scenes.gravity,
    "frame": rules.frame,
    "fill": scenes.fill,
    "most": scenes.most,
    "odd": scenes.odd,
    "extend": scenes.extend,
    "lines": scenes.lines,
    "count": scenes.count,
    "shift": rules.shift,
    "connect": scenes.connect,
    "invert": rules.invert,
    "hollow": scenes.hollow,
}
HELD_OUT = ("shift", "connect", "invert", "hollow")
TAUGHT = tuple(name for name in FAMILIES if name not in HELD_OUT)
#: Share of taught tasks whose output is also turned or recoloured.
COMPOSED = 0.2


@dataclasses.dataclass
class GridTaskConfig:
    """Generated tasks that a backbone is pretrained on.

    Attributes:
      tasks: how many. seed: of all of them.
      most: demonstrations of a task, 2 to so many, and one pair that is tested.
      tokens: of a task at most; pairs of which a row would be longer are left out at its end.
      edits: share of tasks behind which a random valid self-edit stands.
    """

    tasks: int = 30_000
    seed: int = 0
    most: int = 4
    tokens: int = 336
    edits: float = 0.25

    def check(self, field: str) -> None:
        for name in ("tasks", "most", "tokens"):
            checks.positive_integer(f"{field}.{name}", getattr(self, name))
        checks.at_least(f"{field}.most", self.most, 2)
        checks.at_least(f"{field}.tokens", self.tokens, 32)
        checks.fraction(f"{field}.edits", self.edits)


def make_task(
    seed: int, number: int, families: Sequence[str] = TAUGHT, most: int = 4, composed: float = 0.0
) -> GridTask:
    """Task ``number`` of a seed: 2 to ``most`` demonstrations, all different, and one test.

    Its name is that of its family and its number. With a chance of ``composed`` the outputs are
    turned or recoloured as well.
    """
    rng = np.random.default_rng([seed, number])
    family = families[int(rng.integers(len(families)))]
    maps = (rules.turn_map, rules.recolour_map)
    while True:
        rule = FAMILIES[family](rng)
        then = maps[int(rng.integers(2))](rng) if rng.random() < composed else lambda grid: grid
        wanted, pairs = int(rng.integers(3, most + 2)), dict[Pair, None]()
        for _ in range(4 * wanted):  # a rule may have too few: then another one is drawn
            given, made = rule(rng)
            made = then(made)
            if given.shape != made.shape or (given != made).any():
                pairs.setdefault(Pair(grid_of(given), grid_of(made)))
            if len(pairs) == wanted:
                *shown, test = pairs
                return GridTask(f"{family}{number}", tuple(shown), (test,))


def task_tokens(task: GridTask, longest: int, edit: Sequence[int] = ()) -> list[int]:
    """``<bos>``, as many of a task's pairs as fit into ``longest`` tokens, and an edit.

    The tested pair is one of them like all others: whoever reads them in order has to tell every
    output from those before it.
    """
    tokens = [BOS]
    for pair in (*task.demonstrations, *task.tests):
        more = pair_tokens(pair)
        if len(tokens) + len(more) + len(edit) > longest:
            break
        tokens += more
    return tokens + list(edit)


def random_edit(rng: np.random.Generator) -> list[int]:
    """``edit ... <eos>``: a valid self-edit, all augmentations and choices with equal chance."""
    tokens = [EDIT, *(FIRST_EDIT + i for i in range(len(AUGMENTATIONS)) if rng.random() < 0.5)]
    start = FIRST_EDIT + len(AUGMENTATIONS)
    for choices in (LOSSES, RATES, STEPS):
        tokens.append(start + int(rng.integers(len(choices))))
        start += len(choices)
    return [*tokens, EOS]


def pretraining_documents(config: GridTaskConfig) -> list[list[int]]:
    """Tokens of every task that a backbone reads."""
    documents = []
    for number in range(config.tasks):
        task = make_task(config.seed, number, TAUGHT, config.most, COMPOSED)
        rng = np.random.default_rng([config.seed, number, 1])
        edit = random_edit(rng) if rng.random() < config.edits else []
        tokens = task_tokens(task, config.tokens, edit)
        if len(tokens) > 1 + len(edit):  # a first pair that is too long leaves nothing
            documents.append(tokens)
    return documents
