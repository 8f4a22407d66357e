"""Memories in a folder: one file of tensors, and a card in JSON that says what they are.

The file of tensors is named after its digest and the card names the file, so that replacing the
card replaces both at once: a folder never holds half of old and half of new memories.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors

from sleeplm.core import checks, tree
from sleeplm.core.errors import ConfigError
from sleeplm.core.records import from_plain
from sleeplm.core.types import PyTree
from sleeplm.models.config import ModelConfig
from sleeplm.pretrained.json_files import read_object
from sleeplm.pretrained.memories import Memories, NightMemory, named
from sleeplm.pretrained.memory_card import check_card
from sleeplm.pretrained.tensor_files import (
    Tensor,
    digest_of_file,
    write_tensors,
    write_text,
)

CARD, FILES = "memories.json", "memories-*.safetensors"
FORMAT = "sleeplm-memories-1"


def write_memories(folder: pathlib.Path, memories: Memories) -> dict[str, Any]:
    """Writes memories into an existing folder, in place of those that it has, if any.

    Returns:
      The card, see :func:`card_of`.
    """
    partial = folder / "memories.partial"
    tensors = _tensors(memories)
    digest = write_tensors(partial, tensors, {"format": FORMAT})
    name = FILES.replace("*", digest[:12])
    os.replace(partial, folder / name)
    size = (folder / name).stat().st_size
    card = card_of(memories) | {"file": {"name": name, "bytes": size, "sha256": digest}}
    text = json.dumps(card, indent=1)
    write_text(folder / CARD, text + "\n")
    for old in folder.glob(FILES):
        if old.name != name:
            old.unlink()
    return json.loads(text)


def card_of(memories: Memories) -> dict[str, Any]:
    """What the card says of memories, but for the file that they are in."""
    own = [{f.name: getattr(n, f.name) for f in dataclasses.fields(n)} for n in memories.nights]
    for entry, night in zip(own, memories.nights, strict=True):
        entry |= {**_size(entry.pop("expert")), "sha256": night.sha256}
    return {
        "format": FORMAT,
        "base": memories.base,
        "whole": memories.whole,
        "nights": own,
        "parts": {name: _size(part) for name, part in memories.parts.items()},
        "origin": memories.origin,
        "model": dataclasses.asdict(memories.config),
    }


def _size(part: PyTree) -> dict[str, int]:
    return {"parameters": tree.size(part), "bytes": tree.nbytes(part)}


def _tensors(memories: Memories) -> list[Tensor]:
    out = [t for name, part in memories.parts.items() for t in named(part, f"{name}.")]
    for one in memories.nights:
        out += named(one.expert, f"{_prefix(one.level, one.slot)}.")
    return out


def _prefix(level: str, slot: int) -> str:
    return f"slots.{level}.{slot}"


def has_memories(folder: pathlib.Path) -> bool:
    """Whether there is a card of memories in a folder."""
    return (folder / CARD).is_file()


def read_memories(folder: str | pathlib.Path) -> Memories:
    """The memories in a folder, checked against their digest.

    Raises:
      ConfigError: there are none, or they are damaged or of another format.
    """
    root = pathlib.Path(folder).expanduser()
    path = root / CARD
    card = _read_card(path)
    # Cards of before say one type for all parameters.
    model = {"memory_dtype": card["model"].get("param_dtype"), **card["model"]}
    config = from_plain(ModelConfig, model, f"{path}: model")
    config.check("model")
    # Of its last part: a card that somebody sends is no reason to read elsewhere.
    file = root / pathlib.Path(card["file"]["name"]).name
    found = _read_tensors(file, card["file"]["sha256"])
    pools = found.pop("slots", {})
    nights = tuple(
        _night(config, one, pools, f"{path}: {_prefix(one['level'], one['slot'])}")
        for one in card["nights"]
    )
    return Memories(card["base"], config, card["whole"], nights, found, card["origin"])


def _read_card(path: pathlib.Path) -> dict[str, Any]:
    remedy = "no such file: name a folder with exported memories"
    checks.require(path.is_file(), "memories", str(path), remedy)
    card = read_object(path, "memories")
    found = card.get("format")
    checks.require(found == FORMAT, f"{path}: format", found, f"must be {FORMAT!r}")
    check_card(card, str(path))
    return card


def _read_tensors(path: pathlib.Path, digest: str) -> dict[str, Any]:
    """The file's tensors as nested dicts by the parts of their names, which are two or more."""
    try:
        changed = digest_of_file(path) != digest
    except OSError as error:
        raise ConfigError("memories", str(path), f"cannot be read: {error.strerror}") from None
    remedy = "is damaged: its bytes are not those that the card was written for"
    checks.require(not changed, "memories", str(path), remedy)
    out: dict[str, Any] = {}
    try:
        with safetensors.safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118
                *parents, last = name.split(".")
                place: Any = out
                for part in parents:
                    place = place.setdefault(part, {}) if isinstance(place, dict) else None
                known = parents and isinstance(place, dict) and last not in place
                checks.require(known, "memories", str(path), f"is damaged: {name} is no such name")
                place[last] = file.get_tensor(name)
    except safetensors.SafetensorError as error:
        raise ConfigError("memories", str(path), f"cannot be read: {error}") from None
    return out


def _night(
    config: ModelConfig, entry: Mapping[str, Any], pools: Mapping[str, Any], field: str
) -> NightMemory:
    """One night of the card with its numbers."""
    kept = {f.name for f in dataclasses.fields(NightMemory)} - {"expert"}
    values = {name: value for name, value in entry.items() if name in kept}
    for name in ("nights", "days", "earlier"):
        values[name] = tuple(values.get(name, ()))
    level = next((lv for lv in config.levels if lv.name == entry["level"]), None)
    checks.require(level is not None, field, entry["level"], "is no level of the model")
    assert level is not None
    checks.in_range(f"{field}.slot", entry["slot"], 0, level.slots - 1)
    slots = pools.get(level.name)
    expert = slots.get(str(entry["slot"])) if isinstance(slots, dict) else None
    checks.require(expert is not None, field, None, "is not in the file of tensors")
    night = NightMemory(expert=jax.tree.map(np.asarray, expert), **values)
    remedy = "is damaged: its numbers have another digest"
    checks.require(night.sha256 == entry["sha256"], field, night.sha256[:12], remedy)
    return night
