from __future__ import annotations

import math

import numpy as np
import pytest

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (checks.integer, [0, -3, np.int32(4)], [True, 1.0, "1", None]),
        (checks.finite, [0, -1.5, np.float32(2)], [math.nan, math.inf, True, "2", None]),
        (checks.positive, [1, 0.5], [0, -1, math.nan, math.inf, True]),
        (checks.positive_integer, [1, 7], [0, -1, 1.0, True]),
        (checks.fraction, [0, 1, 0.3], [-0.1, 1.1, math.nan, False]),
        (lambda f, v: checks.at_least(f, v, 2), [2, 2.5], [1.9, math.nan, True]),
        (lambda f, v: checks.in_range(f, v, -1, 1), [-1, 0, 1], [1.01, math.inf]),
        (lambda f, v: checks.one_of(f, v, ["sgd", "adam", 1]), ["sgd", 1], ["Adam", True, None]),
        (lambda f, v: checks.divides(f, v, 12, "width"), [1, 4, 12], [5, 0, -3, 24, 2.0]),
        (lambda f, v: checks.require(v > 3, f, v, "must be above 3"), [4], [3]),
    ],
)
def test_a_check_lets_good_values_through_and_names_field_value_and_remedy_of_bad_ones(
    check, good, bad
):
    for value in good:
        check("model.width", value)
    for value in bad:
        with pytest.raises(ConfigError) as caught:
            check("model.width", value)
        line = str(caught.value)
        assert line.startswith(f"model.width = {value!r}: must ")
        assert "\n" not in line


def test_one_of_points_a_misspelt_name_at_the_closest_choice():
    with pytest.raises(ConfigError, match="did you mean 'softmax'"):
        checks.one_of("router.kind", "sofmax", ["softmax", "sigmoid"])
