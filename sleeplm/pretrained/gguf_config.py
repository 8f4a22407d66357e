"""From the metadata of a GGUF file to a :class:`ModelConfig`.

Architectures: ``llama`` (Llama 2 and 3.x, SmolLM2) and ``qwen3``. Every key under the name of the
architecture is looked at, as are those which say what kind of file it is; the tokenizer's keys
belong to :mod:`sleeplm.pretrained.gguf_tokenizer`. Other names are their publishers' and say
nothing of what a model computes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError
from sleeplm.memory.levels import LevelConfig
from sleeplm.models.config import ModelConfig
from sleeplm.models.rope import RopeScaling, frequencies
from sleeplm.pretrained.gguf_file import GgufFile
from sleeplm.pretrained.hf_config import (
    FAMILIES,
    MLP,
    keys_of,
    text_ends,
    with_context,
)
from sleeplm.pretrained.hf_rope import DEFAULT_THETA

EMBED, UNEMBED, FREQUENCIES = "token_embd.weight", "output.weight", "rope_freqs.weight"


SIZES = keys_of("embedding_length feed_forward_length block_count attention.head_count")
#: Keys under the architecture's name that are read, or that change nothing here.
USED = SIZES | keys_of("""
    context_length vocab_size attention.head_count_kv attention.key_length attention.value_length
    attention.layer_norm_rms_epsilon rope.freq_base rope.dimension_count rope.scaling.type
    rope.scaling.factor rope.scaling.original_context_length rope.scaling.finetuned
""")
#: Keys that must have one of these values, if they are there.
FIXED: Mapping[str, tuple] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "use_parallel_residual": (False,),
}
FIXED_ELSEWHERE: Mapping[str, tuple] = {
    "general.type": ("model",),
    "general.quantization_version": (2,),
    "split.count": (0, 1),
}
#: What Llama 3.1 and later were stretched with; a file holds the result only, one factor a pair.
LLAMA3 = RopeScaling("llama3", 1.0, low_freq_factor=1.0, high_freq_factor=4.0, original_len=8192)


def gguf_config(
    file: GgufFile,
    *,
    max_len: int | None = None,
    dtype: str = "float32",
    param_dtype: str = "float32",
) -> ModelConfig:
    """The backbone that a GGUF file describes; its MLP is the one level, ``mlp``.

    Args:
      file: of :func:`~sleeplm.pretrained.gguf_file.read_gguf`.
      max_len, dtype, param_dtype: see :func:`~sleeplm.pretrained.hf_config.read_config`.

    Raises:
      ConfigError: the file asks for something that is not supported; it names the key.
    """
    arch = file.metadata.get("general.architecture")
    checks.one_of("GGUF: general.architecture", arch, FAMILIES)
    for key, value in file.metadata.items():
        _check_key(str(arch), key, value)
    checks.require(EMBED in file.tensors, f"tensor {EMBED}", None, "is missing")
    given = {k.removeprefix(f"{arch}."): v for k, v in file.metadata.items()}
    given.setdefault("attention.head_count_kv", given.get("attention.head_count"))
    given.setdefault("vocab_size", file.tensors[EMBED].shape[0])
    for key in [*sorted(SIZES), "attention.head_count_kv", "vocab_size", "context_length"]:
        checks.positive_integer(f"GGUF: {arch}.{key}", given.get(key))
    heads, epsilon = given["attention.head_count"], given.get("attention.layer_norm_rms_epsilon", 0)
    checks.positive(f"GGUF: {arch}.attention.layer_norm_rms_epsilon", epsilon)
    width = given.get("attention.key_length") or given["embedding_length"] // heads
    for key in ("attention.value_length", "rope.dimension_count"):
        remedy = f"must be the width of a head, {width}"
        checks.require(
            given.get(key, width) == width, f"GGUF: {arch}.{key}", given.get(key), remedy
        )
    theta = given.get("rope.freq_base", DEFAULT_THETA)
    checks.positive(f"GGUF: {arch}.rope.freq_base", theta)
    theta = shortest(theta)
    ends = (file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    bos, eos = text_ends(*ends)
    config = ModelConfig(
        vocab_size=given["vocab_size"],
        bos=int(bos),
        eos=int(eos),
        d_model=given["embedding_length"],
        n_layers=given["block_count"],
        n_heads=heads,
        n_kv_heads=given["attention.head_count_kv"],
        head_dim=width,
        levels=[LevelConfig(name=MLP, kind="replace", width=given["feed_forward_length"])],
        rope_theta=theta,
        rope_scaling=_scaling(file, f"GGUF: {arch}.", given, width, theta),
        norm_eps=shortest(epsilon),
        tie_embeddings=UNEMBED not in file.tensors,
        qk_norm=arch == "qwen3",
    )
    return with_context(config, context_length(file), max_len, dtype, param_dtype)


def context_length(file: GgufFile) -> int:
    """The longest sequence, in tokens, that a GGUF file says its model is made for."""
    return file.metadata[f"{file.metadata['general.architecture']}.context_length"]


def shortest(number: float) -> float:
    """The decimal number that a float32 was made of: 1e-5, where 9.99999974e-06 is stored.

    So that a model's settings are those of its Hugging Face folder. A number that is no float32
    stays as it is.
    """
    with np.errstate(over="ignore"):
        rounded = np.float32(number)
    return float(str(rounded)) if float(rounded) == number else float(number)


def _check_key(arch: str, key: str, value: Any) -> None:
    here = key.removeprefix(f"{arch}.")
    allowed = FIXED_ELSEWHERE.get(key) if here == key else FIXED.get(here)
    if allowed is not None:
        remedy = f"only {' or '.join(str(v) for v in allowed)} is supported"
        checks.require(value in allowed, f"GGUF: {key}", value, remedy)
    elif here != key and here not in USED:
        raise ConfigError(f"GGUF: {key}", value, "is not supported: no such key is known here")


def _scaling(
    file: GgufFile, field: str, given: Mapping[str, Any], width: int, theta: float
) -> RopeScaling:
    # A factor without a type is linear, as for llama.cpp.
    kind = given.get("rope.scaling.type", "linear" if "rope.scaling.factor" in given else "none")
    checks.one_of(f"{field}rope.scaling.type", kind, ("none", "linear"))
    if kind == "linear":
        remedy = "is not supported beside linear scaling: one of them must go"
        checks.require(FREQUENCIES not in file.tensors, f"tensor {FREQUENCIES}", kind, remedy)
        factor = given.get("rope.scaling.factor", 0)
        checks.positive(f"{field}rope.scaling.factor", factor)
        return RopeScaling("linear", shortest(factor))
    if FREQUENCIES not in file.tensors:
        return RopeScaling()
    factors = file.tensors[FREQUENCIES][(slice(None),)]
    scaling = dataclasses.replace(LLAMA3, factor=shortest(factors.max()))
    plain, scaled = (np.asarray(frequencies(width, theta, s)) for s in (RopeScaling(), scaling))
    same = factors.shape == plain.shape and np.allclose(plain / factors, scaled, rtol=1e-4)
    remedy = "only the rotary scaling of Llama 3.1 and later is supported"
    checks.require(same, f"tensor {FREQUENCIES}", factors.round(3).tolist(), remedy)
    return scaling
