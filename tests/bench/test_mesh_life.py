"""A run on a mesh of four simulated devices is the run that one device makes."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import signal
from typing import Any

import jax
import pytest
from jax.sharding import PartitionSpec

from sleeplm import cli
from sleeplm.bench.arms import ARMS, DREAMING, build_arm
from sleeplm.bench.exams import BLOCK, stack_exams
from sleeplm.bench.lives import Bench, life_of, newborns
from sleeplm.bench.retention import RetentionConfig
from sleeplm.bench.spreading import check_processes
from sleeplm.core.errors import ConfigError
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.methods.schedule import ScheduleConfig
from sleeplm.models.graft import backbone_config
from sleeplm.models.transformer import Model
from sleeplm.runtime import parallel
from sleeplm.runtime.config import check, read_module
from sleeplm.runtime.learners import MeshConfig
from sleeplm.runtime.lifecycle import Stopped, StopRequest
from sleeplm.runtime.metrics import read_metrics
from sleeplm.runtime.rules import state_specs
from sleeplm.runtime.run import CONFIG, METRICS, Run, Stage

simulated = read_module(str(pathlib.Path(__file__).parents[1] / "simulated.py"))
LIFE = f"{pathlib.Path(__file__).with_name('tiny_life.py')}:brief"
ROWS, LEARNERS = {"data": 2, "fsdp": 2}, {"replica": 2, "tensor": 2}
#: Rounds that are over soon, and accept whatever was dreamt.
DREAM = DreamConfig(
    **{"dreams": 8, "context_tokens": 24, "new_tokens": 8, "contexts": 8, "questions": 6},
    **{"keep": 3, "extra": 1, "chunk": 4, "rank": 2, "steps": 1, "memories": 0},
    **{"margin": -99.0, "worse": 99.0, "writer_rank": 2, "writer_epochs": 1, "rounds": 1},
    **{"updates": 2, "inner": 2, "rows": 4, "gate": 8},
)
slow = pytest.mark.slow


def on(bench: Bench, shape: dict[str, int]) -> Bench:
    return dataclasses.replace(bench, mesh=parallel.mesh(shape))


def spread_over(state: Any) -> set[str]:
    """Mesh axes that some parameter is spread over."""
    specs = [getattr(leaf.sharding, "spec", ()) for leaf in jax.tree.leaves(state.params)]
    return {axis for spec in specs for axis in spec if axis is not None}


# --- a life --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(brief) -> Bench:
    """Two learners; students write as much as teachers do."""
    return brief.bench(brief.config(seeds=2, sleep={"lam": 0.5}))


@pytest.fixture(scope="module")
def alone(brief, bench, tmp_path_factory):
    """The life on one device."""
    return brief.live(bench, "sleep", tmp_path_factory.mktemp("alone") / "run")


@slow
def test_a_life_may_go_on_on_another_mesh_or_without_and_is_that_of_one_device(
    brief, bench, alone, tmp_path
):
    """A day over rows and pieces, one on one device, the last night over learners and columns."""
    arm = brief.arm(bench, "sleep")

    def live(shape: dict[str, int], axes: set[str], until: int | None = None):
        """On from the last save, to the samples of night ``until``; it lies over ``axes``."""
        here, stop = on(bench, shape) if shape else bench, StopRequest()
        config = dataclasses.replace(bench.config, mesh=MeshConfig(**shape))
        run = Run(tmp_path / "run", config, quiet=True, resume=True, stop=stop)
        life = life_of(here, arm)
        agenda = life.agenda()
        if until is not None:
            seeds = [i for i, m in enumerate(agenda) if m.record.get("event") == "seed"]
            place = next(i for i in seeds if agenda[i].record["day"] == until)
            step = agenda[place]

            def done(state):
                stop.signum = signal.SIGTERM
                state, lines = step.run(state)
                assert spread_over(state) == axes
                return state, lines

            agenda[place] = dataclasses.replace(step, run=done)
        state = run.stage(Stage("sleep", lambda: newborns(here, arm), agenda, life.streams))
        assert spread_over(state) == axes
        return state

    with pytest.raises(Stopped):
        live(ROWS, {"fsdp"}, until=0)
    with pytest.raises(Stopped):
        live({}, set(), until=1)
    state = live(LEARNERS, {"replica", "tensor"})
    assert state.counters["nights"].tolist() == [2, 2]
    simulated.assert_same_lines(read_metrics(tmp_path / "run" / METRICS), alone.lines)
    simulated.assert_same_learners(state, alone.state)


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_has_a_place_for_all_it_has(brief, name):
    config = brief.config(dream=DREAM, schedule=ScheduleConfig(when="day_end"))
    arm, model = build_arm(name, config, classes=3), Model(backbone_config(config.model))

    def make(keys):
        params = jax.vmap(model.init)(keys)
        return newborns(Bench(config, [config], [], None, params, {}), arm)

    learners = jax.eval_shape(make, jax.random.split(jax.random.key(0), 1))
    specs = state_specs(learners, parallel.mesh(ROWS))
    assert any(spec != PartitionSpec() for spec in jax.tree.leaves(specs.params))


# --- the whole job -------------------------------------------------------------------------------


@slow
def test_a_whole_run_pretrains_lives_and_reports_as_on_one_device(tmp_path):
    results, lines = [], []
    for name, mesh in {"one": [], "four": ["--config.mesh.data=2", "--config.mesh.fsdp=2"]}.items():
        place = tmp_path / name
        arguments = [*("run", LIFE, "--workdir", str(place), "--quiet"), *mesh]
        arguments += [f"--config.cache={tmp_path / 'cache' / name}", "--config.arms=['wake_only']"]
        assert cli.main(arguments) == 0
        results.append(json.loads((place / "results.json").read_text()))
        lines.append(read_metrics(place / METRICS))
    assert {line["event"] for line in lines[0]} == {"pretrain", "wake", "exam"}
    simulated.assert_same_lines(*lines)
    one, four = ([learner["matrix"] for learner in r["arms"]["wake_only"]] for r in results)
    assert one == four
    assert results[0]["digest"] == results[1]["digest"]


def test_what_is_asked_at_once_is_spread_evenly_and_padding_counts_for_nothing(brief):
    bench = brief.bench(brief.config())
    padded = stack_exams([jax.tree.map(lambda x: x[0], bench.paper)], devices=4)
    questions = bench.paper.shape[0]
    assert questions % 4 and padded.shape[0] == questions + -questions % 4
    assert (padded.group[0, questions:] == padded.groups).all()
    assert BLOCK % 4 == 0


# --- what cannot work, in one line ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("mesh", "changes", "words"),
    [
        ({"data": 0}, {}, "mesh.data = 0: must be an integer of at least 1"),
        ({"data": 3}, {}, "day.batch = 4: use a multiple of mesh.data x mesh.fsdp = 3"),
        ({"data": 2, "fsdp": 4}, {}, "day.batch = 4: .* = 8"),
        ({"replica": 2}, {"seeds": 3}, "seeds = 3: .*multiple of mesh.replica = 2"),
    ],
)
def test_settings_that_cannot_be_spread_are_refused_by_name(brief, mesh, changes, words):
    config = dataclasses.replace(brief.config(), mesh=MeshConfig(**mesh), **changes)
    with pytest.raises(ConfigError, match=words):
        check(config)


def test_rows_of_a_night_and_of_dreams_are_checked_where_an_arm_has_them(brief):
    mesh = MeshConfig(data=4)
    config = brief.config(mesh=mesh, sleep={"rows": 8})
    rows = dataclasses.replace(config.sleep, rows=6)
    awake = dataclasses.replace(config, sleep=rows, arms=["wake_only"])
    check(awake)
    with pytest.raises(ConfigError, match="sleep.rows = 6"):
        check(dataclasses.replace(awake, arms=["sleep"]))
    dream = dataclasses.replace(DREAM, contexts=6)
    dreams = dataclasses.replace(
        config, arms=[DREAMING[0]], dream=dream, schedule=ScheduleConfig(when="day_end")
    )
    with pytest.raises(ConfigError, match="dream.contexts = 6"):
        check(dreams)


@pytest.mark.parametrize(
    ("mesh", "words"),
    [
        (
            ["data=2"],
            "mesh = {'data': 2}: is 2 devices and there are 4: choose sizes whose product is 4",
        ),
        (["data=2", "tensor=4"], "is 8 devices and there are 4"),
        (["model=2"], "mesh.model = '2': no such field; .*replica, data, fsdp, tensor"),
    ],
)
def test_a_mesh_that_there_is_not_is_one_line_and_leaves_nothing_behind(
    mesh, words, tmp_path, capsys
):
    place = tmp_path / "run"
    settings = [f"--config.mesh.{axis}" for axis in mesh]
    assert cli.main(["run", LIFE, "--workdir", str(place), "--quiet", *settings]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sleeplm: ") and re.search(words, line)
    assert not place.exists()


def test_one_of_several_processes_that_has_not_joined_them_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for mesh in (MeshConfig(), MeshConfig(data=4)):
        with pytest.raises(ConfigError, match="one of 2 processes: .* with --distributed"):
            mesh.make()
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match="mesh = {}: 2 processes have 4 devices: choose sizes"):
        MeshConfig().make()
    assert MeshConfig(data=4).make().size == 4


def test_a_judge_that_reads_text_is_refused_by_several_processes(brief, monkeypatch):
    config = brief.config()
    judged = dataclasses.replace(config, sleep=dataclasses.replace(config.sleep, judge="minilm"))
    check_processes(judged)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    check_processes(config)
    with pytest.raises(ConfigError, match="sleep.judge = 'minilm': .* one process only"):
        check_processes(judged)


def test_the_mesh_is_no_part_of_what_a_run_is(tmp_path):
    plain = RetentionConfig()
    spread = dataclasses.replace(plain, mesh=MeshConfig(data=2))
    runs = [Run(tmp_path / "run", c, quiet=True, resume=True) for c in (plain, spread)]
    assert runs[0].digest == runs[1].digest
    runs[0].claim()
    assert "mesh" in json.loads((tmp_path / "run" / CONFIG).read_text())["config"]
    assert MeshConfig().make() is None
