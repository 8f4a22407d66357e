"""A folder that held a model holds the new one and nothing of the old, whoever kills the writer."""

from __future__ import annotations

import json
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
from sleeplm.pretrained.hf_export import TOKENIZER_FILES, hf_config, save_backbone
from sleeplm.pretrained.hf_files import INDEX, SINGLE
from sleeplm.pretrained.hf_weights import load_params

SIZES = {"vocab_size": 20, "d_model": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1}
LEVELS = [LevelConfig(name="mlp", kind="replace", width=24)]
#: Bytes of a file: one file, three, and six.
LIMITS = {"one file": 1_000_000, "three files": 8000, "six files": 3500}
OLD, NEW = 1e-5, 1e-6  # epsilons, by which a configuration is known


#: Files of each model's tokenizer; what they hold is its epsilon.
TOKENIZERS = {
    OLD: ("tokenizer.json", "chat_template.jinja", "generation_config.json"),
    NEW: ("tokenizer.json", "vocab.json"),
}


def config_of(eps) -> ModelConfig:
    return ModelConfig(**SIZES, max_len=32, levels=LEVELS, norm_eps=eps)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """``eps -> folder`` that a model is from, with its tokenizer."""
    folders = {eps: tmp_path_factory.mktemp("source") for eps in TOKENIZERS}
    for eps, folder in folders.items():
        (folder / "config.json").write_text(json.dumps(hf_config(config_of(eps))))
        for name in TOKENIZERS[eps]:
            (folder / name).write_text(str(eps))
    return folders


@pytest.fixture(scope="module")
def params():
    """``eps -> parameters`` that are all as large as their epsilon."""
    shapes = jax.eval_shape(Model(config_of(OLD)).init, jax.random.key(0))
    return {
        e: jax.tree.map(lambda x, e=e: np.full(x.shape, e, x.dtype), shapes) for e in (OLD, NEW)
    }


@pytest.fixture(scope="module")
def save(sources, params):
    """``(folder, eps, limit)``: writes one of both models, with its tokenizer."""

    def save(folder, eps, limit):
        limits = {"shard_bytes": LIMITS[limit], "source": sources[eps]}
        save_backbone(folder, config_of(eps), params[eps], **limits)

    return save


def models_in(folder) -> set[float]:
    """Of which models a reader finds configuration, weights and tokenizer; none if refused."""
    try:
        config = read_config(folder)
        leaves = jax.tree.leaves(load_params(folder, config))
    except ConfigError:
        return set()
    weights = {float(f"{x:.6g}") for leaf in leaves for x in np.unique(leaf)}
    there = [folder / name for name in TOKENIZER_FILES if (folder / name).exists()]
    return {config.norm_eps, *weights, *(float(path.read_text()) for path in there)}


@pytest.fixture(scope="module")
def old(tmp_path_factory, save):
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
def test_nothing_of_the_old_model_stays_and_nothing_else_goes(old, save, tmp_path, before, after):
    folder, alone = tmp_path / "model", tmp_path / "alone"
    shutil.copytree(old[before], folder)
    save(folder, NEW, after)
    alone.mkdir()
    save(alone, NEW, after)
    assert files(folder) == files(alone) | {"memories-0.safetensors"}
    assert models_in(folder) == {NEW}


def test_without_a_source_the_files_of_a_tokenizer_are_the_callers(old, params, tmp_path):
    """Whoever exports a run's own model has written them before."""
    folder = tmp_path / "model"
    shutil.copytree(old["one file"], folder)
    save_backbone(folder, config_of(NEW), params[NEW])
    assert [name for name in TOKENIZERS[OLD] if (folder / name).exists()] == [*TOKENIZERS[OLD]]


def test_a_model_that_is_written_over_itself_keeps_its_tokenizer(sources, params, tmp_path):
    folder = shutil.copytree(sources[NEW], tmp_path / "model")
    for _ in range(2):
        save_backbone(folder, config_of(NEW), params[NEW], source=folder)
    assert files(folder) == {"config.json", SINGLE, *TOKENIZERS[NEW]}


def test_shards_of_any_name_go_with_their_index(old, save, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(old["three files"], folder)
    text = (folder / INDEX).read_text()
    (folder / "model-00001-of-00003.safetensors").rename(folder / "first.safetensors")
    (folder / INDEX).write_text(text.replace("model-00001-of-00003.", "first."))
    assert models_in(folder) == {OLD}
    save(folder, NEW, "one file")
    assert files(folder) == {"config.json", SINGLE, "memories-0.safetensors", *TOKENIZERS[NEW]}


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
    old, save, tmp_path, monkeypatch, before, after
):
    found = []
    for steps in range(100):
        folder, left = tmp_path / str(steps), [steps]
        shutil.copytree(old[before], folder)

        def before_that(change, left=left):
            def step(path, *args, **kwargs):
                if os.path.lexists(path):  # else nothing changes
                    if not left[0]:
                        raise KilledError
                    left[0] -= 1
                return change(path, *args, **kwargs)

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


@pytest.mark.parametrize("files_before", [0, 3, 7])
def test_a_disk_that_is_full_leaves_the_old_model(old, save, tmp_path, monkeypatch, files_before):
    """At its first file of weights, at a later one, at the second of its tokenizer."""
    folder, left = tmp_path / "model", [files_before]
    shutil.copytree(old["three files"], folder)

    def full(*args):
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1

    with monkeypatch.context() as patch:
        patch.setattr("sleeplm.pretrained.tensor_files._to_disk", full)
        with pytest.raises(OSError, match="No space"):
            save(folder, NEW, "six files")
    assert files(folder) == files(old["three files"]) and models_in(folder) == {OLD}
