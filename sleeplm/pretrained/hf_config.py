"""From the ``config.json`` of a Hugging Face folder to a :class:`ModelConfig`.

Families: ``llama`` (Llama 2 and 3.x, SmolLM2) and ``qwen3``. Every key is looked at: one that asks
for something this model cannot do, or that nobody here knows, is an error that names it.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError
from sleeplm.memory.levels import LevelConfig
from sleeplm.models.config import ModelConfig
from sleeplm.pretrained.hf_rope import read_rope
from sleeplm.pretrained.json_files import read_object

CONFIG = "config.json"
FAMILIES = ("llama", "qwen3")
MLP = "mlp"  # the level that an imported block's own MLP becomes


def keys_of(text: str) -> frozenset[str]:
    """Names of keys, written in one string."""
    return frozenset(text.split())


#: Keys that change nothing of what the model computes here.
IGNORED = keys_of("""
    pad_token_id cls_token_id sep_token_id
    dtype torch_dtype transformers_version transformers.js_config use_cache initializer_range
    is_llama_config max_window_layers pretraining_tp name_or_path _name_or_path id2label label2id
    return_dict output_attentions output_hidden_states chunk_size_feed_forward problem_type
    unsloth_fixed unsloth_version is_decoder tokenizer_class _attn_implementation_autoset
""")
#: Keys that must have one of these values.
FIXED: Mapping[str, tuple] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "attention_dropout": (0, 0.0),
    "rope_interleaved": (False,),
    "use_sliding_window": (False,),
    "is_encoder_decoder": (False,),
    "tie_encoder_decoder": (False,),
    "add_cross_attention": (False,),
}
SIZES = keys_of("""
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
""")
USED = SIZES | keys_of("""
    model_type num_key_value_heads head_dim max_position_embeddings rms_norm_eps rope_theta
    rope_scaling rope_parameters tie_word_embeddings layer_types sliding_window
    bos_token_id eos_token_id
""")
#: Keys that say which program the weights are for: those of other programs are refused.
PROGRAM = keys_of("architectures auto_map")
#: What ``transformers`` takes for keys that are left out.
DEFAULT_HEAD = {"llama": 0, "qwen3": 128}
DEFAULT_KV_HEADS = {"llama": 0, "qwen3": 32}


def read_config(
    folder: str | pathlib.Path,
    *,
    max_len: int | None = None,
    dtype: str = "float32",
    param_dtype: str = "float32",
) -> ModelConfig:
    """The backbone that a Hugging Face folder describes; its MLP is the one level, ``mlp``.

    Args:
      folder: with ``config.json``.
      max_len: see :class:`~sleeplm.models.config.ModelConfig`; None: what the model was made for,
        and 1024 at most.
      dtype, param_dtype: types of activations and of parameters.

    Raises:
      ConfigError: the file cannot be read, or asks for something that is not supported.
    """
    raw = read_raw(folder)
    config = model_config(raw)
    return with_context(config, made_for(raw), max_len, dtype, param_dtype)


def made_for(raw: Mapping[str, Any]) -> int:
    """The longest sequence, in tokens, that a parsed ``config.json`` says its model is made for."""
    longest = raw.get("max_position_embeddings", 2048)
    checks.positive_integer(f"{CONFIG}: max_position_embeddings", longest)
    return longest


def read_raw(folder: str | pathlib.Path) -> dict[str, Any]:
    """The parsed ``config.json`` of a folder.

    Raises:
      ConfigError: there is none, or it is no JSON object.
    """
    path = pathlib.Path(folder).expanduser() / CONFIG
    return read_object(path, "model", "name a folder with the model's config.json")


def with_context(
    config: ModelConfig, longest: int, max_len: int | None, dtype: str, param_dtype: str
) -> ModelConfig:
    """``config`` with what its reader chooses; ``longest`` is what the model was made for.

    Raises:
      ConfigError: it is asked for more, or the configuration cannot work.
    """
    if max_len is None:
        max_len = min(longest, 1024)
    checks.require(max_len <= longest, "max_len", max_len, f"the model was made for {longest}")
    config = dataclasses.replace(config, max_len=max_len, dtype=dtype, param_dtype=param_dtype)
    config.check("model")
    return config


def model_config(raw: Mapping[str, Any]) -> ModelConfig:
    """The configuration that a parsed ``config.json`` describes."""
    family = raw.get("model_type")
    checks.one_of(f"{CONFIG}: model_type", family, FAMILIES)
    assert isinstance(family, str)
    for key, value in raw.items():
        _check_key(key, value)
    for key in sorted(SIZES):
        checks.positive_integer(f"{CONFIG}: {key}", raw.get(key))
    tied = raw.get("tie_word_embeddings")
    remedy = "must be true or false"
    checks.require(tied in (None, True, False), f"{CONFIG}: tie_word_embeddings", tied, remedy)
    _check_code(raw)
    _check_layers(raw)
    theta, scaling = read_rope(raw, CONFIG)
    heads = raw["num_attention_heads"]
    mlp = LevelConfig(name=MLP, kind="replace", width=raw["intermediate_size"])
    bos, eos = text_ends(raw.get("bos_token_id"), raw.get("eos_token_id"))
    return ModelConfig(
        vocab_size=raw["vocab_size"],
        bos=bos,
        eos=eos,
        d_model=raw["hidden_size"],
        n_layers=raw["num_hidden_layers"],
        n_heads=heads,
        # As its library has it: a key that says null is not one that is left out.
        n_kv_heads=raw.get("num_key_value_heads", DEFAULT_KV_HEADS[family]) or heads,
        head_dim=raw.get("head_dim") or DEFAULT_HEAD[family],
        levels=[mlp],
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        tie_embeddings=bool(tied),
        qk_norm=family == "qwen3",
    )


def text_ends(bos: Any, eos: Any) -> tuple[int, int]:
    """Ids of the tokens that begin and end a text, as a file gives them.

    Of several ends the first is taken. A model without a beginning (Qwen3) has texts begin with
    what ends them, as its makers pack them. Without either, ours.
    """
    eos = eos[0] if isinstance(eos, list) and eos else eos
    eos = ModelConfig.eos if eos is None else eos
    return (eos if bos is None else bos), eos


def _check_key(key: str, value: Any) -> None:
    if key in USED | PROGRAM | IGNORED or value is None:
        return
    if key in FIXED:
        remedy = f"only {' or '.join(json.dumps(v) for v in FIXED[key])} is supported"
        checks.require(value in FIXED[key], f"{CONFIG}: {key}", value, remedy)
        return
    raise ConfigError(f"{CONFIG}: {key}", value, "is not supported: no such key is known here")


def _check_code(raw: Mapping[str, Any]) -> None:
    """Another head or code of its own would compute something else from the same weights."""
    remedy = "must name causal language models"
    for name in raw.get("architectures") or []:
        known = isinstance(name, str) and name.endswith(("ForCausalLM", "Model"))
        checks.require(known, f"{CONFIG}: architectures", name, remedy)
    own = raw.get("auto_map") or {}
    for name in own if isinstance(own, dict) else [own]:
        remedy = "is a model with code of its own, which is not run"
        foreign = str(name).startswith("AutoModel")
        checks.require(not foreign, f"{CONFIG}: auto_map", name, remedy)


def _check_layers(raw: Mapping[str, Any]) -> None:
    kinds = raw.get("layer_types")
    kinds = [] if kinds is None else kinds
    remedy = "must be a list of kinds of layers"
    checks.require(isinstance(kinds, list), f"{CONFIG}: layer_types", kinds, remedy)
    for kind in kinds:
        remedy = "only full_attention is supported"
        checks.require(kind == "full_attention", f"{CONFIG}: layer_types", kind, remedy)
    # Qwen3 writes a window that it uses only if use_sliding_window says so, which is refused.
    window = raw.get("sliding_window")
    unused = window is None or raw.get("use_sliding_window") is False
    checks.require(unused, f"{CONFIG}: sliding_window", window, "attention windows are unsupported")
