"""Numbers go into a narrower type only where every bit of them comes back."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.pretrained import lossless
from sleeplm.pretrained.lossless import as_stored, cast, first_rounded, survives
from sleeplm.pretrained.memories import named

#: Of which bfloat16 and float16 have all.
EXACT = np.asarray([1.0, -0.0, 0.5, -3.0, math.inf, math.nan, 2.0**-14], np.float32)


def tensor(numbers, name="x"):
    (one,) = named({name: np.asarray(numbers, np.float32)})
    return one


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_numbers_that_a_type_has_survive_it(dtype):
    assert survives(tensor(EXACT), dtype)
    narrow = cast(tensor(EXACT), dtype)
    assert narrow.dtype == narrow.read().dtype == jnp.dtype(dtype)
    assert narrow.read().astype(np.float32).tobytes() == EXACT.tobytes()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("number", "dtype"),
    [(1 + 2**-8, "bfloat16"), (1 + 2**-11, "float16"), (1e5, "float16"), (2.0**-26, "float16")],
)
@pytest.mark.parametrize("place", [0, 6, 11])
def test_one_number_that_it_has_not_is_enough(monkeypatch, number, dtype, place):
    numbers = np.zeros((4, 3), np.float32)
    numbers.flat[place] = number
    for chunk in (1, 6, 100):
        monkeypatch.setattr(lossless, "CHUNK", chunk)
        assert not survives(tensor(numbers), dtype)
        assert not survives(tensor(numbers.T), dtype)
        assert survives(tensor(numbers * 0), dtype)


def test_the_first_tensor_that_would_be_rounded_is_named():
    both = [tensor([1.0], "a"), tensor([1.1], "b")]
    assert first_rounded(both, "bfloat16") == "b"
    assert first_rounded(both, "float32") is None


def types(tensors):
    return [one.dtype.name for one in tensors]


def test_tensors_get_the_types_of_their_files_all_or_none():
    exact, other, rounded = tensor(EXACT, "a"), tensor(EXACT, "b"), tensor([1.1], "c")
    stored = {"a": "BF16", "b": "F16", "c": "F32"}
    assert types(as_stored([exact, other, rounded], stored)) == ["bfloat16", "float16", "float32"]
    assert types(as_stored([exact, other, rounded], stored | {"c": "BF16"})) == ["float32"] * 3


@pytest.mark.parametrize("stored", [{}, {"a": "F64"}, {"a": "F8_E4M3"}, {"a": "I8"}, {"a": "F32"}])
def test_types_that_are_not_known_or_not_narrower_change_nothing(stored):
    assert types(as_stored([tensor(EXACT, "a")], stored)) == ["float32"]
    half = cast(tensor(EXACT, "a"), "bfloat16")
    assert types(as_stored([half], stored | {"a": "F16"})) == ["bfloat16"]
