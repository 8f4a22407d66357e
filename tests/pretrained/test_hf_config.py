"""What a config.json may ask for, and how the rest is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.models.rope import RopeScaling, frequencies
from sleeplm.pretrained.hf_config import read_config

LLAMA31 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
OTHER_HEAD = "LlamaForTokenClassification"


@pytest.fixture
def write(tmp_path, published):
    """Writes SmolLM2's config.json with changes; a value of ``...`` leaves its key out."""

    def write(**changes):
        config = {k: v for k, v in (published | changes).items() if v is not ...}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return write


def test_smollm2_is_read_with_every_size(write):
    config = read_config(write(), dtype="bfloat16")
    assert (config.vocab_size, config.d_model, config.n_layers) == (49152, 576, 30)
    assert (config.n_heads, config.n_kv_heads, config.width_of_head) == (9, 3, 64)
    assert [(level.name, level.kind, level.width) for level in config.levels] == [
        ("mlp", "replace", 1536)
    ]
    assert (config.rope_theta, config.rope_scaling, config.norm_eps) == (1e5, RopeScaling(), 1e-5)
    assert config.tie_embeddings and not config.qk_norm
    assert (config.max_len, config.dtype, config.param_dtype) == (1024, "bfloat16", "float32")


def test_a_context_is_as_long_as_asked_but_not_longer_than_the_model_was_made_for(write):
    assert read_config(write(max_position_embeddings=300)).max_len == 300
    assert read_config(write(), max_len=4096).max_len == 4096
    with pytest.raises(ConfigError, match="max_len = 9000: the model was made for 8192"):
        read_config(write(), max_len=9000)


@pytest.mark.parametrize(
    ("bos", "eos", "found"),
    [(1, 2, (1, 2)), (128000, [128001, 128009], (128000, 128001)), (None, 5, (5, 5)),
     (..., ..., (2, 2))],
)  # fmt: skip
def test_texts_begin_and_end_with_the_models_own_tokens(write, bos, eos, found):
    config = read_config(write(bos_token_id=bos, eos_token_id=eos, vocab_size=128256))
    assert (config.bos, config.eos) == found


def test_a_token_beyond_the_vocabulary_is_refused(write):
    with pytest.raises(ConfigError, match=r"model\.eos.*49152"):
        read_config(write(eos_token_id=49152))


def test_qwen3_has_norms_of_queries_and_heads_of_128_unless_it_says_otherwise(write):
    config = read_config(write(model_type="qwen3", use_sliding_window=False, sliding_window=4096))
    assert config.qk_norm and config.width_of_head == 128


@pytest.mark.parametrize("old", [True, False])
def test_rope_scaling_is_read_from_old_and_new_keys(write, old):
    if old:
        config = read_config(write(rope_scaling=LLAMA31, rope_theta=500000.0))
    else:
        new = LLAMA31 | {"rope_theta": 500000.0}
        config = read_config(write(rope_parameters=new, rope_theta=..., rope_scaling=...))
    assert config.rope_theta == 500000.0
    assert config.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"model_type": "gemma3"}, "model_type", "gemma3"),
        ({"model_type": ...}, "model_type", None),
        ({"attention_bias": True}, "attention_bias", True),
        ({"hidden_act": "gelu"}, "hidden_act", "gelu"),
        ({"quantization_config": {"bits": 4}}, "quantization_config", {"bits": 4}),
        ({"num_experts": 8}, "num_experts", 8),
        ({"layer_types": ["sliding_attention"]}, "layer_types", "sliding_attention"),
        ({"sliding_window": 128}, "sliding_window", 128),
        ({"layer_types": [None]}, "layer_types", None),
        ({"layer_types": 5}, "layer_types", 5),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings", "false"),
        ({"hidden_size": "576"}, "hidden_size", "576"),
        ({"vocab_size": ...}, "vocab_size", None),
        ({"architectures": [OTHER_HEAD]}, "architectures", OTHER_HEAD),
        ({"auto_map": {"AutoModel": "modeling_x.BiModel"}}, "auto_map", "AutoModel"),
    ],
)
def test_what_is_not_supported_is_one_line_that_names_the_key(write, changes, field, value):
    with pytest.raises(ConfigError) as error:
        read_config(write(**changes))
    assert error.value.field == f"config.json: {field}"
    assert error.value.value == value
    assert "\n" not in str(error.value)


def test_heads_of_keys_and_values_that_are_null_are_as_many_as_heads(write):
    """In Qwen3 a key that is left out means 32."""
    sizes = {"model_type": "qwen3", "num_attention_heads": 16, "num_key_value_heads": None}
    assert read_config(write(**sizes)).n_kv_heads == 16
    assert (
        read_config(
            write(**sizes | {"num_attention_heads": 64, "num_key_value_heads": ...})
        ).n_kv_heads
        == 32
    )


def test_what_only_a_reader_or_a_tokenizer_uses_is_passed_over(write):
    more = {"_attn_implementation_autoset": True, "tokenizer_class": "GPT2Tokenizer"}
    more["auto_map"] = {"AutoTokenizer": ["x.Words", None]}
    assert read_config(write(**more)) == read_config(write())


def refused(folder) -> tuple[str, object, str]:
    """Field and value of the error, and all that it says."""
    with pytest.raises(ConfigError) as error:
        read_config(folder)
    assert "\n" not in str(error.value)
    return error.value.field.removeprefix("config.json: "), error.value.value, str(error.value)


LINEAR = {"type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("scaling", "field", "value"),
    [
        ("linear", "rope_scaling", "linear"),
        ([], "rope_scaling", []),
        ({"rope_type": "yarn"}, "rope_scaling.rope_type", "yarn"),
        ({"type": ["linear"]}, "rope_scaling.type", ["linear"]),
        (LINEAR | {"rope_type": "default"}, "rope_scaling.type", "linear"),
        (LINEAR | {"factor": 0}, "rope_scaling.factor", 0),
        (LINEAR | {"factor": -2}, "rope_scaling.factor", -2),
        (LINEAR | {"factor": "4"}, "rope_scaling.factor", "4"),
        (LINEAR | {"factor": True}, "rope_scaling.factor", True),
        (LINEAR | {"rope_theta": None}, "rope_scaling.rope_theta", None),
        (LLAMA31 | {"low_freq_factor": 0}, "rope_scaling.low_freq_factor", 0),
        (LLAMA31 | {"high_freq_factor": 1.0}, "rope_scaling.high_freq_factor", 1.0),
        (
            LLAMA31 | {"original_max_position_embeddings": 0},
            "rope_scaling.original_max_position_embeddings",
            0,
        ),
        (LLAMA31 | {"partial_rotary_factor": 0.5}, "rope_scaling.partial_rotary_factor", 0.5),
        (LINEAR | {"low_freq_factor": 1.0}, "rope_scaling.low_freq_factor", 1.0),
        ({"full_attention": LINEAR}, "rope_scaling.full_attention", LINEAR),
    ],
)
def test_a_scaling_that_cannot_work_or_is_not_known_is_refused_by_its_key(
    write, scaling, field, value
):
    new = {"rope_parameters": scaling, "rope_scaling": ..., "rope_theta": ...}
    assert refused(write(rope_scaling=scaling))[:2] == (field, value)
    assert refused(write(**new))[:2] == (field.replace("scaling", "parameters"), value)


@pytest.mark.parametrize(
    ("scaling", "missing"),
    [
        ({"type": "linear"}, "factor"),
        *(({k: v for k, v in LLAMA31.items() if k != name}, name) for name in [*LLAMA31][:4]),
    ],
)
def test_a_number_that_a_scaling_needs_is_said_to_be_missing(write, scaling, missing):
    field, value, said = refused(write(rope_scaling=scaling))
    assert (field, value) == (f"rope_scaling.{missing}", None) and "is missing" in said


@pytest.mark.parametrize("theta", [None, "abc", 0, -1e4, math.nan, True])
def test_a_base_of_the_frequencies_that_is_no_number_above_zero_is_refused(write, theta):
    field, _, said = refused(write(rope_theta=theta))
    assert field == "rope_theta" and "must be a number above 0" in said


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rope_parameters": LLAMA31, "rope_scaling": LLAMA31 | {"factor": 32.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": LLAMA31}, "rope_scaling"),
        ({"rope_parameters": {"rope_theta": 5e5}}, "rope_theta"),
    ],
)
def test_old_and_new_keys_that_contradict_each_other_are_refused(write, changes, field):
    found, _, said = refused(write(**changes))
    assert found == field and "contradicts config.json: rope_parameters" in said


def test_old_and_new_keys_that_agree_are_read_as_one(write):
    new = LLAMA31 | {"rope_theta": 5e5}
    both = {"rope_parameters": new, "rope_scaling": LLAMA31 | {"type": "llama3"}}
    config = read_config(write(**both, rope_theta=500000))
    assert (config.rope_theta, config.rope_scaling.factor) == (5e5, 8.0)


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_config(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_config(tmp_path)


def test_llama3_stretches_slow_pairs_keeps_fast_ones_and_blends_between():
    scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, 64)
    plain = np.asarray(frequencies(32, 1e4, RopeScaling()), np.float64)
    scaled = np.asarray(frequencies(32, 1e4, scaling), np.float64)
    turns = 64 * plain / (2 * math.pi)
    fast, slow = turns >= 4, turns <= 1
    assert fast.any() and slow.any() and (~fast & ~slow).any()
    np.testing.assert_allclose(scaled[fast], plain[fast], rtol=1e-6)
    np.testing.assert_allclose(scaled[slow], plain[slow] / 8, rtol=1e-6)
    between = scaled[~fast & ~slow] / plain[~fast & ~slow]
    assert ((between > 1 / 8) & (between < 1)).all() and (np.diff(between) < 0).all()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"kind": "yarn"}, "kind"),
        ({"factor": 0.0}, "factor"),
        ({"high_freq_factor": 1.0}, "high_freq_factor"),
        ({"original_len": 0}, "original_len"),
    ],
)
def test_a_scaling_that_cannot_work_is_refused(changes, field):
    with pytest.raises(ConfigError) as error:
        RopeScaling(**changes).check("rope")
    assert error.value.field == f"rope.{field}"
