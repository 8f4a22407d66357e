"""Putting memory levels onto a model that has been trained without them (level stacking)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from sleeplm.core.checks import require
from sleeplm.core.errors import ConfigError
from sleeplm.core.types import Array, Params, PyTree
from sleeplm.memory.levels import LevelConfig, copy_base
from sleeplm.models.config import ModelConfig
from sleeplm.models.transformer import Model


def backbone_config(config: ModelConfig) -> ModelConfig:
    """The plain model under a configuration: its ``replace`` levels, frozen, without experts.

    It depends on nothing else of the levels, so that lives of many kinds share one backbone.
    In the nested wiring all levels start as one and the same MLP, so the backbone has one.
    """
    plain = [
        LevelConfig(name=lv.name, kind=lv.kind, width=lv.width)
        for lv in config.levels
        if lv.kind == "replace"
    ]
    if config.wiring == "nested":
        plain = plain[-1:]
    if not plain:
        raise ConfigError(
            "model.levels", [lv.name for lv in config.levels], "one level must be of kind 'replace'"
        )
    remedy = "the independent wiring adds levels side by side, a backbone has them in a chain: "
    remedy += "one of them may be of kind 'replace'"
    alone = config.wiring != "independent" or len(plain) == 1
    require(alone, "model.levels", [lv.name for lv in plain], remedy)
    usual = ModelConfig.memory_dtype  # it has no memories
    return dataclasses.replace(config, levels=plain, wiring="sequential", memory_dtype=usual)


def graft(model: Model, backbone: Params, key: Array, copy: bool = True) -> Params:
    """Parameters of ``model`` around those of a trained backbone.

    Levels and experts that the backbone lacks are fresh. Grafted levels and closed experts add
    exactly nothing, so the function is the backbone's, bit for bit. In the nested wiring every
    level starts as a copy of the backbone's MLP.

    Args:
      backbone: parameters of a model of :func:`backbone_config`.
      copy: as a learner's steps need it, which take its buffers for their own; without it, what is
        returned shares the backbone's.
    """
    donors = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(backbone)}
    taken = set()

    def lacking(key: Array) -> list[Array]:
        leaves = jax.tree_util.tree_leaves_with_path(model.init(key))
        return [leaf for path, leaf in leaves if jax.tree_util.keystr(path) not in donors]

    # Compiled, so that what the backbone has is not drawn at random first: it is most of the model.
    fresh = iter(jax.jit(lacking)(key))

    def take(path: tuple, leaf: jax.ShapeDtypeStruct) -> Array:
        name = jax.tree_util.keystr(path)
        if name not in donors:
            return next(fresh)
        taken.add(name)
        remedy = f"the model has {leaf.shape} of this parameter"
        require(donors[name].shape == leaf.shape, f"backbone{name}", donors[name].shape, remedy)
        return jnp.copy(donors[name]) if copy else donors[name]

    params = jax.tree_util.tree_map_with_path(take, jax.eval_shape(model.init, key))
    if missing := sorted(set(donors) - taken):
        raise ConfigError("backbone", missing[0], "the model has no such parameter")
    plain = jax.eval_shape(Model(backbone_config(model.config)).init, key)
    for path, _ in jax.tree_util.tree_leaves_with_path(plain):
        name = jax.tree_util.keystr(path)
        require(name in donors, "backbone", name, "the model needs this parameter of it too")
    levels = model.config.levels
    if model.config.wiring == "nested":
        for level in levels[:-1]:
            params = copy_base(params, levels[-1].name, level.name)
    return params


def backbone_of(params: Params, config: ModelConfig) -> Params:
    """The backbone's own part of a model's parameters: the inverse of :func:`graft`.

    Memory levels, experts and their routers are left out. Nothing is copied.

    Args:
      params: of a model of ``config``.

    Returns:
      Parameters of a model of :func:`backbone_config`.
    """
    plain = jax.eval_shape(Model(backbone_config(config)).init, jax.random.key(0))

    def cut(shape: PyTree, tree: PyTree) -> PyTree:
        if not isinstance(shape, dict):
            return tree
        return {name: cut(part, tree[name]) for name, part in shape.items()}

    return cut(plain, params)
