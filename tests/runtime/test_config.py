from __future__ import annotations

import os
import pathlib
import re
import sys
import textwrap

import pytest

from sleeplm.core.errors import ConfigError
from sleeplm.runtime.config import (
    check,
    differing_fields,
    digest,
    load_config,
    read_module,
    to_dict,
)

CONFIG = """
from __future__ import annotations

import dataclasses
import enum
from typing import Literal

from sleeplm.core.checks import positive


class Order(enum.Enum):
    FIRST = 1
    LAST = 2


@dataclasses.dataclass
class Level:
    name: str
    period: int

    def check(self, field: str) -> None:
        positive(f"{field}.period", self.period)


@dataclasses.dataclass
class Model:
    width: int = 64
    scale: float = 0.5
    tied: bool = True
    kind: Literal["softmax", "sigmoid"] = "softmax"
    order: Order = Order.FIRST
    heads: tuple[int, ...] = (1, 2)
    rates: list[float] = dataclasses.field(default_factory=lambda: [0.1, 0.2])
    cap: float | None = None
    extra: Level | None = None
    levels: list[Level] = dataclasses.field(
        default_factory=lambda: [Level("fast", 1), Level("slow", 8)]
    )

    def check(self, field: str) -> None:
        positive(f"{field}.width", self.width)


@dataclasses.dataclass
class Experiment:
    name: str = "demo"
    seed: int = 0
    model: Model = dataclasses.field(default_factory=Model)


def get_config(size: str = "small") -> Experiment:
    config = Experiment(name=size)
    if size == "big":
        config.model.width = 512
    return config
"""


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    file = tmp_path / "experiment.py"
    file.write_text(CONFIG)
    return str(file)


def write(tmp_path: pathlib.Path, text: str) -> str:
    file = tmp_path / "other.py"
    file.write_text(textwrap.dedent(text))
    return str(file)


def test_without_overrides_the_file_decides(path):
    config = load_config(path, [])
    assert (config.name, config.model.width, config.model.levels[1].period) == ("small", 64, 8)
    check(config)


def test_the_part_after_a_colon_is_given_to_get_config(path):
    assert load_config(f"{path}:big", []).model.width == 512


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("--config.seed=7", lambda c: c.seed, 7),
        ("--config.name=none", lambda c: c.name, "none"),
        ("--config.name=a=b c", lambda c: c.name, "a=b c"),
        ("--config.model.scale=1e-3", lambda c: c.model.scale, 1e-3),
        ("--config.model.scale=2", lambda c: c.model.scale, 2.0),
        ("--config.model.tied=false", lambda c: c.model.tied, False),
        ("--config.model.kind=sigmoid", lambda c: c.model.kind, "sigmoid"),
        ("--config.model.order=last", lambda c: c.model.order.name, "LAST"),
        ("--config.model.heads=(4,)", lambda c: c.model.heads, (4,)),
        ("--config.model.rates=[0.5, 1]", lambda c: c.model.rates, [0.5, 1]),
        ("--config.model.rates[1]=0.75", lambda c: c.model.rates, [0.1, 0.75]),
        ("--config.model.cap=3", lambda c: c.model.cap, 3.0),
        ("--config.model.levels[0].period=4", lambda c: c.model.levels[0].period, 4),
        ("--config.model.levels[1].name=deep", lambda c: c.model.levels[1].name, "deep"),
    ],
)
def test_an_override_sets_one_field_to_a_value_of_its_type(path, override, read, value):
    config = load_config(path, [override])
    assert read(config) == value
    assert type(read(config)) is type(value)
    assert digest(config) != digest(load_config(path, []))


def test_none_clears_an_optional_field_and_the_later_override_wins(path):
    config = load_config(path, ["--config.model.cap=3", "--config.model.cap=none"])
    assert config.model.cap is None
    assert load_config(path, ["--config.seed=1", "--config.seed", "2"]).seed == 2


def test_overrides_of_one_load_do_not_leak_into_the_next(path):
    load_config(path, ["--config.seed=9", "--config.model.levels[0].period=9"])
    assert to_dict(load_config(path, [])) == to_dict(load_config(path, []))
    assert load_config(path, []).model.levels[0].period == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.modle.width=1", "modle = '1': no such field; did you mean model? there are: "),
        ("--config.model.widht=1", "model.widht = '1': no such field; did you mean width?"),
        ("--config.qqqqq=1", "qqqqq = '1': no such field; there are: name, seed, model"),
        ("--config.seed=1.5", "seed = '1.5': must be an integer"),
        ("--config.model.scale=fast", "model.scale = 'fast': must be a number"),
        ("--config.model.tied=maybe", "model.tied = 'maybe': must be true or false"),
        ("--config.model.order=middle", "model.order = 'middle': must be one of FIRST, LAST"),
        ("--config.model.heads=(1, 'a')", "model.heads = (1, 'a'): must be a tuple such as (1, 2)"),
        ("--config.model.rates=5", "model.rates = 5: must be a list such as [1, 2]"),
        ("--config.model.cap=some", "model.cap = 'some': must be a number or none"),
        ("--config.model.levels[5].period=1", "model.levels[5] = '1': is not there; model.levels "),
        ("--config.model.levels[0].cycle=1", "model.levels[0].cycle = '1': no such field; "),
        ("--config.seed.deep=1", "seed.deep = '1': is not there; seed is 0 and has no fields"),
        ("--config.model.levels[=1", "model.levels[ = '1': is not a field; write it as in"),
        ("--config.model=big", "model = 'big': must be a Model, whose fields are set one by one"),
        ("--config.model.extra.period=1", "model.extra.period = '1': model.extra is none"),
        ("--config.seed", "seed = None: has no value; write --config.seed=VALUE"),
        ("--seed=1", "override = '--seed=1': must look like --config.FIELD=VALUE; did you mean"),
        ("seed", "override = 'seed': must look like --config.FIELD=VALUE"),
    ],
)
def test_an_override_that_cannot_work_is_one_line_with_field_value_and_remedy(
    path, capsys, override, message
):
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    line = str(caught.value)
    assert line.startswith(message), line
    assert "\n" not in line
    assert capsys.readouterr() == ("", "")


def test_a_misspelt_choice_is_pointed_at_the_closest_one(path):
    with pytest.raises(ConfigError, match=r"model.kind = 'sigmiod': .*did you mean 'sigmoid'"):
        load_config(path, ["--config.model.kind=sigmiod"])


def test_an_override_that_a_later_one_would_undo_is_refused(path):
    overrides = ["--config.model.cap=3", "--config.model=none"]
    with pytest.raises(ConfigError, match="model.cap = '3': would be lost"):
        load_config(path, overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "must define get_config()"),
        ("def get_config(:", "cannot be run: SyntaxError"),
        ("import no_such_module", "cannot be run: ModuleNotFoundError: No module named"),
        ("def get_config():\n    return 1 / 0", "get_config() failed: ZeroDivisionError"),
        ("def get_config():\n    pass", "get_config() must return a dataclass, not NoneType"),
        (
            """
            import dataclasses
            @dataclasses.dataclass(frozen=True)
            class Frozen:
                x: int = 1
            get_config = Frozen
            """,
            "must be a dataclass that is not frozen",
        ),
        (
            """
            import dataclasses
            @dataclasses.dataclass
            class Wrong:
                steps: int = "100"
            get_config = Wrong
            """,
            "steps = '100': must be an integer",
        ),
    ],
)
def test_a_file_that_cannot_work_is_one_line(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text), [])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line():
    with pytest.raises(ConfigError, match=r"^config = 'absent.py': no such file$"):
        load_config("absent.py", [])


def test_a_file_can_have_a_short_version_of_its_own(path):
    with pytest.raises(ConfigError, match=r"must define get_quick_config\(\)"):
        load_config(path, [], quick=True)
    with open(path, "a") as file:
        file.write("\n\ndef get_quick_config():\n    return get_config('quick')\n")
    assert to_dict(load_config(path, [], quick=True)) == to_dict(load_config(f"{path}:quick", []))


def test_a_file_without_get_config_does_not_inherit_that_of_the_file_before(tmp_path, path):
    load_config(path, [])
    with pytest.raises(ConfigError, match="must define get_config"):
        load_config(write(tmp_path, "x = 1"), [])


def test_a_file_is_read_as_it_is_now_and_nothing_is_left_beside_it(tmp_path, monkeypatch):
    """Python takes what it has compiled again for a file of the same second and length."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "mine.py"
    for value in (1, 2):
        file.write_text(f"number = {value}\n")
        os.utime(file, (1e9, 1e9))
        module = read_module(str(file))
        assert module.number == value
    assert list(tmp_path.iterdir()) == [file]


def test_check_asks_every_nested_dataclass_with_its_path(path):
    with pytest.raises(ConfigError, match=re.escape("model.levels[1].period = 0: must be a num")):
        check(load_config(path, ["--config.model.levels[1].period=0"]))
    with pytest.raises(ConfigError, match=re.escape("model.width = -1: must be a number above 0")):
        check(load_config(path, ["--config.model.width=-1"]))
    config = load_config(path, [])
    config.model.width = True
    with pytest.raises(ConfigError, match="model.width = True: must be an integer"):
        check(config)


def test_an_optional_dataclass_is_built_and_then_filled(tmp_path):
    file = write(
        tmp_path,
        """
        from __future__ import annotations
        import dataclasses
        @dataclasses.dataclass
        class Sleep:
            steps: int = 10
        @dataclasses.dataclass
        class Run:
            sleep: Sleep | None = None
        get_config = Run
        """,
    )
    overrides = ["--config.sleep=build", "--config.sleep.steps=20"]
    assert load_config(file, overrides).sleep.steps == 20
    with pytest.raises(ConfigError, match="write --config.sleep=build before it"):
        load_config(file, overrides[1:])


def test_the_digest_depends_on_values_alone(path):
    config = load_config(path, ["--config.seed=3"])
    assert digest(config) == digest(load_config(path, ["--config.seed=3"]))
    assert digest(config) != digest(load_config(path, ["--config.seed=4"]))
    assert to_dict(config)["model"]["order"] == "FIRST"


def test_what_two_configurations_differ_in_is_told_by_field(path):
    overrides = ["--config.seed=4", "--config.model.levels[0].period=2"]
    then, now = (to_dict(load_config(path, more)) for more in (["--config.seed=3"], overrides))
    assert differing_fields(then, then) == []
    fields = differing_fields(then, now)
    assert [field for field, *_ in fields] == ["seed", "model.levels[0].period"]
    assert fields[0][1:] == ("3", "4")
    assert differing_fields({"a": 1, "b": [1, 2]}, {"b": [1], "c": 1.0}) == [
        ("b", "[1, 2]", "[1]"),
        ("c", "absent", "1.0"),
        ("a", "1", "absent"),
    ]
    assert differing_fields({"a": True}, {"a": 1}) == [("a", "True", "1")]
    ((_, long, _),) = differing_fields({"a": "x" * 99}, {"a": ""})
    assert len(long) == 60 and long.endswith("...")
