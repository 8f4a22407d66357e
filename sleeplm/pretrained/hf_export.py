"""From a configuration and parameters back to a Hugging Face folder that others load.

The inverse of :mod:`sleeplm.pretrained.hf_config` and :mod:`sleeplm.pretrained.hf_weights`: what
is written here is read there to the same bits. Memory levels stay behind: what is written is the
backbone that they are grafted onto, the *base*.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError
from sleeplm.core.types import Params
from sleeplm.models.config import DTYPES, ModelConfig
from sleeplm.models.graft import backbone_config, backbone_of
from sleeplm.pretrained.hf_config import CONFIG, IGNORED, PROGRAM, model_config, read_raw
from sleeplm.pretrained.hf_files import SINGLE, open_folder
from sleeplm.pretrained.hf_replace import replace_model
from sleeplm.pretrained.hf_weights import Source, sources
from sleeplm.pretrained.lossless import as_stored, cast
from sleeplm.pretrained.tensor_files import Tensor, digest_of

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
SHARD_BYTES = 4_000_000_000
#: Files of a published model that are not its weights, copied where they exist.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
#: Keys of a ``config.json`` that are about a file or a reader, not about the model.
#: Keys that a run chooses for itself: a folder's own are handed on, or that it has none.
ITS_OWN = ("max_position_embeddings", "bos_token_id", "eos_token_id")
_NOT_THE_MODEL = ("torch_dtype", *ITS_OWN)


def base_config(config: ModelConfig) -> ModelConfig:
    """The backbone under a model's memory levels, with its one MLP.

    Raises:
      ConfigError: it has several, which no family of Hugging Face has.
    """
    plain = backbone_config(config)
    names = [level.name for level in plain.levels]
    remedy = "only models with one level of kind 'replace' are a Llama or a Qwen3 underneath"
    checks.require(len(names) == 1, "model.levels", names, remedy)
    return plain


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """The content of ``config.json`` for the backbone of a model.

    Raises:
      ConfigError: see :func:`base_config`.
    """
    plain = base_config(config)
    family = "qwen3" if plain.qk_norm else "llama"
    biases = {"attention_bias": False} | ({"mlp_bias": False} if family == "llama" else {})
    return {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": plain.vocab_size,
        "bos_token_id": plain.bos,
        "eos_token_id": plain.eos,
        "hidden_size": plain.d_model,
        "intermediate_size": plain.levels[0].width,
        "num_hidden_layers": plain.n_layers,
        "num_attention_heads": plain.n_heads,
        "num_key_value_heads": plain.n_kv_heads,
        "head_dim": plain.width_of_head,
        "hidden_act": "silu",
        "max_position_embeddings": plain.max_len,
        "rms_norm_eps": plain.norm_eps,
        # The older pair of keys: every reader knows it.
        "rope_theta": plain.rope_theta,
        "rope_scaling": _scaling(plain),
        "tie_word_embeddings": plain.tie_embeddings,
        "torch_dtype": plain.param_dtype,
        **biases,
    }


def _scaling(config: ModelConfig) -> dict[str, Any] | None:
    scaling = config.rope_scaling
    if scaling.kind == "none":
        return None
    out = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        out |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_len,
        }
    return out


def base_tensors(config: ModelConfig, params: Params) -> list[Tensor]:
    """Every tensor of a model's backbone, under the names and in the layout of the files.

    Args:
      params: of a model of ``config``, memory levels included.
    """
    plain = base_config(config)
    backbone = backbone_of(params, config)
    pairs = zip(jax.tree.leaves(sources(plain)), jax.tree.leaves(backbone), strict=True)
    return [tensor for source, leaf in pairs for tensor in _tensors(source, leaf)]


def _tensors(source: Source, leaf: Any) -> Iterator[Tensor]:
    def tensor(name: str, shape: tuple[int, ...], layer: int | None) -> Tensor:
        def read() -> np.ndarray:
            found = np.asarray(leaf if layer is None else leaf[layer])
            return found.T if source.transposed else found

        return Tensor(name, np.dtype(leaf.dtype), shape[::-1] if source.transposed else shape, read)

    if not source.stacked:
        yield tensor(source.name, leaf.shape, None)
        return
    for layer in range(leaf.shape[0]):
        yield tensor(source.name.format(layer), leaf.shape[1:], layer)


def base_digest(config: ModelConfig, params: Params) -> str:
    """sha256 (hex) over the backbone's tensors, named and laid out as in the files, one at a time.

    Types count: a model in bfloat16 is another base than the same in float32. In which types the
    files hold them does not: they are read into those of the parameters.
    """
    return digest_of(base_tensors(config, params))


def save_backbone(
    folder: pathlib.Path,
    config: ModelConfig,
    params: Params,
    *,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    keys: Mapping[str, Any] | None = None,
    source: str | pathlib.Path | None = None,
) -> None:
    """Writes ``config.json`` and the weights of a model's backbone into an existing folder.

    A model that it holds already is replaced, see
    :func:`~sleeplm.pretrained.hf_replace.replace_model`.

    Args:
      params: of a model of ``config``, memory levels included; they are left out.
      dtype: type of the tensors in the files; None: so that nothing is rounded. They are as in the
        files of ``source``, if all of them fit into the types that they have there, or else as they
        are.
      shard_bytes: weights beyond it go into several files and an index.
      keys: more keys of ``config.json``, such as ``bos_token_id``.
      source: the Hugging Face folder that the backbone came from: its tokenizer files, in place of
        all that are there, and the keys of its ``config.json`` that are not about numbers here, are
        taken over. None: tokenizer files that are there stay, those of an earlier model too.

    Raises:
      ConfigError: the model is none of the families, or not that of ``source``.
    """
    checks.one_of("dtype", dtype or config.param_dtype, DTYPES)
    checks.positive_integer("shard_bytes", shard_bytes)
    content = hf_config(config) | dict(keys or {})
    tensors, said = base_tensors(config, params), None
    others: dict[str, pathlib.Path | None] = {}
    if source is not None:
        source = pathlib.Path(source).expanduser()
        raw = read_raw(source)
        content = {k: v for k, v in content.items() if k in raw or k not in ITS_OWN}
        content |= _taken_over(source, raw, config)
        said = raw.get("torch_dtype", raw.get("dtype"))
        if dtype is None:
            tensors = as_stored(tensors, _stored_types(source))
        others = _tokenizer_files(source, folder)
    if dtype is not None:
        tensors = [cast(tensor, dtype) for tensor in tensors]
    content["torch_dtype"] = _type_of(tensors, said)
    replace_model(folder, _shards(tensors, shard_bytes), content, others)


def _stored_types(source: pathlib.Path) -> dict[str, str]:
    """Types of the tensors in a folder; of one whose weights cannot be read, none are known."""
    try:
        with open_folder(source) as tensors:
            return {name: tensor.dtype for name, tensor in tensors.items()}
    except ConfigError:
        return {}


def _type_of(tensors: Sequence[Tensor], said: Any) -> str:
    """What ``config.json`` says of the types: as before, if some are, else the widest."""
    widths = {tensor.dtype.name: tensor.dtype.itemsize for tensor in tensors}
    known = isinstance(said, str) and said in widths
    return said if known else max(widths, key=lambda name: widths[name])


def _shards(tensors: Sequence[Tensor], limit: int) -> dict[str, list[Tensor]]:
    """Files by name, in the order of the layers; a tensor above the limit has one for itself."""
    parts: list[list[Tensor]] = [[]]
    size = 0
    for tensor in sorted(tensors, key=_place):
        if parts[-1] and size + tensor.nbytes > limit:
            parts.append([])
            size = 0
        parts[-1].append(tensor)
        size += tensor.nbytes
    if len(parts) == 1:
        return {SINGLE: parts[0]}
    return {f"model-{i:05}-of-{len(parts):05}.safetensors": p for i, p in enumerate(parts, 1)}


def _place(tensor: Tensor) -> tuple[int, str]:
    words = tensor.name.split(".")
    return (int(words[2]) if words[1] == "layers" else -1, tensor.name)


def require_same_backbone(found: ModelConfig, wanted: ModelConfig, field: str) -> None:
    """Refuses a backbone of other sizes or settings, naming the first that differs.

    Numbers are the same if they are as float32, which is what models compute with: GGUF files and
    what was recorded of them have 9.99999974e-06 for the 1e-5 of a folder.

    Raises:
      ConfigError: with the key of ``config.json``, what is there and what was asked for.
    """
    there, asked = hf_config(found), hf_config(wanted)
    for key in asked:
        same = _as_computed(there.get(key)) == _as_computed(asked[key])
        if key not in _NOT_THE_MODEL and not same:
            raise ConfigError(f"{field}: {key}", there.get(key), f"must be {asked[key]!r}")


def _as_computed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_computed(one) for name, one in value.items()}
    with np.errstate(over="ignore"):
        return np.float32(value) if isinstance(value, float) else value


def _taken_over(
    source: pathlib.Path, raw: Mapping[str, Any], config: ModelConfig
) -> dict[str, Any]:
    found = dataclasses.replace(model_config(raw), param_dtype=config.param_dtype)
    require_same_backbone(found, config, str(source / CONFIG))
    kept = {*ITS_OWN, *PROGRAM, *IGNORED}
    kept -= {"dtype", "torch_dtype"}
    return {key: value for key, value in raw.items() if key in kept}


def _tokenizer_files(source: pathlib.Path, folder: pathlib.Path) -> dict[str, pathlib.Path | None]:
    """Where each file of the tokenizer comes from; None: the source has none."""
    if source.resolve() == folder.resolve():
        return {}
    return {n: source / n if (source / n).is_file() else None for n in TOKENIZER_FILES}
