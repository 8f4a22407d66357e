"""A new model in place of the one that a Hugging Face folder has, if any.

Whoever kills this leaves a folder with the old model, with the new one, or with none that can be
read; never weights of one beside the configuration, the index or the tokenizer of another.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sleeplm.core.errors import ConfigError
from sleeplm.pretrained.hf_config import CONFIG
from sleeplm.pretrained.hf_files import INDEX, SINGLE, indexed_files
from sleeplm.pretrained.tensor_files import Tensor, copy_file, write_tensors, write_text

NUMBERED, PARTIAL = "model-?????-of-?????.safetensors", ".partial"


def replace_model(
    folder: pathlib.Path,
    shards: Mapping[str, Sequence[Tensor]],
    config: Mapping[str, Any],
    others: Mapping[str, pathlib.Path | None] | None = None,
) -> None:
    """Writes weights and ``config.json`` into an existing folder, and removes older weights.

    The old ones stay until all of the new ones are on the disk, which needs room for both.

    Args:
      shards: tensors by the name of their file, :data:`~sleeplm.pretrained.hf_files.SINGLE` alone
        or several, which get an index. config: the content of ``config.json``.
      others: more files of the model by name, each with the file that it is a copy of; None: there
        is to be no such file. Those that are not named stay as they are.
    """
    others = others or {}
    copied = {name: source for name, source in others.items() if source is not None}
    _clear_partials(folder, others)
    try:
        for name, part in shards.items():
            write_tensors(folder / (name + PARTIAL), part, {"format": "pt"})
        for name, source in copied.items():
            copy_file(source, folder / (name + PARTIAL))
    except BaseException:
        _clear_partials(folder, others)
        raise
    # Without its configuration nothing takes the folder for a model: it goes first and comes last.
    gone = [name for name in others if name not in copied]
    for name in (CONFIG, *_weights_there(folder), *gone):
        (folder / name).unlink(missing_ok=True)
    for name in (*shards, *copied):
        os.replace(folder / (name + PARTIAL), folder / name)
    if list(shards) != [SINGLE]:
        write_text(folder / INDEX, _index_of(shards))
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def _clear_partials(folder: pathlib.Path, others: Iterable[str]) -> None:
    """Removes what was not finished, by a process that was killed too."""
    named = [folder / (name + PARTIAL) for name in others]
    for path in (*folder.glob(f"model*.safetensors{PARTIAL}"), *named):
        path.unlink(missing_ok=True)


def _weights_there(folder: pathlib.Path) -> list[str]:
    """Names of a folder's files of weights, the index in front of what it leads to."""
    try:
        indexed = indexed_files(folder / INDEX)
    except ConfigError:  # none, or one that leads nowhere
        indexed = []
    found = {path.name for path in folder.glob(NUMBERED)} | {SINGLE, *indexed}
    return [INDEX, *sorted(name for name in found if name.endswith(".safetensors"))]


def _index_of(shards: Mapping[str, Sequence[Tensor]]) -> str:
    where = {tensor.name: name for name, part in shards.items() for tensor in part}
    total = {"total_size": sum(tensor.nbytes for part in shards.values() for tensor in part)}
    index = {"metadata": total, "weight_map": dict(sorted(where.items()))}
    return json.dumps(index, indent=2) + "\n"
