"""What a sweep is: axes, crossing, identifiers; mistakes are found before anything runs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launch.__main__ import main
from launch.axes import fixed, merge, product, sweep, vmap, zipit
from launch.expand import expand, load, overrides
from launch.trials import directory_of, find_trial, read_trials, trial_id, write_trials
from sleeplm.bench.lives import learners_of
from sleeplm.core.errors import ConfigError
from sleeplm.runtime.config import load_config

SWEEPS = str(pathlib.Path(__file__).with_name("sweeps.py"))

names = st.sampled_from(["days", "sleep.updates", "model.levels[0].width", "world", "text"])
values = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), st.floats(-1, 1), st.text(max_size=5)
)
entries = st.dictionaries(names, values, max_size=4)


#: Other processes may be busy on the same machine.
calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def axis(field):
    return st.lists(st.integers(0, 99), max_size=4, unique=True).map(lambda v: sweep(field, v))


@calm
@given(axis("a"), axis("b"), axis("c"))
def test_a_product_holds_every_combination_and_the_last_axis_varies_fastest(a, b, c):
    want = [{**x, **y, **z} for x, y, z in itertools.product(a, b, c)]
    assert product(a, b, c) == want
    assert product(product(a, b), c) == want == product(a, product(b, c))


@calm
@given(st.lists(st.tuples(st.integers(), st.integers()), max_size=5))
def test_zipped_axes_go_along_together(pairs):
    zipped = zipit(sweep("a", [a for a, _ in pairs]), sweep("b", [b for _, b in pairs]))
    assert zipped == [{"a": a, "b": b} for a, b in pairs]


def test_one_value_is_an_axis_of_one():
    assert product(fixed("a", 1), sweep("b", [2, 3])) == [{"a": 1, "b": 2}, {"a": 1, "b": 3}]
    assert product() == [{}]


def test_axes_that_cannot_be_put_together_are_refused():
    with pytest.raises(ConfigError, match="a = 2: is set by two axes"):
        product(fixed("a", 1), fixed("a", 2))
    with pytest.raises(ConfigError, match="same length"):
        zipit(sweep("a", [1]), sweep("b", [1, 2]))


@calm
@given(st.integers(0, 10**6), st.integers(1, 40))
def test_consecutive_seeds_are_fused_into_one_trial(first, count):
    seeds = range(first, first + count)
    assert vmap(sweep("seed", seeds)) == [{"seed": first, "seeds": count}]


@calm
@given(st.lists(st.integers(0, 9), min_size=2, max_size=5))
def test_other_seeds_are_not_fused(seeds):
    if seeds != list(range(seeds[0], seeds[0] + len(seeds))):
        with pytest.raises(ConfigError, match="consecutive integers of seed"):
            vmap(sweep("seed", seeds))


@calm
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5))
def test_numbers_are_fused_into_one_trial_that_sweeps_them_inside(pairs):
    rates, shares = ([pair[i] for pair in pairs] for i in (0, 1))
    axis = zipit(sweep("sleep.learning_rate", rates), sweep("sleep.lam", shares))
    assert vmap(axis) == [{"sweep": {"sleep.lam": shares, "sleep.learning_rate": rates}}]


@pytest.mark.parametrize(
    ("axis", "said"),
    [
        ([], "no settings to fuse"),
        (zipit(sweep("seed", [0, 1]), sweep("sleep.lam", [0.4, 0.5])), "product"),
        (sweep("seeds", [2, 3]), "axes of their own"),
        (sweep("world", ["atlas", "biographies"]), "only seeds and numbers"),
        (sweep("probes", [True, False]), "only seeds and numbers"),
        ([{"sleep.lam": 0.5}, {"sleep.alpha": 0.5}], "only seeds and numbers"),
    ],
)
def test_what_is_neither_seeds_nor_numbers_is_not_fused(axis, said):
    with pytest.raises(ConfigError, match=said):
        vmap(axis)


def test_fused_numbers_are_crossed_with_fused_seeds_in_one_trial():
    (trial,) = expand(f"{SWEEPS}:life", ["numbers"])
    config = load(trial)
    assert (config.seed, config.seeds) == (2, 3)
    assert config.sweep == {"sleep.learning_rate": [1e-3, 1e-2], "sleep.z0": [2.0, 4.0]}
    one_by_one = [
        load_config(
            f"{SWEEPS}:life",
            [f"--config.{name}={value}" for name, value in settings.items()],
        )
        for settings in product(
            zipit(sweep("sleep.learning_rate", [1e-3, 1e-2]), sweep("sleep.z0", [2.0, 4.0])),
            zipit(sweep("seed", [2, 3, 4]), sweep("world_seed", [0, 1, 2])),
        )
    ]
    assert learners_of(config) == one_by_one


def test_two_axes_of_fused_numbers_are_crossed_inside_of_one():
    axes = [sweep("sleep.lam", [0.25, 0.5]), sweep("sleep.alpha", [0.5, 0.75])]
    with pytest.raises(ConfigError, match=r"cross them inside, vmap\(product"):
        product(*map(vmap, axes))
    (fused,) = vmap(product(*axes))
    assert fused["sweep"]["sleep.alpha"] == [0.5, 0.75, 0.5, 0.75]


def test_a_fused_trial_has_the_learners_of_the_trials_that_it_stands_for():
    apart = zipit(sweep("seed", range(3, 6)), sweep("world_seed", range(7, 10)))
    (fused,) = vmap(apart)
    config = load_config(f"{SWEEPS}:life", overrides(fused))
    own = [load_config(f"{SWEEPS}:life", overrides(one)) for one in apart]
    assert learners_of(config) == own


def test_the_experiment_that_sweeps_has_the_same_24_learners_fused_and_apart():
    experiment = str(pathlib.Path("experiments") / "retention_sweep.py")
    (fused,) = expand(experiment, ["fused"])
    apart = expand(experiment, ["apart"])
    assert len(apart) == 24
    assert learners_of(load(fused)) == [load(trial) for trial in apart]


@calm
@given(entries, st.randoms())
def test_an_identifier_depends_on_the_settings_alone(entries, random):
    shuffled = list(entries.items())
    random.shuffle(shuffled)
    name = trial_id("experiments/a.py:x", False, entries)
    assert name == trial_id("moved/to/b.py:x", False, dict(shuffled))
    assert name != trial_id("experiments/a.py:x", False, {**entries, "more": 1})
    assert name != trial_id("experiments/a.py:y", False, entries)
    assert name != trial_id("experiments/a.py:x", True, entries)
    assert name[0].isalpha() and name.isalnum() and name == name.lower() and len(name) == 11


@settings(calm, max_examples=15)
@given(
    st.lists(st.sampled_from(["rates", "seeds", "slow", "fails"]), max_size=3, unique=True),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)
def test_expansion_is_deterministic_and_every_setting_arrives(sweeps, text):
    trials = expand(SWEEPS, sweeps, {"text": text})
    assert trials == expand(SWEEPS, sweeps, {"text": text})
    assert len({trial.id for trial in trials}) == len(trials)
    for trial in trials[:2]:
        config = load(trial)
        assert config.text == text
        assert config.inner.rate == trial.settings.get("inner.rate", 0.1)


def test_a_sweep_that_has_grown_keeps_its_identifiers(tmp_path):
    file = tmp_path / "grown.py"
    text = pathlib.Path(SWEEPS).read_text().replace("__file__", repr(SWEEPS))
    file.write_text(text)
    before = {trial.id: trial.settings for trial in expand(str(file), ["seeds", "rates"])}
    file.write_text(text.replace("(1e-3, 3e-3)", "(1e-4, 1e-3, 2e-3, 3e-3)"))
    after = {trial.id: trial.settings for trial in expand(str(file), ["seeds", "rates"])}
    assert len(before) == 6 and len(after) == 12
    assert before.items() <= after.items()


def test_trials_are_written_as_they_are_read(tmp_path):
    trials = expand(SWEEPS, ["grid", "rates"], {"sizes": [1, 2]})
    write_trials(str(tmp_path / "new" / "sweep"), trials)
    assert read_trials(str(tmp_path / "new" / "sweep")) == trials
    assert [path.name for path in (tmp_path / "new" / "sweep").iterdir()] == ["trials.jsonl"]
    assert find_trial(str(tmp_path / "new" / "sweep"), "3") == trials[3]
    assert find_trial(str(tmp_path / "new" / "sweep"), trials[2].id) == trials[2]
    with pytest.raises(ConfigError, match="no such trial"):
        find_trial(str(tmp_path / "new" / "sweep"), "4")


def test_a_setting_may_hold_characters_that_end_lines_elsewhere(tmp_path):
    """JSON leaves them as they are."""
    trials = expand(SWEEPS, ["seeds"], {"text": "a\u2028b\u2029c\u0085d\x1ce\r\n"})
    write_trials(str(tmp_path), trials)
    assert read_trials(str(tmp_path)) == trials
    (tmp_path / "trials.jsonl").write_text("")
    assert read_trials(str(tmp_path)) == []


def test_trials_that_are_named_twice_run_once():
    assert len(expand(SWEEPS, ["grid"])) == 2
    assert merge([{}, {"a": 1}]) == {"a": 1}


@pytest.mark.parametrize(
    ("sweep_name", "said"),
    [
        ("misspelt", "sead = '2': no such field; did you mean seed?"),
        ("missing", "no sweep_missing() in"),
        ("nothing", "must give at least one settings"),
        ("broken", "sweep_broken() failed: KeyError: 'no such table'"),
        ("object", "must be a finite number, text"),
        ("life:structures", "0 leaves a part of the night out"),
        ("life:shapes", "'sleep.rows'] = [8, 16]: cannot vary in one program"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(tmp_path, capsys, sweep_name, said):
    out = tmp_path / "sweep"
    *kind, name = sweep_name.split(":")
    experiment = ":".join([SWEEPS, *kind])
    assert main(["expand", experiment, "--sweep", name, "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert said in told
    assert not out.exists()


def test_a_value_out_of_range_is_found_when_the_sweep_is_expanded():
    with pytest.raises(ConfigError, match="seconds"):
        expand(SWEEPS, ["rates"], {"seconds": -1.0})


def test_sweeps_are_named_and_crossed_on_the_command_line(tmp_path, capsys):
    out = tmp_path / "sweep"
    arguments = ["expand", SWEEPS, "--sweep", "rates", "--sweep", "fused", "--out", str(out)]
    assert main(arguments) == 0
    assert "2 trials" in capsys.readouterr().out
    lines = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    assert [line["settings"] for line in lines] == [
        {"inner.rate": rate, "seed": 2, "seeds": 3} for rate in (1e-3, 3e-3)
    ]
    before = (out / "trials.jsonl").read_bytes()
    assert main(arguments) == 0
    assert (out / "trials.jsonl").read_bytes() == before


def test_the_experiment_of_the_readme_has_sweeps(monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parents[2])
    trials = expand("experiments/retention.py", ["lr", "seeds"])
    assert [trial.settings["seeds"] for trial in trials] == [3, 3, 3, 3]
    assert len({trial.digest for trial in trials}) == 4


def test_trials_that_were_begun_are_not_lost_to_another_sweep(tmp_path, capsys):
    out = tmp_path / "sweep"
    again = ["expand", SWEEPS, "--sweep", "rates", "--out", str(out)]
    assert main(again) == 0
    other = ["expand", SWEEPS, "--sweep", "fused", "--out", str(out)]
    assert main(other) == 0  # nothing was begun
    assert main(again) == 0
    begun, *_ = read_trials(str(out))
    directory_of(str(out), begun).mkdir(parents=True)
    written = (out / "trials.jsonl").read_bytes()
    capsys.readouterr()
    assert main(other) == 2
    assert f"holds the trial {begun.id}, which is none of these" in capsys.readouterr().err
    assert (out / "trials.jsonl").read_bytes() == written
    assert main(again) == 0
    before = dataclasses.replace(begun, digest="of another file")
    write_trials(str(out), [before])
    capsys.readouterr()
    assert main(again) == 2
    assert f"the trial {begun.id} of another configuration" in capsys.readouterr().err
