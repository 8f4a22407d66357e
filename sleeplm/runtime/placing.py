"""Arrays that every process has, brought onto a mesh.

All processes of a run compute the same batches, exams and keys on their hosts. Each cuts its own
pieces out of them, and nothing is sent. With one process this is ``jax.device_put``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sleeplm.core.types import PyTree


def place(x: Any, sharding: NamedSharding) -> jax.Array:
    """An array where it lies on a mesh.

    Args:
      x: the same in every process; or an array that lies on the devices of all of them already.
    """
    if jax.process_count() == 1 or _is_spread(x):
        return jax.device_put(x, sharding)
    if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
        data = place(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    whole = np.asarray(x, jnp.result_type(x))
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def everywhere(tree: PyTree, mesh: Mesh) -> PyTree:
    """What the processes have, whole on every device of a mesh.

    What lies on the mesh already stays where it lies; with one process everything does, as a
    compiled function takes it from there.
    """
    if jax.process_count() == 1:
        return tree
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: x if _is_spread(x) else place(x, whole), tree)


def _is_spread(x: Any) -> bool:
    """Whether it is an array of all processes; what is being traced has no place."""
    if isinstance(x, jax.core.Tracer):
        return True
    return isinstance(x, jax.Array) and not x.is_fully_addressable
