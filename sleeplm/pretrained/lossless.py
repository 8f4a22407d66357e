"""Tensors in other types than they have, and whether that loses anything."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from sleeplm.pretrained.tensor_files import DTYPES, Tensor

CHUNK = 1 << 18  # numbers that are compared at once
#: Types that models are published in to be small, by what safetensors calls them.
NARROW = {DTYPES[name]: name for name in ("bfloat16", "float16")}


def cast(tensor: Tensor, dtype: str | np.dtype) -> Tensor:
    """The same tensor in another type, rounded when it is read."""
    kind = jnp.dtype(dtype)
    return tensor._replace(dtype=kind, read=lambda: tensor.read().astype(kind, copy=False))


def survives(tensor: Tensor, dtype: str | np.dtype) -> bool:
    """Whether every number comes back from another type as it was, to the bit."""
    kind, numbers = jnp.dtype(dtype), tensor.read()
    step = max(CHUNK // max(math.prod(tensor.shape[1:]), 1), 1)
    for start in range(0, len(numbers), step):
        part = numbers[start : start + step]
        with np.errstate(over="ignore", invalid="ignore"):
            back = part.astype(kind).astype(part.dtype)
        if back.tobytes() != part.tobytes():
            return False
    return True


def first_rounded(tensors: Iterable[Tensor], dtype: str) -> str | None:
    """Name of the first tensor that would not survive another type, if any."""
    return next((tensor.name for tensor in tensors if not survives(tensor, dtype)), None)


def as_stored(tensors: Sequence[Tensor], stored: Mapping[str, str]) -> list[Tensor]:
    """Tensors in the narrower types that they were read from, if that rounds none of them.

    Args:
      stored: the type in the file that each came from, by its name, as safetensors calls it
        (``"BF16"``). Tensors that are not there, or were not narrower, stay as they are.

    Returns:
      All of them narrow where their source is, or else all as they are.
    """
    out = []
    for tensor in tensors:
        kind = jnp.dtype(NARROW.get(stored.get(tensor.name, ""), tensor.dtype))
        if kind.itemsize < tensor.dtype.itemsize:
            if not survives(tensor, kind):
                return list(tensors)
            tensor = cast(tensor, kind)
        out.append(tensor)
    return out
