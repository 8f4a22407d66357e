"""What a learner on a backbone trains, and what it keeps for that, from shapes alone.

    python -m sleeplm.bench.footprint smollm2
    python -m sleeplm.bench.footprint FOLDER_OR_FILE.gguf --levels cheap

Nothing is loaded or computed: a model of any size takes a second.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import jax

from sleeplm.core import tree
from sleeplm.core.types import PyTree
from sleeplm.memory.levels import label_of
from sleeplm.methods.config import SleepConfig
from sleeplm.methods.learner import learner
from sleeplm.methods.sleep import learns_at_night
from sleeplm.methods.update import moves_awake
from sleeplm.models.config import ModelConfig
from sleeplm.models.transformer import Model
from sleeplm.pretrained.grafts import cheap, grafted
from sleeplm.pretrained.published import find_backbone

LEVELS: dict[str, Callable[..., ModelConfig]] = {"paper": grafted, "cheap": cheap}
Row = tuple[str, int, int]  # what, how many numbers, bytes


def footprint(config: ModelConfig, sleep: SleepConfig | None = None) -> list[Row]:
    """Numbers and bytes of a learner's parts.

    Gradients are those that one step makes: awake of the levels' MLPs, at night of the receiver's
    pool. Optimisers keep state for nothing else
    (``tests/bench/test_footprint.py`` holds both to the tree of a real step).

    Returns:
      [(name, numbers, bytes)]: the frozen backbone; each level's MLP, and its experts with their
      router; gradients and optimiser state awake, and of each night; what nights keep of earlier
      states.
    """
    model = Model(config)
    life = learner(model, sleep or SleepConfig())
    key = jax.random.key(0)
    params = jax.eval_shape(model.init, key)
    state = jax.eval_shape(life.init, params, key)
    frozen = {"backbone"} | {f"{lv.name}/base" for lv in config.levels if not lv.period}
    rows = [_row("backbone, frozen", _of(params, lambda path: label_of(path) in frozen))]
    for level in config.levels:
        if level.period:
            rows.append(_row(f"{level.name}: MLP, learns awake", _of(params, moves_awake([level]))))
        if level.slots:
            pool = _of(params, learns_at_night(level.name, "expert"))
            what = f"{level.name}: {level.slots} experts and router, learn asleep"
            rows.append(_row(what, pool))
    rows.append(_row("awake: gradient", _of(params, moves_awake(config.levels))))
    rows.append(_row("awake: optimiser", state.private["wake"]))
    for rest in life.rests:
        name = f"night of {rest.sender} into {rest.receiver}"
        pool = _of(params, learns_at_night(rest.receiver, "expert"))
        rows.append(_row(f"{name}: gradient", pool))
        rows.append(_row(f"{name}: optimiser", state.private["night"][rest.sender]))
    rows.append(_row("earlier states of senders", state.anchors))
    rows.append(_row("cues", state.cues))
    return rows


def _of(params: PyTree, selected: Callable[[tuple], bool]) -> PyTree:
    return tree.split(params, selected)[0]


def _row(name: str, part: PyTree) -> Row:
    return name, tree.size(part), tree.nbytes(part)


def main(arguments: list[str] | None = None) -> None:
    """Prints the table of one backbone."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("backbone", help="smollm2, a .gguf file or a Hugging Face folder")
    parser.add_argument("--levels", choices=LEVELS, default="paper")
    options = parser.parse_args(arguments)
    config = LEVELS[options.levels](find_backbone(options.backbone).config)
    print(f"{'part':48} {'numbers':>14} {'MB':>9}")
    for name, numbers, size in footprint(config):
        print(f"{name:48} {numbers:>14,} {size / 1e6:>9.2f}")


if __name__ == "__main__":
    main()
