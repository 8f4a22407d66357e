"""Dataclasses come back from what JSON holds of them."""

from __future__ import annotations

import dataclasses
import json

import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.core.records import from_plain


@dataclasses.dataclass
class Inner:
    size: int = 1


@dataclasses.dataclass
class Outer:
    name: str = "a"
    numbers: list[int] = dataclasses.field(default_factory=list)
    one: Inner = dataclasses.field(default_factory=Inner)
    many: list[Inner] = dataclasses.field(default_factory=list)


def test_nested_records_and_lists_of_them_come_back():
    record = Outer("b", [1, 2], Inner(3), [Inner(4), Inner(5)])
    plain = json.loads(json.dumps(dataclasses.asdict(record)))
    assert from_plain(Outer, plain, "outer") == record


def test_what_is_not_there_takes_its_default():
    assert from_plain(Outer, {"name": "c"}, "outer") == Outer("c")


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"nmae": "b"}, "outer.nmae"),
        ({"many": [{"size": 1}, {"width": 2}]}, "outer.many[1].width"),
        ({"many": 3}, "outer.many"),
        ({"one": 3}, "outer.one"),
        ([], "outer"),
    ],
)
def test_what_does_not_belong_there_is_named(values, field):
    with pytest.raises(ConfigError) as error:
        from_plain(Outer, values, "outer")
    assert error.value.field == field and "\n" not in str(error.value)
