"""What a finished run hands on: a learner out of its last checkpoint, and the folder it becomes."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sleeplm.bench.arms import WITHOUT_LEVELS_NIGHTS, Arm, asks_for_reading, build_arm
from sleeplm.bench.costs import Reading
from sleeplm.bench.lives import Bench, learners_of, newborns
from sleeplm.bench.material import digest, prepare
from sleeplm.bench.results import read_results
from sleeplm.bench.retention import RetentionConfig
from sleeplm.core import checks
from sleeplm.core.errors import CheckpointError, ConfigError
from sleeplm.core.records import from_plain
from sleeplm.core.types import State
from sleeplm.data.text import PAD
from sleeplm.data.tokenizer_files import (
    TOKENIZER,
    TOKENIZER_CONFIG,
    hf_tokenizer,
    hf_tokenizer_config,
)
from sleeplm.methods.config import SleepConfig
from sleeplm.models.config import DTYPES
from sleeplm.models.graft import backbone_config
from sleeplm.models.transformer import Model
from sleeplm.pretrained.hf_export import SHARD_BYTES, base_tensors, save_backbone
from sleeplm.pretrained.hf_tokenizer import special_ids
from sleeplm.pretrained.hf_tokenizer import tokenizer_files as imported_files
from sleeplm.pretrained.lossless import first_rounded
from sleeplm.pretrained.memories import History, Memories, export_memories
from sleeplm.pretrained.memory_files import has_memories, write_memories
from sleeplm.pretrained.published import find_backbone, folder_of
from sleeplm.pretrained.tensor_files import new_folder, write_text
from sleeplm.runtime import config as configs
from sleeplm.runtime.checkpoint import Checkpoints
from sleeplm.runtime.metrics import read_metrics
from sleeplm.runtime.run import CHECKPOINTS, METRICS


@dataclasses.dataclass
class Lived:
    """One learner at the end of its life.

    Attributes:
      config: its own, as if it had lived alone. arm: what it is. state: of it alone.
      history: what each slot holds. origin: for the card, see
        :class:`~sleeplm.pretrained.memories.Memories`.
      world: digest of its curriculum.
    """

    config: RetentionConfig
    arm: Arm
    state: State
    history: History
    origin: dict[str, Any]
    world: str


def read_learner(
    run: str | pathlib.Path,
    *,
    arm: str | None = None,
    learner: int = 0,
    warn: Callable[[str], object] = warnings.warn,
) -> Lived:
    """A learner of a finished run, as its last checkpoint has it.

    Args:
      arm: None: the first one that has nights, or the first. learner: which of those side by side.
      warn: receives one line for every damaged checkpoint.

    Raises:
      ConfigError: the run has not finished, or has no such arm or learner, or one that is more
        than parameters.
      CheckpointError: its checkpoint is gone or damaged.
    """
    directory = pathlib.Path(run).expanduser()
    results = read_results(directory)
    checks.require(
        results.get("experiment") == "retention", "run", str(run), "is no run of days and nights"
    )
    config = from_plain(RetentionConfig, results["config"], f"{directory}: config")
    configs.check(config, outermost=False)  # what has been read need not be there any more
    config.check_learners()
    name = arm or next((a for a in config.arms if a not in WITHOUT_LEVELS_NIGHTS), config.arms[0])
    checks.one_of("arm", name, config.arms)
    learners = learners_of(config)
    remedy = f"must be one of 0 to {len(learners) - 1}"
    checks.require(0 <= learner < len(learners), "learner", learner, remedy)
    beside = name in ("inca", "lora_sequential")
    remedy = "cannot be exported: what it learns stands beside its parameters"
    checks.require(not beside, "arm", name, remedy)
    reading = _reading(name, config)
    arm_of_all = build_arm(name, config, classes=0, reading=reading)
    state = _last_state(directory, config, name, arm_of_all, warn)
    alone = learners[learner]
    built = build_arm(name, alone, classes=0, reading=reading)
    world = results["world"]["digests"][learner % config.seeds]
    lines = [line for line in read_metrics(directory / METRICS) if line["stage"] == name]
    return Lived(
        config=alone,
        arm=built,
        state=jax.tree.map(lambda x: x[learner], state),
        history=history_of(lines, built, learner),
        origin={
            "run": results["digest"],
            "world": config.world,
            "world_digest": world,
            "arm": name,
            "learner": learner,
            "seed": alone.seed,
            "world_seed": alone.world_seed,
            "sleep": dataclasses.asdict(built.sleep),
        },
        world=world,
    )


def _reading(name: str, config: RetentionConfig) -> Reading | None:
    """What the learners of a run read, if that arm depends on it."""
    if not asks_for_reading(name, config):
        return None
    learners = learners_of(config)[: config.seeds]  # each setting has the same again
    return Reading(config, learners, [prepare(one) for one in learners])


def _last_state(
    directory: pathlib.Path,
    config: RetentionConfig,
    name: str,
    arm: Arm,
    warn: Callable[[str], object],
) -> State:
    """The state of all learners of an arm at the end of their lives."""
    stage = directory / CHECKPOINTS / name
    if not stage.is_dir():
        raise CheckpointError(f"{stage}: there is no checkpoint: run it again")

    def born() -> State:
        learners = learners_of(config)
        keys = jnp.stack([jax.random.key(one.seed) for one in learners])
        params = jax.vmap(Model(backbone_config(config.model)).init)(keys)
        # What a life is born with depends on nothing that is read in it.
        return newborns(Bench(config, learners, [], None, params, {}), arm)  # type: ignore[arg-type]

    with Checkpoints(stage, keep=config.keep, warn=warn) as checkpoints:
        found = checkpoints.restore(jax.eval_shape(born))
    done, moments = (found.metadata[name] for name in ("position", "moments"))
    if done != moments:
        raise CheckpointError(
            f"{stage}: the newest checkpoint that can be read is of moment {done} of {moments}; "
            "run it again"
        )
    return found.learner


def history_of(lines: Iterable[Mapping[str, Any]], arm: Arm, learner: int) -> History:
    """What each slot holds: the nights that went there, merged ones too, and their days.

    A slot is named as the ledger has it: by the good night of the fastest level that opened it, or
    the first of those that a slower sender handed on. An expert that dreams have of their own was
    opened in the night that they followed, and holds the same.

    Args:
      lines: of the arm's stage in the metrics file.
    """
    receivers = {rest.sender: rest.receiver for rest in arm.learner.rests}
    slots: dict[tuple[str, int], dict[str, list[int]]] = {}
    count = 0
    for line in lines:
        if line["event"] == "merge_end" and _was(line, "merge_failed", learner):
            level = receivers[line["sender"]]
            kept, freed = ((level, int(line[name][learner])) for name in ("kept", "freed"))
            for what, values in slots.pop(freed).items():
                slots[kept][what] += values
        if line["event"] == "seed_end" and _was(line, "rolled_back", learner):
            sender, born, given = line["sender"], count, {"nights": [count], "days": [line["day"]]}
            if sender == arm.learner.rests[0].sender:
                count += 1
            elif mine := [key for key in slots if key[0] == sender]:
                born = min(night for _, night in mine)
                handed = [slots.pop(key) for key in mine]
                given = {what: sorted(n for one in handed for n in one[what]) for what in given}
            # A pool that learns as a whole has been open since the first night.
            key = (receivers[sender], 0 if arm.sleep.into == "pool" else born)
            held = slots.setdefault(key, {"nights": [], "days": []})
            for what, values in given.items():
                held[what] += values
    return slots


def _was(line: Mapping[str, Any], failed: str, learner: int) -> bool:
    """Whether the learner took part and did not fail; who was awake has no number."""
    values = line.get(failed)
    return values is not None and values[learner] == 0


def export(
    run: str | pathlib.Path,
    out: str | pathlib.Path,
    *,
    arm: str | None = None,
    learner: int = 0,
    nights: Sequence[int] | None = None,
    parts: Iterable[str] = ("base", "memories"),
    cues: bool = True,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    source: str | pathlib.Path | None = None,
    force: bool = False,
    warn: Callable[[str], object] = warnings.warn,
) -> Memories:
    """Writes a learner of a finished run into a new folder.

    Args:
      arm, learner: see :func:`read_learner`.
      nights: only the experts of these nights, counted from 0, without a base.
      parts: ``base``, the Hugging Face folder, and ``memories``.
      cues: with the reservoir of cues. dtype: of the base in its files, which is rounded only if it
        is exported alone.
      source: the Hugging Face folder that an imported backbone came from, whose tokenizer and other
        settings are taken over; None: the run's ``backbone``, if that is a folder.
      force: replace what an earlier export of memories left in ``out``.

    Returns:
      The memories, written or not.

    Raises:
      ConfigError, CheckpointError: in one line, and nothing is written.
    """
    parts = ("memories",) if nights is not None else tuple(parts)
    if dtype is not None:
        checks.one_of("dtype", dtype, DTYPES)
        remedy = "is the type of the base, which is left out: leave this out too"
        checks.require("base" in parts, "dtype", dtype, remedy)
    lived = read_learner(run, arm=arm, learner=learner, warn=warn)
    if dtype is not None and "memories" in parts:
        base = base_tensors(lived.arm.model.config, lived.state.params)
        name = first_rounded(base, dtype)
        remedy = f"rounds {name}, and memories belong to the base as it was: export it alone"
        checks.require(name is None, "dtype", dtype, remedy)
    memories = export_memories(
        lived.arm.model,
        lived.state,
        nights=nights,
        cues=cues,
        history=lived.history,
        origin=lived.origin,
    )
    target = pathlib.Path(out).expanduser()
    with new_folder(target, force=force, replaceable=has_memories) as folder:
        if "base" in parts:
            config = lived.arm.model.config
            settings: dict[str, Any] = {"dtype": dtype, "shard_bytes": shard_bytes}
            if source is None:
                source = folder_of(lived.config.backbone)
            if source is None:
                files, settings["keys"] = tokenizer_of(lived)
                for file, content in files.items():
                    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
                    write_text(folder / file, text)
            save_backbone(folder, config, lived.state.params, source=source, **settings)
        if "memories" in parts:
            write_memories(folder, memories)
    return memories


def tokenizer_of(lived: Lived) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The tokenizer's files by name, and the keys of ``config.json`` that its model's source knows.

    For a backbone that comes from no folder: trained in the run, or out of a GGUF file. What ends
    a turn in such a file is not ``model.eos``, with which the run has ended texts.

    Raises:
      ConfigError: the run's texts, on which its tokenizer was trained, are no longer the same.
    """
    if lived.config.backbone:
        found = find_backbone(lived.config.backbone)
        tokenizer = found.read_tokenizer()
        # A run may have been held to shorter texts than the model was made for.
        keys = {"max_position_embeddings": found.longest, **special_ids(tokenizer)}
        return imported_files(tokenizer, found.longest), keys
    material = prepare(lived.config)
    if digest(material.curriculum) != lived.world:
        remedy = "its texts are not those that the run has read: the tokenizer would be another"
        raise ConfigError("world", lived.config.world, remedy)
    files = {
        TOKENIZER: hf_tokenizer(material.tokenizer),
        TOKENIZER_CONFIG: hf_tokenizer_config(lived.config.model.max_len),
    }
    return files, {"pad_token_id": PAD}


def sleep_of(memories: Memories) -> SleepConfig:
    """The settings of the nights that memories come from, for a learner that lives on.

    Raises:
      ConfigError: they are not on the card.
    """
    return from_plain(SleepConfig, memories.origin.get("sleep"), "origin.sleep")
