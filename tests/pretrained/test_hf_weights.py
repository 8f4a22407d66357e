"""Weights are read piece by piece into their layout, or refused by name."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from sleeplm.core.errors import ConfigError
from sleeplm.models.config import ModelConfig
from sleeplm.models.transformer import Model
from sleeplm.pretrained import hf_weights
from sleeplm.pretrained.hf_config import MLP, model_config
from sleeplm.pretrained.hf_files import INDEX, SINGLE, StoredTensor, open_folder
from sleeplm.pretrained.hf_weights import load_params, tensor_shapes

RAW = {
    "model_type": "qwen3",
    "vocab_size": 12,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return model_config(RAW)


def tensors_of(config: ModelConfig) -> dict[str, np.ndarray]:
    """Random tensors under the names and in the layout of the files."""
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in tensor_shapes(config).items()
    }


@pytest.fixture(scope="module")
def shards(config, tmp_path_factory):
    """A folder of two shards and their index."""
    folder = tmp_path_factory.mktemp("shards")
    tensors, names = tensors_of(config), sorted(tensors_of(config))
    where = {name: f"model-{1 + i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        save_file({n: tensors[n] for n in names if where[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


@pytest.fixture
def folder(shards, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(shards, tmp_path / "copy")


def test_matrices_are_transposed_and_layers_stacked(config, shards):
    params, tensors = load_params(shards, config), tensors_of(config)
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        found = params["blocks"]["levels"][MLP]["base"]["down"]["kernel"][layer]
        np.testing.assert_array_equal(found, tensors[name].T)
    np.testing.assert_array_equal(params["unembed"], tensors["lm_head.weight"].T)
    np.testing.assert_array_equal(params["embed"], tensors["model.embed_tokens.weight"])


def test_every_device_reads_its_own_part_and_no_more(config, shards, monkeypatch):
    mesh = jax.make_mesh((4,), ("model",))
    shapes = jax.eval_shape(Model(config).init, jax.random.key(0))

    def last_axis(shape):
        even = shape.shape[-1] % 4 == 0
        return NamedSharding(mesh, P(*[None] * (shape.ndim - 1), "model" if even else None))

    read = []
    whole = StoredTensor.__getitem__

    def counted(tensor, index):
        out = whole(tensor, index)
        read.append((tensor.name, out.size))
        return out

    monkeypatch.setattr(StoredTensor, "__getitem__", counted)
    spread = load_params(shards, config, jax.tree.map(last_axis, shapes))
    gate = [size for name, size in read if "gate_proj" in name]
    assert gate == [8 * 16 // 4] * 8  # two layers, four devices, a quarter each
    assert spread["embed"].sharding.spec == P(None, "model")
    monkeypatch.undo()
    for ours, alone in zip(
        jax.tree.leaves(spread), jax.tree.leaves(load_params(shards, config)), strict=True
    ):
        np.testing.assert_array_equal(ours, alone)


def test_learners_side_by_side_have_the_same_weights_and_every_device_its_part(config, shards):
    mesh = jax.make_mesh((2, 2), ("replica", "model"))
    shapes = jax.eval_shape(Model(config).init, jax.random.key(0))

    def places(shape):
        even = shape.shape[-1] % 2 == 0
        inner = [*[None] * (shape.ndim - 1), "model" if even else None]
        return NamedSharding(mesh, P("replica", *inner))

    both = load_params(shards, config, jax.tree.map(places, shapes), learners=4)
    for ours, one in zip(
        jax.tree.leaves(both), jax.tree.leaves(load_params(shards, config)), strict=True
    ):
        np.testing.assert_array_equal(ours, np.stack([one] * 4))
    assert both["embed"].sharding.shard_shape(both["embed"].shape)[::2] == (2, config.d_model // 2)


def test_a_matrix_that_is_read_in_many_chunks_is_the_same(config, shards, monkeypatch):
    whole = load_params(shards, config)
    monkeypatch.setattr(hf_weights, "CHUNK", 20)  # 2 rows of 8, one of 16: no row count divides all
    for ours, once in zip(
        jax.tree.leaves(load_params(shards, config)), jax.tree.leaves(whole), strict=True
    ):
        np.testing.assert_array_equal(ours, once)


def test_half_precision_files_are_read_into_either_type(config, folder):
    def halve(tensors):
        tensors.update({name: x.astype(ml_dtypes.bfloat16) for name, x in tensors.items()})

    whole = load_params(folder, config)
    for file in ("model-1.safetensors", "model-2.safetensors"):
        spoil(folder, file, halve)
    for dtype in ("float32", "bfloat16"):
        read = load_params(folder, dataclasses.replace(config, param_dtype=dtype))
        for ours, exact in zip(jax.tree.leaves(read), jax.tree.leaves(whole), strict=True):
            assert ours.dtype == dtype
            np.testing.assert_array_equal(ours, exact.astype("bfloat16").astype(dtype))


def test_a_cpu_takes_a_parameter_over_without_a_copy():
    ours = hf_weights._empty((3, 5), np.float32)
    ours[:] = 1
    one = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    taken = jax.make_array_from_callback((3, 5), one, lambda index: ours)
    assert taken.unsafe_buffer_pointer() == ours.ctypes.data


def spoil(folder, file, change):
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)


def test_a_missing_tensor_is_named_with_its_shape(config, folder):
    spoil(folder, "model-1.safetensors", lambda t: t.pop("model.norm.weight", None))
    spoil(folder, "model-2.safetensors", lambda t: t.pop("model.norm.weight", None))
    with pytest.raises(ConfigError, match=r"tensor model\.norm\.weight .*missing, must be \[8\]"):
        load_params(folder, config)


def test_a_tensor_that_this_architecture_has_not_is_named(config, folder):
    bias = "model.layers.0.self_attn.q_proj.bias"
    spoil(folder, "model-1.safetensors", lambda t: t.update({bias: np.zeros(8, np.float32)}))
    with pytest.raises(ConfigError, match=r"q_proj\.bias"):
        load_params(folder, config)


def test_a_shape_that_disagrees_with_the_configuration_is_named(shards):
    wider = model_config(RAW | {"intermediate_size": 32})
    with pytest.raises(ConfigError, match=r"shape of .*mlp.* = \[.*config\.json says"):
        load_params(shards, wider)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_buffers_of_any_type_and_a_copy_of_tied_embeddings_may_stay(config, folder, dtype):
    tied = model_config(RAW | {"tie_word_embeddings": True})
    buffer, head = "model.layers.0.self_attn.rotary_emb.inv_freq", "lm_head.weight"
    extra = {
        buffer: np.zeros(2, dtype),
        head: tensors_of(config)["model.embed_tokens.weight"],
    }
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    spoil(folder, places[head], lambda t: t.update(extra))
    assert "unembed" not in load_params(folder, tied)


def test_a_file_that_was_cut_off_is_named(config, folder):
    file = folder / "model-2.safetensors"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ConfigError, match=r"model-2\.safetensors.*cannot be read"):
        load_params(folder, config)


def test_of_one_file_and_an_index_the_one_file_counts(config, folder):
    """As for ``transformers``, which takes shards only where there is no such file."""
    ones = {name: np.ones_like(x) for name, x in tensors_of(config).items()}
    save_file(ones, folder / SINGLE)
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(load_params(folder, config)))


def refused(folder) -> str:
    with pytest.raises(ConfigError) as error, open_folder(folder):
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_without_weights_is_refused(tmp_path):
    assert "has no model.safetensors, nor shards" in refused(tmp_path)


def test_shards_without_their_index_are_named(folder):
    (folder / INDEX).unlink()
    said = refused(folder)
    assert "has model-1.safetensors and 1 more" in said and f"{INDEX} is missing" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "no index of safetensors"),
        ('{"weight_map": ["a"]}', "no index of safetensors"),
        ('{"weight_map": {"a": 1}}', f"{INDEX}: a = 1: must name a file of the folder"),
        ('{"weight_map": {"a": "../b.safetensors"}}', "must name a file of the folder"),
        ('{"weight_map": {"a": "b.safetensors"}}', "b.safetensors': cannot be read"),
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path, content, said):
    (tmp_path / INDEX).write_text(content)
    assert said in refused(tmp_path)


@pytest.mark.parametrize("chunk", [1 << 18, 16])
def test_a_copy_of_tied_embeddings_has_to_be_one(tmp_path, monkeypatch, chunk):
    """Else the folder is of a model that has an output matrix of its own."""
    monkeypatch.setattr(hf_weights, "CHUNK", chunk)
    config = model_config({**RAW, "tie_word_embeddings": True})
    tensors = tensors_of(config)
    head = tensors["model.embed_tokens.weight"].copy()

    def load(head):
        save_file({**tensors, "lm_head.weight": head}, tmp_path / SINGLE)
        return load_params(tmp_path, config)

    assert "unembed" not in load(head)
    head[-1, 0] += 1
    for other in (head, head[:, :3].copy(), head[0].copy()):
        with pytest.raises(ConfigError, match=r"tie_word_embeddings = True: must be false, as lm"):
            load(other)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.bool_, ml_dtypes.float8_e4m3fn])
def test_tensors_of_other_types_than_floats_are_refused_by_name(config, tmp_path, dtype):
    tensors = tensors_of(config)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].astype(dtype)
    save_file(tensors, tmp_path / SINGLE)
    with pytest.raises(ConfigError, match=f"type of {name} = .*: must be one of F64, F32, F16"):
        load_params(tmp_path, config)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_tied_embeddings_and_their_copy_have_to_be_floats(tmp_path, name):
    config = model_config({**RAW, "tie_word_embeddings": True})
    tensors = tensors_of(config)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors[name] = tensors[name].astype(ml_dtypes.float8_e4m3fn)
    save_file(tensors, tmp_path / SINGLE)
    with pytest.raises(ConfigError, match=f"type of {name} = 'F8_E4M3': must be one of F64"):
        load_params(tmp_path, config)
