"""What a run's settings have to be for a mesh of devices, and for several processes."""

from __future__ import annotations

from typing import Any

import jax

from sleeplm.bench.arms import DREAMING, WITHOUT_LEVELS_NIGHTS
from sleeplm.bench.sweep import settings_of
from sleeplm.core import checks


def check_mesh(config: Any) -> None:
    """Checks that learners and rows of every kind can be spread evenly over the mesh.

    Raises:
      ConfigError: they cannot.
    """
    mesh, sleeps = config.mesh, not WITHOUT_LEVELS_NIGHTS.issuperset(config.arms)
    remedy = f"learners are spread evenly: use a multiple of mesh.replica = {mesh.replica}"
    settings = len(settings_of(config))
    checks.require(config.seeds * settings % mesh.replica == 0, "seeds", config.seeds, remedy)
    mesh.check_rows("day.batch", config.day.batch)
    if not config.backbone:
        mesh.check_rows("pretrain.batch", config.pretrain.batch)
    if sleeps:
        mesh.check_rows("sleep.rows", config.sleep.rows)
    if not set(DREAMING).isdisjoint(config.arms):
        mesh.check_rows("dream.contexts", config.dream.contexts)
        mesh.check_rows("dream.rows", config.dream.rows)


def check_processes(config: Any) -> None:
    """Checks that several processes can run it.

    Raises:
      ConfigError: nights ask a judge that reads text, for which a device calls its host.
    """
    remedy = "a judge that reads text is asked by one process only: use 'exact', or one process"
    alone = jax.process_count() == 1 or config.sleep.judge != "minilm"
    checks.require(alone, "sleep.judge", config.sleep.judge, remedy)
