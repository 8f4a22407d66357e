"""Rows are told apart by two hashes: what differs must not agree in both."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.core.clusters import row_hashes


def hashed(rows) -> np.ndarray:
    """uint32 [2, Q]"""
    return np.stack(jax.jit(row_hashes)(jnp.asarray(rows, jnp.int32)))


def test_tokens_and_places_of_equal_products_do_not_make_rows_alike():
    one, other = hashed([[1, 7, 11, 7, 7, 7, 7, 7, 4, 2], [1, 7, 14, 7, 7, 7, 7, 7, 3, 2]]).T
    assert (one != other).all()


def swapped_products() -> list[list[int]]:
    """Rows with tokens t at p and u at q, p (t + 1) = i p q and q (u + 1) = j p q, and i, j swapped
    in the next row, for all pairs of places."""
    rows = []
    for p, q in itertools.combinations(range(1, 13), 2):
        for i, j in itertools.combinations(range(1, 9), 2):
            for first, second in ((i, j), (j, i)):
                row = [7] * 12
                row[p - 1], row[q - 1] = q * first - 1, p * second - 1
                rows.append(row)
    return rows


@pytest.mark.parametrize(
    "rows",
    [
        swapped_products(),
        list(itertools.product(range(4), repeat=6)),
        [[*[0] * i, t, *[0] * (9 - i)] for i in range(10) for t in range(1, 400)],
        [[t, *[3] * 8, u] for t in range(64) for u in range(64)],
        [[t, t + d, t] for t in range(-200, 200) for d in range(-4, 5)],
    ],
    ids=["equal products", "few tokens", "one token", "ends", "neighbours"],
)
def test_rows_of_a_pattern_collide_in_neither_hash(rows):
    """By chance two of 4000 rows agree in 32 bits once in 500 such lists."""
    different = np.unique(np.asarray(rows), axis=0)
    assert len(different) > 3000
    for found in hashed(different):
        assert len(np.unique(found)) == len(different)
