"""A learner in a folder: a Hugging Face model, its base, and the memories that go onto it.

Others load the base and see no memories; :func:`load_learner` puts both together.
"""

from __future__ import annotations

import pathlib
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import jax

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError
from sleeplm.core.types import Params
from sleeplm.models.graft import graft
from sleeplm.models.transformer import Model
from sleeplm.pretrained.hf_config import CONFIG, read_config
from sleeplm.pretrained.hf_export import (
    TOKENIZER_FILES,
    base_config,
    require_same_backbone,
)
from sleeplm.pretrained.hf_files import INDEX, SINGLE, weight_files
from sleeplm.pretrained.hf_weights import load_params
from sleeplm.pretrained.memories import Memories
from sleeplm.pretrained.memory_files import has_memories, read_memories, write_memories
from sleeplm.pretrained.published import folder_of
from sleeplm.pretrained.receive import join, newborn, put_levels, require_base
from sleeplm.pretrained.tensor_files import new_folder


def load_base(folder: str | pathlib.Path, memories: Memories) -> Params:
    """The backbone in a folder, if it is the one that the memories belong to.

    Returns:
      Parameters of a model of
      :func:`~sleeplm.pretrained.hf_export.base_config` of ``memories.config``.

    Raises:
      ConfigError: it is another, or cannot be read.
    """
    remedy = "must be a Hugging Face folder, as `sleeplm export` writes"
    checks.require(folder_of(str(folder)) is not None, "base", str(folder), remedy)
    config = base_config(memories.config)
    found = read_config(folder, dtype=config.dtype, param_dtype=config.param_dtype)
    require_same_backbone(found, config, "base")
    params = load_params(folder, config)
    require_base(Model(config), params, memories)
    return params


def load_learner(
    folder: str | pathlib.Path, base: str | pathlib.Path | None = None
) -> tuple[Model, dict[str, Any]]:
    """A model with its memories, to ask or to generate from.

    To let it live on, make a learner around ``load_base`` and give it the memories with
    :func:`~sleeplm.pretrained.receive.put_memories`.

    Args:
      folder: with memories. base: with their base; None: the same.

    Returns:
      The model, and {"params", "slots"} that it runs on.

    Raises:
      ConfigError: files are missing or damaged, or the base is another.
    """
    memories = read_memories(folder)
    model = Model(memories.config)
    params = graft(model, load_base(base or folder, memories), jax.random.key(0), copy=False)
    params, slots = put_levels(params, model.init_slots(), memories)
    return model, {"params": params, "slots": slots}


def import_memories(
    source: str | pathlib.Path,
    *,
    base: str | pathlib.Path | None = None,
    into: str | pathlib.Path | None = None,
    out: str | pathlib.Path | None = None,
    force: bool = False,
    warn: Callable[[str], object] = warnings.warn,
) -> tuple[pathlib.Path, Memories]:
    """Makes a folder with a learner out of memories and what they go onto.

    Args:
      source: with memories, of a whole learner or of single nights.
      base: a Hugging Face folder. A whole learner's memories are put onto it; single nights become
        the first of a learner that has not lived yet.
      into: a folder with a learner, which gets the single nights in addition.
      out: a new folder; None: ``into`` itself.
      force: replace a learner that is in ``out``.
      warn: see :func:`~sleeplm.pretrained.receive.add_night`.

    Returns:
      The folder, and the memories that are in it now.

    Raises:
      ConfigError, PoolFullError: what does not belong together, in one line; nothing has changed.
    """
    one = (base is None) != (into is None)
    checks.require(one, "base", base and str(base), "give either a base, or a learner to go into")
    checks.require(out is not None or base is None, "out", out, "name the new folder")
    memories = read_memories(source)
    if into is not None:
        memories = join(read_memories(into), memories, warn)
    else:
        assert base is not None
        load_base(base, memories)
        if not memories.whole:
            memories = join(newborn(memories), memories, warn)
    below = pathlib.Path(base or into or "").expanduser()
    if out is None:
        write_memories(below, memories)
        return below, memories
    target = pathlib.Path(out).expanduser()
    with new_folder(target, force=force, replaceable=has_memories) as folder:
        if base is not None or (below / CONFIG).is_file():
            copy_base(below, folder)
        write_memories(folder, memories)
    return target, memories


def copy_base(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Copies the files of a Hugging Face folder that make up its model and tokenizer."""
    if not (source / CONFIG).is_file():
        raise ConfigError("base", str(source), f"has no {CONFIG}: name a Hugging Face folder")
    files = [path.name for path in weight_files(source)]
    index = [] if files == [SINGLE] else [INDEX]  # an index that is not read leads nowhere there
    for name in (CONFIG, *TOKENIZER_FILES, *files, *index):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
