"""From the safetensors of a Hugging Face folder to parameters, straight into their layout.

Each parameter is read piece by piece as its sharding asks for it: a device's share of the layers'
stacked matrices is assembled from the slices of the files that it needs, one parameter after the
other. What an import holds beyond the parameters is a few :data:`CHUNK` (``tests/pretrained/
test_memory.py``).
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError
from sleeplm.core.types import Params, PyTree
from sleeplm.models.config import ModelConfig
from sleeplm.models.transformer import Model
from sleeplm.pretrained.hf_files import StoredTensor, open_folder, require_float

HEAD = "lm_head.weight"
CHUNK = 1 << 18  # numbers that are read at once
ALIGNMENT = 64  # a CPU device takes a buffer over as it is only from such addresses


class Tensor(Protocol):
    """A tensor in a file: its shape, and any part of it, read when it is indexed."""

    def get_shape(self) -> Sequence[int]: ...

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray: ...


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
        tree["unembed"] = Source(HEAD, transposed=True)
    return tree


def tensor_shapes(config: ModelConfig, tree: PyTree | None = None) -> dict[str, tuple[int, ...]]:
    """Every tensor that the files must hold, by its name in ``tree``, with its shape there."""
    shapes = _parameters(config)
    tree = sources(config) if tree is None else tree
    out: dict[str, tuple[int, ...]] = {}
    for source, shape in zip(jax.tree.leaves(tree), jax.tree.leaves(shapes), strict=True):
        one = shape.shape[1:] if source.stacked else shape.shape
        one = one[::-1] if source.transposed else one
        layers = range(config.n_layers) if source.stacked else range(1)
        out |= {source.name.format(i): one for i in layers}
    return out


def _parameters(config: ModelConfig) -> PyTree:
    """Shape and type of every parameter; nothing is computed, not even a key."""
    return jax.eval_shape(lambda: Model(config).init(jax.random.key(0)))


def load_params(
    folder: str | pathlib.Path,
    config: ModelConfig,
    shardings: PyTree | None = None,
    learners: int | None = None,
) -> Params:
    """The folder's weights as parameters of :class:`~sleeplm.models.transformer.Model`.

    Args:
      folder: with ``model.safetensors``, or shards and their index.
      config: of :func:`~sleeplm.pretrained.hf_config.read_config`; ``param_dtype`` says the type.
      shardings: one sharding for all parameters, or a tree of them; None: the default device.
      learners: E, to have the same parameters so many times, in front of every array; None: once,
        without that axis.

    Raises:
      ConfigError: a tensor is missing, left over, no float, or has another shape than the
        configuration says.
    """
    with open_folder(folder) as tensors:
        tree = sources(config)
        kept = {name: tensors[name] for name in tensors if not _may_stay(config, name)}
        for tensor in kept.values():
            require_float(tensor)
        if config.tie_embeddings:
            _check_tied(tensors)
        check_tensors(kept, config, tree, "config.json says")
        return assemble(kept, config, tree, shardings, learners)


def assemble(
    tensors: Mapping[str, Tensor],
    config: ModelConfig,
    tree: PyTree,
    shardings: PyTree | None = None,
    learners: int | None = None,
) -> Params:
    """Parameters from tensors that were found to be complete.

    Args:
      tensors: by the names in ``tree``.
      config: ``param_dtype`` says the type.
      tree: the :class:`Source` of every parameter, see :func:`sources`.
      shardings, learners: as in :func:`load_params`.
    """
    shapes = _parameters(config)
    if shardings is None:
        shardings = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)

    def load(source: Source, shape: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array:
        def piece(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # parameters have at least one axis
            if learners is None:
                return _piece(tensors, source, shape, index)
            read = _piece(tensors, source, shape, index[1:])
            return np.broadcast_to(read, (len(range(learners)[index[0]]), *read.shape))

        front = () if learners is None else (learners,)
        return jax.make_array_from_callback((*front, *shape.shape), sharding, piece)

    return jax.tree.map(load, tree, shapes, shardings)


def check_tensors(
    tensors: Mapping[str, Tensor], config: ModelConfig, tree: PyTree, says: str
) -> None:
    """Names and shapes agree with the configuration, and nothing is left over.

    Raises:
      ConfigError: for the first tensor that does not; ``says`` names who says otherwise.
    """
    expected = tensor_shapes(config, tree)
    for name, shape in expected.items():
        if name not in tensors:
            raise ConfigError(f"tensor {name}", None, f"is missing, must be {list(shape)}")
        found = tuple(tensors[name].get_shape())
        if found != shape:
            raise ConfigError(f"shape of {name}", list(found), f"{says} {list(shape)}")
    left = sorted(tensors.keys() - expected.keys())
    if left:
        raise ConfigError(f"tensor {left[0]}", "left over", "this architecture has no such tensor")


def _check_tied(tensors: Mapping[str, StoredTensor]) -> None:
    """A written-out copy of tied embeddings has to be one: else the model is another one."""
    names = "model.embed_tokens.weight", HEAD
    if not all(name in tensors for name in names):
        return
    embed, head = (tensors[name] for name in names)
    require_float(head)
    same = tuple(embed.get_shape()) == (shape := tuple(head.get_shape()))
    step = max(CHUNK // max(shape[1] if len(shape) == 2 else 1, 1), 1)
    for start in range(0, shape[0] if same else 0, step):
        part = (slice(start, min(start + step, shape[0])),)
        same = same and np.array_equal(embed[part], head[part], equal_nan=True)
    remedy = f"must be false, as {HEAD} differs from {names[0]}"
    checks.require(same, "config.json: tie_word_embeddings", True, remedy)


def _may_stay(config: ModelConfig, name: str) -> bool:
    """Buffers of old exports, and a written-out copy of tied embeddings."""
    tied = config.tie_embeddings and name == HEAD
    return tied or name.endswith("rotary_emb.inv_freq")


def _piece(
    tensors: Mapping[str, Tensor],
    source: Source,
    shape: jax.ShapeDtypeStruct,
    index: tuple[slice, ...],
) -> np.ndarray:
    """The part ``index`` of a parameter, read from as little of the files as it needs."""
    bounds = [slice(*s.indices(n)) for s, n in zip(index, shape.shape, strict=True)]
    out = _empty([len(range(n)[s]) for s, n in zip(bounds, shape.shape, strict=True)], shape.dtype)
    if not source.stacked:
        _fill(out, tensors[source.name], source, bounds)
        return out
    for place, layer in zip(out, range(shape.shape[0])[bounds[0]], strict=True):
        _fill(place, tensors[source.name.format(layer)], source, bounds[1:])
    return out


def _empty(sizes: Sequence[int], dtype: Any) -> np.ndarray:
    """An array that a CPU device takes over without a copy, which would double its memory."""
    size = math.prod(sizes) * np.dtype(dtype).itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size].view(dtype).reshape(sizes)


def _fill(out: np.ndarray, tensor: Tensor, source: Source, index: Sequence[slice]) -> None:
    """Reads the part ``index`` of one layer's parameter into ``out``, some rows at a time."""
    out = out.T if source.transposed else out
    rows, *rest = index[::-1] if source.transposed else index
    step = max(CHUNK // math.prod(out.shape[1:]), 1)
    for start in range(0, len(out), step):
        end = min(start + step, len(out))
        part = (slice(rows.start + start, rows.start + end), *rest)
        out[start:end] = tensor[part]
