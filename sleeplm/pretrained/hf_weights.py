"""From the safetensors of a Hugging Face folder to parameters, straight into their layout.

Each parameter is read piece by piece as its sharding asks for it: a device's share of the layers'
stacked matrices is assembled from the slices of the files that it needs, one parameter after the
other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import safetensors

from sleeplm.core.errors import ConfigError
from sleeplm.core.types import Params, PyTree
from sleeplm.models.config import ModelConfig
from sleeplm.models.transformer import Model

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a parameter comes from.

    Attributes:
      name: tensor in the files; with ``{}`` for the layer's number, one tensor a layer, which are
        stacked.
      transposed: kernels are [in, out] here and [out, in] there.
    """

    name: str
    transposed: bool = False

    @property
    def stacked(self) -> bool:
        return "{}" in self.name


def sources(config: ModelConfig) -> PyTree:
    """A :class:`Source` for every parameter of an imported backbone, as a tree like them."""
    layer = "model.layers.{}."

    def kernel(name: str) -> dict[str, Source]:
        return {"kernel": Source(f"{layer}{name}.weight", transposed=True)}

    def scale(name: str) -> dict[str, Source]:
        return {"scale": Source(f"{layer}{name}.weight")}

    attention: dict[str, Any] = {name: kernel(f"self_attn.{name}_proj") for name in "qkvo"}
    if config.qk_norm:
        attention |= {f"{name}_norm": scale(f"self_attn.{name}_norm") for name in "qk"}
    (mlp,) = config.levels
    level = {
        "norm": scale("post_attention_layernorm"),
        "base": {name: kernel(f"mlp.{name}_proj") for name in ("gate", "up", "down")},
    }
    tree: dict[str, Any] = {
        "embed": Source("model.embed_tokens.weight"),
        "blocks": {
            "attn_norm": scale("input_layernorm"),
            "attn": attention,
            "levels": {mlp.name: level},
        },
        "final_norm": Source("model.norm.weight"),
    }
    if not config.tie_embeddings:
        tree["unembed"] = Source("lm_head.weight", transposed=True)
    return tree


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that the files must hold, by name, with its shape there."""
    shapes = jax.eval_shape(Model(config).init, jax.random.key(0))
    out: dict[str, tuple[int, ...]] = {}
    for source, shape in zip(
        jax.tree.leaves(sources(config)), jax.tree.leaves(shapes), strict=True
    ):
        one = shape.shape[1:] if source.stacked else shape.shape
        one = one[::-1] if source.transposed else one
        layers = range(config.n_layers) if source.stacked else range(1)
        out |= {source.name.format(i): one for i in layers}
    return out


def load_params(
    folder: str | pathlib.Path, config: ModelConfig, shardings: PyTree | None = None
) -> Params:
    """The folder's weights as parameters of :class:`~sleeplm.models.transformer.Model`.

    Args:
      folder: with ``model.safetensors``, or shards and their index.
      config: of :func:`~sleeplm.pretrained.hf_config.read_config`; ``param_dtype`` says the type.
      shardings: one sharding for all parameters, or a tree of them; None: the default device.

    Raises:
      ConfigError: a tensor is missing, left over, or has another shape than the configuration says.
    """
    shapes = jax.eval_shape(Model(config).init, jax.random.key(0))
    with open_folder(folder) as tensors:
        _check(config, tensors)
        if shardings is None:
            shardings = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        if isinstance(shardings, jax.sharding.Sharding):
            shardings = jax.tree.map(lambda _: shardings, shapes)

        def load(source: Source, shape: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array:
            def piece(index: tuple[slice, ...] | None) -> np.ndarray:
                assert index is not None  # parameters have at least one axis
                return _piece(tensors, source, shape, index)

            return jax.make_array_from_callback(shape.shape, sharding, piece)

        return jax.tree.map(load, sources(config), shapes, shardings)


@contextlib.contextmanager
def open_folder(folder: str | pathlib.Path) -> Iterator[Mapping[str, Any]]:
    """Every tensor of a folder's safetensors by name, as a slice that is read when indexed.

    Raises:
      ConfigError: no such files, or one that is cut off or no safetensors.
    """
    root = pathlib.Path(folder).expanduser()
    with contextlib.ExitStack() as stack:
        tensors: dict[str, Any] = {}
        for path in weight_files(root):
            try:
                file = stack.enter_context(safetensors.safe_open(path, framework="np"))
            except (OSError, safetensors.SafetensorError) as error:
                raise ConfigError(str(path), path.name, f"cannot be read: {error}") from None
            tensors |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        yield tensors


def weight_files(root: pathlib.Path) -> list[pathlib.Path]:
    """The safetensors of a folder: what its index names, or the one file.

    Raises:
      ConfigError: the index cannot be read.
    """
    index = root / INDEX
    if not index.exists():
        return [root / SINGLE]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(str(index), INDEX, f"is no index of safetensors ({error})") from None
    return [root / name for name in names]


def _check(config: ModelConfig, tensors: Mapping[str, Any]) -> None:
    """Names and shapes agree with the configuration, and nothing is left over."""
    expected = tensor_shapes(config)
    for name, shape in expected.items():
        if name not in tensors:
            raise ConfigError(f"tensor {name}", None, f"is missing, must be {list(shape)}")
        found = tuple(tensors[name].get_shape())
        if found != shape:
            remedy = f"config.json says {list(shape)}"
            raise ConfigError(f"shape of {name}", list(found), remedy)
    left = sorted(name for name in tensors if name not in expected and not _may_stay(config, name))
    if left:
        raise ConfigError(f"tensor {left[0]}", "left over", "this architecture has no such tensor")


def _may_stay(config: ModelConfig, name: str) -> bool:
    """Buffers of old exports, and a written-out copy of tied embeddings."""
    tied = config.tie_embeddings and name == "lm_head.weight"
    return tied or name.endswith("rotary_emb.inv_freq")


def _piece(
    tensors: Mapping[str, Any],
    source: Source,
    shape: jax.ShapeDtypeStruct,
    index: tuple[slice, ...],
) -> np.ndarray:
    """The part ``index`` of a parameter, read from as little of the files as it needs."""
    if not source.stacked:
        return _read(tensors[source.name], source, index, shape.dtype)
    layers = range(*index[0].indices(shape.shape[0]))
    sizes = [len(range(*s.indices(n))) for s, n in zip(index, shape.shape, strict=True)]
    out = np.empty(sizes, shape.dtype)
    for place, layer in enumerate(layers):
        out[place] = _read(tensors[source.name.format(layer)], source, index[1:], shape.dtype)
    return out


def _read(tensor: Any, source: Source, index: tuple[slice, ...], dtype: Any) -> np.ndarray:
    found = tensor[index[::-1] if source.transposed else index]
    found = found.T if source.transposed else found
    return np.asarray(found, dtype)
