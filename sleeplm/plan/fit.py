"""A way to arrange chips, rows and recomputation with which everything fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from sleeplm.core.errors import ConfigError
from sleeplm.plan.config import MeshConfig, PlanConfig

#: What is kept for the way back, the least first: with more there is less to compute again.
REMAT = (("full", True), ("dots", True), ("full", False))


def arrangements(config: PlanConfig, chips: int) -> Iterator[PlanConfig]:
    """Configurations to try, the dearest in memory of each kind left to :func:`fit`.

    Most rows first; of these whole matrices first (``tensor`` 1), since cutting them costs a sum
    over chips after every product. ``tensor`` divides the key/value heads. How all other chips are
    arranged :class:`~sleeplm.plan.config.MeshConfig` says.
    """
    rows = config.rows
    while rows:
        for tensor in (n for n in (1, 2, 4, 8, 16) if _divides(n, config, chips)):
            model = dataclasses.replace(config.model, remat=True, remat_policy="full")
            mesh = MeshConfig(tensor=tensor)
            yield dataclasses.replace(config, rows=rows, mesh=mesh, model=model)
        rows //= 2


def _divides(tensor: int, config: PlanConfig, chips: int) -> bool:
    return chips % tensor == 0 and config.model.n_kv_heads % tensor == 0


def fit(
    config: PlanConfig, chips: int, fits: Callable[[PlanConfig], bool]
) -> tuple[PlanConfig, list[str]]:
    """The first arrangement that fits, with as little recomputed as then still fits.

    Args:
      config: of which ``rows`` is the most that is tried, and ``mesh`` and ``model.remat`` are
        replaced.
      fits: compiles a configuration and says whether all its programs fit.

    Returns:
      The configuration, and one line for each that was tried.

    Raises:
      ConfigError: none fits.
    """
    tried: list[str] = []

    def attempt(candidate: PlanConfig) -> bool:
        good = fits(candidate)
        tried.append(f"{describe(candidate, chips)}: {'fits' if good else 'does not fit'}")
        return good

    for least in arrangements(config, chips):
        if not attempt(least):
            continue
        best = least
        for policy, remat in REMAT[1:]:
            model = dataclasses.replace(least.model, remat=remat, remat_policy=policy)
            more = dataclasses.replace(least, model=model)
            if not attempt(more):
                break
            best = more
        return best, tried
    remedy = f"{len(tried)} arrangements do not fit {chips} chips: name a larger topology"
    raise ConfigError("rows", config.rows, remedy)


def describe(config: PlanConfig, chips: int) -> str:
    """An arrangement as the settings that make it."""
    mesh = config.mesh.shape(chips, config.model.d_model)
    axes = " ".join(f"mesh.{name}={size}" for name, size in mesh.items())
    model = config.model
    kept = f" model.remat_policy={model.remat_policy}" if model.remat else ""
    return f"{axes} rows={config.rows} model.remat={model.remat}{kept}"
