"""A backbone goes back into a Hugging Face folder without losing a bit."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from sleeplm.core.errors import ConfigError
from sleeplm.core.tree import differing
from sleeplm.memory.levels import LevelConfig
from sleeplm.models.config import ModelConfig
from sleeplm.models.graft import backbone_of, graft
from sleeplm.models.rope import RopeScaling
from sleeplm.models.transformer import Model
from sleeplm.pretrained.hf_config import read_config
from sleeplm.pretrained.hf_export import (
    base_config,
    base_digest,
    hf_config,
    require_same_backbone,
    save_backbone,
)
from sleeplm.pretrained.hf_files import SINGLE, open_folder
from sleeplm.pretrained.hf_weights import load_params

LEVELS = [
    LevelConfig(name="fast", kind="graft", width=8, period=1, night=4),
    LevelConfig(name="slow", kind="replace", width=24, slots=3, rank=2, top_k=2),
]
SCALINGS = {
    "none": RopeScaling(),
    "linear": RopeScaling("linear", 4.0),
    "llama3": RopeScaling("llama3", 8.0, 1.0, 4.0, 64),
}


def config_of(**changes) -> ModelConfig:
    sizes = {"vocab_size": 20, "d_model": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1}
    return ModelConfig(**sizes, max_len=32, levels=LEVELS, **changes)


def save(folder, config, **settings):
    """Parameters with levels around them, and the folder that their backbone was written to."""
    params = jax.jit(Model(config).init)(jax.random.key(0))
    save_backbone(folder, config, params, **settings)
    return params


def bits_of(folder) -> dict[str, tuple]:
    with open_folder(folder) as tensors:
        found = {name: tensors[name][:] for name in tensors}
    return {name: (x.dtype.name, x.shape, x.tobytes()) for name, x in found.items()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_is_read_to_the_same_bits(tmp_path, tied, norms, dtype):
    config = config_of(tie_embeddings=tied, qk_norm=norms, param_dtype=dtype)
    params = save(tmp_path, config)
    found = load_params(tmp_path, base_config(config))
    assert differing(found, backbone_of(params, config)) == []
    assert "fast" not in found["blocks"]["levels"]


def test_a_backbone_comes_out_of_its_grafts_as_it_went_in():
    config = config_of()
    backbone = Model(base_config(config)).init(jax.random.key(3))
    params = graft(Model(config), backbone, jax.random.key(4))
    assert differing(backbone_of(params, config), backbone) == []


@pytest.mark.parametrize("kind", SCALINGS)
def test_the_configuration_is_read_as_it_was(tmp_path, kind):
    config = config_of(rope_scaling=SCALINGS[kind], rope_theta=5e5, norm_eps=1e-5, qk_norm=True)
    save(tmp_path, config)
    found = read_config(tmp_path)
    wanted = dataclasses.replace(
        base_config(config),
        head_dim=config.width_of_head,
        levels=[LevelConfig(name="mlp", kind="replace", width=24)],
    )
    assert found == wanted


def test_many_files_and_one_hold_the_same(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    params = save(whole, config_of())
    save_backbone(parts, config_of(), params, shard_bytes=3000)
    files = sorted(path.name for path in parts.glob("*.safetensors"))
    assert len(files) > 2 and files[-1] == f"model-{len(files):05}-of-{len(files):05}.safetensors"
    assert bits_of(parts) == bits_of(whole)
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(len(bits) for *_, bits in bits_of(whole).values())
    large = [path for path in parts.glob("*.safetensors") if path.stat().st_size > 3000 + 2000]
    assert not large


def test_rounding_is_asked_for(tmp_path):
    config = config_of()
    params = save(tmp_path, config, dtype="bfloat16")
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    with safe_open(tmp_path / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        found = file.get_tensor("model.norm.weight")
        embed = file.get_tensor("model.embed_tokens.weight")
    assert found.dtype.name == "bfloat16"
    np.testing.assert_array_equal(embed, np.asarray(params["embed"]).astype("bfloat16"))
    with pytest.raises(ConfigError, match="dtype = 'int8'"):
        save(tmp_path, config, dtype="int8")


def test_the_digest_of_a_base_knows_numbers_and_types_and_no_memories():
    config = config_of()
    params = Model(config).init(jax.random.key(0))
    digest = base_digest(config, params)
    levels = params["blocks"]["levels"]
    levels["fast"]["base"]["down"]["kernel"] += 1.0
    levels["slow"]["experts"]["a"] += 1.0
    assert base_digest(config, params) == digest
    plain = dataclasses.replace(config, levels=[LevelConfig(name="mlp", width=24)])
    named = jax.tree.map(lambda x: x, backbone_of(params, config))
    named["blocks"]["levels"] = {"mlp": named["blocks"]["levels"]["slow"]}
    assert base_digest(plain, named) == digest  # whatever the level is called
    rounded = jax.tree.map(lambda x: x.astype("bfloat16"), params)
    assert base_digest(config, rounded) != digest
    params["final_norm"] = params["final_norm"].at[0].add(1e-6)
    assert base_digest(config, params) != digest


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ({"norm_eps": 1e-5}, {"norm_eps": 9.999999747378752e-06}),  # as a GGUF file stores it
        ({"rope_theta": 10000.1}, {"rope_theta": float(np.float32(10000.1))}),
        (
            {"rope_scaling": RopeScaling("linear", 1.1)},
            {"rope_scaling": RopeScaling("linear", float(np.float32(1.1)))},
        ),
    ],
)
def test_backbones_are_the_same_if_their_numbers_are_in_float32(here, there):
    for found, wanted in ((here, there), (there, here)):
        require_same_backbone(config_of(**found), config_of(**wanted), "base")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"norm_eps": 1.000001e-6}, "rms_norm_eps"),
        ({"rope_theta": 10000.01}, "rope_theta"),
        ({"rope_scaling": RopeScaling("linear", 1.1)}, "rope_scaling"),
        ({"qk_norm": True}, "model_type"),
    ],
)
def test_backbones_with_other_settings_are_told_apart_by_key(changes, key):
    with pytest.raises(ConfigError) as error:
        require_same_backbone(config_of(**changes), config_of(), "base")
    assert error.value.field in (f"base: {key}", "base: architectures")


def test_a_model_with_two_mlps_a_block_is_refused():
    two = [LevelConfig(name="one"), LevelConfig(name="two")]
    with pytest.raises(ConfigError) as error:
        hf_config(ModelConfig(levels=two))
    assert error.value.field == "model.levels" and "\n" not in str(error.value)


def test_tokenizer_and_other_keys_are_taken_over_from_the_folder_that_it_came_from(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    config = config_of()
    params = save(source, config, keys={"bos_token_id": 7, "max_position_embeddings": 999})
    (source / "tokenizer.json").write_text("{}")
    (source / "README.md").write_text("not a file of the tokenizer")
    save_backbone(out, config, params, source=source)
    written = json.loads((out / "config.json").read_text())
    assert (written["bos_token_id"], written["max_position_embeddings"]) == (7, 999)
    assert (out / "tokenizer.json").read_text() == "{}"
    assert not (out / "README.md").exists()
    with pytest.raises(ConfigError, match=r"hidden_size = 16: must be 32"):
        save_backbone(out, dataclasses.replace(config, d_model=32), params, source=source)


def test_what_the_folder_it_came_from_does_not_say_a_run_does_not_say_for_it(tmp_path):
    """A run's own shortest context, and ends that it has chosen, are no part of the model."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    config = config_of()
    params = save(source, config)
    raw = json.loads((source / "config.json").read_text())
    own = ("max_position_embeddings", "bos_token_id", "eos_token_id")
    rest = {key: value for key, value in raw.items() if key not in own}
    assert len(raw) == len(rest) + 3
    (source / "config.json").write_text(json.dumps(rest))
    save_backbone(out, config, params, source=source)
    assert json.loads((out / "config.json").read_text()) == rest


NARROW = {
    "bfloat16": lambda name: "bfloat16",
    "float16": lambda name: "float16",
    "norms in float32": lambda name: "float32" if "norm" in name else "bfloat16",
}


@pytest.fixture
def published(tmp_path):
    """``kind -> folder`` of a model that is published in narrow types."""

    def make(kind):
        save(tmp_path, config_of())
        tensors = load_file(tmp_path / SINGLE)
        narrow = {name: x.astype(NARROW[kind](name)) for name, x in tensors.items()}
        save_file(narrow, tmp_path / SINGLE, {"format": "pt"})
        said = narrow["model.embed_tokens.weight"].dtype.name
        raw = json.loads((tmp_path / "config.json").read_text()) | {"torch_dtype": said}
        (tmp_path / "config.json").write_text(json.dumps(raw))
        return tmp_path

    return make


def exported(source, out, change=lambda params: params, **settings) -> str:
    """Imports a folder in float32 and exports it again; the type that the new one says it has."""
    config = read_config(source)
    out.mkdir(exist_ok=True)
    params = change(load_params(source, config))
    save_backbone(out, config, params, source=source, **settings)
    return json.loads((out / "config.json").read_text())["torch_dtype"]


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("place", ["out", "."])
def test_a_folder_in_narrow_types_comes_back_in_them(published, tmp_path, kind, place):
    source, out = published(kind), tmp_path / place
    (source / "tokenizer.json").write_text("{}")
    before, said = bits_of(source), json.loads((source / "config.json").read_text())["torch_dtype"]
    assert exported(source, out) == said
    assert bits_of(out) == before


def test_what_has_learned_since_is_not_rounded_into_them(published, tmp_path):
    def learned(params):
        return {**params, "final_norm": params["final_norm"] + 2**-12}

    source, out = published("bfloat16"), tmp_path / "out"
    assert exported(source, out, learned) == "float32"
    config = read_config(source)
    moved = learned(load_params(source, config))
    assert differing(load_params(out, read_config(out)), moved) == []
    assert exported(source, out, learned, dtype="bfloat16") == "bfloat16"  # if that is asked for


def test_a_source_without_weights_says_nothing_of_types(published, tmp_path):
    source, out = published("bfloat16"), tmp_path / "out"

    def gone(params):
        (source / SINGLE).unlink()
        return params

    assert exported(source, out, gone) == "float32"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama3", "linear", "smollm2", "qwen3"])
def test_a_published_model_comes_back_bit_for_bit_and_says_the_same(reference, family, tmp_path):
    import torch
    import transformers as hf

    ref = reference(family)
    config = read_config(ref.folder)
    params = load_params(ref.folder, config)
    save_backbone(tmp_path, config, params, shard_bytes=60_000, source=ref.folder)
    assert bits_of(tmp_path) == bits_of(ref.folder)
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    with torch.no_grad():
        logits = model(torch.from_numpy(ref.prompts)).logits.numpy()
    np.testing.assert_allclose(logits, ref.logits, atol=1e-4)
    same = {**model.config.to_dict(), "transformers_version": ""}
    was = hf.AutoConfig.from_pretrained(ref.folder).to_dict()
    for key in ("bos_token_id", "eos_token_id", "max_position_embeddings", "rope_parameters"):
        assert same.get(key) == was.get(key)
