"""A folder that held a model holds the new one and nothing of the old, whoever kills the writer."""

from __future__ import annotations

import os
import shutil

import jax
import numpy as np
import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.memory.levels import LevelConfig
from sleeplm.models.config import ModelConfig
from sleeplm.models.transformer import Model
from sleeplm.pretrained.hf_config import read_config
from sleeplm.pretrained.hf_export import save_backbone
from sleeplm.pretrained.hf_files import INDEX, SINGLE
from sleeplm.pretrained.hf_weights import load_params

SIZES = {"vocab_size": 20, "d_model": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1}
LEVELS = [LevelConfig(name="mlp", kind="replace", width=24)]
#: Bytes of a file: one file, three, and six.
LIMITS = {"one file": 1_000_000, "three files": 8000, "six files": 3500}
OLD, NEW = 1e-5, 1e-6  # epsilons, by which a configuration is known


def save(folder, eps, limit):
    """A model whose every weight is its epsilon."""
    config = ModelConfig(**SIZES, max_len=32, levels=LEVELS, norm_eps=eps)
    shapes = jax.eval_shape(Model(config).init, jax.random.key(0))
    params = jax.tree.map(lambda x: np.full(x.shape, eps, x.dtype), shapes)
    save_backbone(folder, config, params, shard_bytes=LIMITS[limit])


def models_in(folder) -> set[float]:
    """Of which models a reader finds the configuration and the weights; none if it is refused."""
    try:
        config = read_config(folder)
        leaves = jax.tree.leaves(load_params(folder, config))
    except ConfigError:
        return set()
    return {config.norm_eps, *(float(f"{x:.6g}") for leaf in leaves for x in np.unique(leaf))}


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """``limit -> folder`` with the old model and a file of somebody's."""
    folders = {limit: tmp_path_factory.mktemp("old") / "model" for limit in LIMITS}
    for limit, folder in folders.items():
        folder.mkdir()
        save(folder, OLD, limit)
        (folder / "memories-0.safetensors").write_text("mine")
    return folders


def files(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("after", LIMITS)
@pytest.mark.parametrize("before", LIMITS)
def test_nothing_of_the_old_weights_stays_and_nothing_else_goes(old, tmp_path, before, after):
    folder, alone = tmp_path / "model", tmp_path / "alone"
    shutil.copytree(old[before], folder)
    save(folder, NEW, after)
    alone.mkdir()
    save(alone, NEW, after)
    assert files(folder) == files(alone) | {"memories-0.safetensors"}
    assert models_in(folder) == {NEW}


def test_shards_of_any_name_go_with_their_index(old, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(old["three files"], folder)
    text = (folder / INDEX).read_text()
    (folder / "model-00001-of-00003.safetensors").rename(folder / "first.safetensors")
    (folder / INDEX).write_text(text.replace("model-00001-of-00003.", "first."))
    assert models_in(folder) == {OLD}
    save(folder, NEW, "one file")
    assert files(folder) == {"config.json", SINGLE, "memories-0.safetensors"}


class KilledError(BaseException):
    """As a signal would: nothing that follows is done."""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("one file", "one file"),
        ("one file", "three files"),
        ("three files", "one file"),
        ("three files", "three files"),
        ("three files", "six files"),
    ],
)
def test_who_is_killed_leaves_the_old_model_the_new_one_or_none(
    old, tmp_path, monkeypatch, before, after
):
    found = []
    for steps in range(100):
        folder, left = tmp_path / str(steps), [steps]
        shutil.copytree(old[before], folder)

        def before_that(change, left=left):
            def step(*args, **kwargs):
                if not left[0]:
                    raise KilledError
                left[0] -= 1
                return change(*args, **kwargs)

            return step

        with monkeypatch.context() as patch:
            for name in ("unlink", "replace"):
                patch.setattr(os, name, before_that(getattr(os, name)))
            try:
                save(folder, NEW, after)
                finished = True
            except KilledError:
                finished = False
        found.append(models_in(folder))
        # Whatever was left there, the next writer clears up.
        save(folder, NEW, after)
        assert models_in(folder) == {NEW}
        assert not [name for name in files(folder) if name.endswith(".partial")]
        if finished:
            break
    assert finished and found[0] == {OLD} and found[-1] == {NEW}
    assert all(models in ({OLD}, {NEW}, set()) for models in found), found


def test_a_disk_that_is_full_leaves_the_old_model(old, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(old["three files"], folder)

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sleeplm.pretrained.tensor_files._to_disk", full)
        with pytest.raises(OSError, match="No space"):
            save(folder, NEW, "six files")
    assert files(folder) == files(old["three files"]) and models_in(folder) == {OLD}
