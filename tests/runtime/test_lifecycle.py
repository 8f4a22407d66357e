"""The loop over moments, and the stages of a run."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm import cli
from sleeplm.core.errors import CheckpointError, ConfigError
from sleeplm.runtime.checkpoint import Checkpoints
from sleeplm.runtime.lifecycle import Chronicle, Moment, Stopped, StopRequest, live, require_same
from sleeplm.runtime.metrics import MetricsLog, Progress, read_metrics
from sleeplm.runtime.run import Run, Stage
from sleeplm.runtime.workdir import WRITTEN

EXPERIMENT = str(pathlib.Path(__file__).parents[2] / "experiments" / "retention.py")

# --- the loop ------------------------------------------------------------------------------------


class Counting:
    """An agenda that counts, and remembers when its metrics were read."""

    def __init__(self, moments: int):
        self.events: list[str] = []
        self.agenda = [self._moment(i) for i in range(moments)]

    def _moment(self, index: int) -> Moment:
        def run(state):
            self.events.append(f"run {index}")
            return state + 1, Watched(self.events, index, {"loss": (state * 1.0, jnp.ones(()))})

        return Moment(f"moment {index}", {"event": "count", "step": index}, run)


class Watched(dict):
    """Metrics that note when they are read."""

    def __init__(self, events, index, values):
        super().__init__(values)
        self._events, self._index = events, index

    def values(self):
        self._events.append(f"read {self._index}")
        return super().values()


@pytest.fixture
def chronicle(tmp_path):
    with (
        MetricsLog(tmp_path / "metrics.jsonl") as log,
        MetricsLog(tmp_path / "timings.jsonl") as timings,
    ):
        yield Chronicle(log, timings, Progress(1, quiet=True), "digest", 1e9, StopRequest())


@pytest.fixture
def checkpoints(tmp_path):
    with Checkpoints(tmp_path / "checkpoints", keep=99) as checkpoints:
        yield checkpoints


def test_metrics_are_read_one_moment_late_but_all_of_them(chronicle, checkpoints):
    counting = Counting(3)
    state = live(jnp.int32(0), counting.agenda, chronicle, checkpoints, stage="s")
    assert state == 3
    assert counting.events == ["run 0", "run 1", "read 0", "run 2", "read 1", "read 2"]
    assert read_metrics(chronicle.log.path) == [
        {"stage": "s", "event": "count", "step": i, "loss": float(i)} for i in range(3)
    ]
    assert [r["position"] for r in read_metrics(chronicle.timings.path)] == [0, 1, 2]


def test_a_moment_without_a_record_or_with_nothing_to_do_leaves_no_line(chronicle, checkpoints):
    agenda = [
        Moment("silent", {}, lambda state: (state, {"loss": (1.0, 1.0)})),
        Moment("idle", {"event": "idle"}, lambda state: (state, None)),
        Moment("plain", {"event": "plain"}, lambda state: (state, {"recall": np.ones(2)})),
        Moment("empty", {"event": "empty"}, lambda state: (state, {})),
    ]
    live(jnp.int32(0), agenda, chronicle, checkpoints, stage="s")
    lines = read_metrics(chronicle.log.path)
    assert lines == [
        {"stage": "s", "event": "plain", "recall": [1.0, 1.0]},
        {"stage": "s", "event": "empty"},
    ]


def test_the_end_is_saved_and_every_moment_if_there_is_no_time_between_saves(
    chronicle, checkpoints
):
    live(jnp.int32(0), Counting(3).agenda, chronicle, checkpoints, stage="end")
    assert checkpoints.steps() == [3]
    eager = dataclasses.replace(chronicle, save_seconds=0.0)
    live(jnp.int32(0), Counting(3).agenda, eager, checkpoints, stage="s")
    assert checkpoints.steps() == [1, 2, 3]
    for step in (1, 2, 3):
        restored = checkpoints.restore(jnp.int32(0), step=step)
        assert restored.learner == step
        assert restored.metadata["position"] == step
        assert restored.metadata["moments"] == 3
    assert restored.metadata["metrics_bytes"] == chronicle.log.position
    assert restored.metadata["timings_bytes"] == chronicle.timings.position


def test_every_saved_position_goes_on_to_the_same_bytes(tmp_path):
    whole, sizes = None, None
    for start in (0, 1, 2):
        folder = tmp_path / str(start)
        with Checkpoints(folder / "c", keep=9) as checkpoints:
            for first in sorted({0, start}):
                kept = (0, 0)
                if first:
                    meta = checkpoints.restore(jnp.int32(0), step=first).metadata
                    kept = (meta["metrics_bytes"], meta["timings_bytes"])
                with (
                    MetricsLog(folder / "m", kept[0]) as log,
                    MetricsLog(folder / "t", kept[1]) as timings,
                ):
                    chronicle = Chronicle(
                        log, timings, Progress(1, quiet=True), "d", 0.0, StopRequest()
                    )
                    live(
                        jnp.int32(first),
                        Counting(3).agenda,
                        chronicle,
                        checkpoints,
                        stage="s",
                        start=first,
                    )
        text = (folder / "m").read_bytes()
        positions = [r["position"] for r in read_metrics(folder / "t")]
        whole, sizes = whole or text, sizes or positions
        assert text == whole
        assert positions == sizes == [0, 1, 2]


def test_a_stop_request_leaves_at_the_end_of_the_moment_with_everything_saved(
    chronicle, checkpoints
):
    counting = Counting(4)
    stop = chronicle.stop

    def ask(state):
        stop.signum = signal.SIGTERM
        return state + 1, {"loss": (7.0, 1.0)}

    agenda = [*counting.agenda[:2], Moment("asked", {"event": "count", "step": 2}, ask)]
    agenda += counting.agenda[2:]
    with pytest.raises(Stopped, match="SIGTERM") as stopped:
        live(jnp.int32(0), agenda, chronicle, checkpoints, stage="s")
    assert stopped.value.signum == signal.SIGTERM
    assert checkpoints.steps() == [3]
    restored = checkpoints.restore(jnp.int32(0))
    assert restored.learner == 3
    assert [r["loss"] for r in read_metrics(chronicle.log.path)] == [0.0, 1.0, 7.0]
    assert restored.metadata["metrics_bytes"] == chronicle.log.position
    assert restored.metadata["timings_bytes"] == chronicle.timings.position


@pytest.fixture
def usual_interrupt():
    """Python's own handler of SIGINT: a process started in the background ignores it."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


@pytest.mark.usefixtures("usual_interrupt")
def test_the_first_signal_is_remembered_and_the_second_acts_as_usual():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with StopRequest().listening() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signum == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_checkpoint_of_another_agenda_is_refused():
    agenda = Counting(3).agenda
    require_same({"digest": "d", "moments": 3}, "d", agenda, "here")
    for metadata in ({"digest": "e", "moments": 3}, {"digest": "d", "moments": 4}):
        with pytest.raises(CheckpointError, match=r"here: .* another configuration"):
            require_same(metadata, "d", agenda, "here")


@dataclasses.dataclass
class Settings:
    keep: int = 3
    save_seconds: float = 0.0


def test_stages_that_are_done_again_forget_the_checkpoints_of_later_ones(tmp_path):
    def through(run, *names):
        return [run.stage(Stage(n, lambda: jnp.int32(0), Counting(2).agenda, None)) for n in names]

    assert through(Run(tmp_path / "r", Settings(), quiet=True), "a", "b") == [2, 2]
    root = tmp_path / "r" / "checkpoints"
    text = (tmp_path / "r" / "metrics.jsonl").read_bytes()
    assert (root / "b" / "2").is_dir()
    (root / "a" / "2").rename(root / "a" / "gone")  # the newest is lost
    run = Run(tmp_path / "r", Settings(), resume=True, quiet=True)
    assert through(run, "a") == [2]
    assert not (root / "b").exists()
    assert run.has("a") and not run.has("b")
    assert through(run, "b") == [2]
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == text
    assert run.seconds("b")["total"] > 0


def test_a_stop_request_between_stages_begins_no_other_and_leaves_no_directory(tmp_path):
    stop = StopRequest()
    stop.signum = signal.SIGINT
    run = Run(tmp_path / "r", Settings(), quiet=True, stop=stop)
    with pytest.raises(Stopped):
        run.stage(Stage("a", lambda: jnp.int32(0), Counting(2).agenda, None))
    assert not (tmp_path / "r").exists()


def test_two_processes_do_not_work_in_one_directory(tmp_path):
    other = []

    def meddle(state):
        run = Run(tmp_path / "r", Settings(), resume=True, quiet=True)
        with pytest.raises(ConfigError, match=r"workdir = .* another process is at work in it"):
            run.stage(Stage("a", lambda: jnp.int32(0), Counting(1).agenda, None))
        other.append(state)
        return state, {}

    agenda = [Moment("meddling", {}, meddle)]
    Run(tmp_path / "r", Settings(), quiet=True).stage(Stage("a", lambda: 0, agenda, None))
    assert other == [0]
    again = Run(tmp_path / "r", Settings(), resume=True, quiet=True)
    assert again.stage(Stage("a", lambda: jnp.int32(0), agenda, None)) == 0


def test_the_configuration_of_a_run_is_kept_beside_it(tmp_path):
    run = Run(tmp_path / "r", Settings(), quiet=True)
    assert not (tmp_path / "r").exists()
    run.claim()
    run.claim()
    saved = json.loads((tmp_path / "r" / "config.json").read_text())
    config = {"keep": 3, "save_seconds": 0.0}
    assert saved == {"digest": run.digest, "config": config, "inputs": {}}
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["config.json", "lock"]


@pytest.mark.parametrize(("resume", "keep"), [(False, 3), (False, 2), (True, 2)])
def test_a_directory_in_which_another_run_has_begun_meanwhile_is_refused(tmp_path, resume, keep):
    """Both look before either writes: ``keep`` stands for any setting by which runs differ."""
    first, second = Settings(), dataclasses.replace(Settings(), keep=keep)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sleeplm.runtime.run.lasting", lambda config: config)
        late = Run(tmp_path / "r", second, quiet=True, resume=resume)
        Run(tmp_path / "r", first, quiet=True, resume=resume).claim()
    saved = (tmp_path / "r" / "config.json").read_text()
    for _ in range(2):  # it has not become its own by being asked for
        with pytest.raises(ConfigError, match=r"^workdir = .*another run has begun in it mean"):
            late.stage(Stage("a", lambda: jnp.int32(0), Counting(1).agenda, None))
    assert (tmp_path / "r" / "config.json").read_text() == saved
    assert not (tmp_path / "r" / "checkpoints").exists()


def test_of_two_runs_that_begin_at_once_the_second_writes_nothing(tmp_path):
    """It comes while the first has the lock, and again when the first has let it go."""
    place, write, refused = tmp_path / "r", Run._write_config, []
    first, second = (Run(place, Settings(), quiet=True) for _ in range(2))

    def slowly(run, saved):
        with pytest.raises(ConfigError, match="another process is at work in it") as error:
            second.claim()
        refused.append(error)
        write(run, saved)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_write_config", slowly)
        first.claim()
    assert len(refused) == 1
    there = pathlib.Path.exists
    with pytest.MonkeyPatch.context() as patch:
        looks = iter([False])  # as it was just before the first had written
        patch.setattr(pathlib.Path, "exists", lambda path: next(looks, None) or there(path))
        patch.setattr(Run, "_write_config", lambda *_: pytest.fail("it has written"))
        with pytest.raises(ConfigError, match="another run has begun in it meanwhile"):
            second.claim()


def test_runs_that_are_started_in_one_second_get_directories_of_their_own(monkeypatch, capsys):
    places = []

    def begun(directory, *args, **kwargs):
        places.append(str(directory))
        raise ConfigError("run", "", "is not carried out here")

    monkeypatch.setattr("sleeplm.runtime.run.Run", begun)
    for _ in range(2):
        assert cli.main(["run", EXPERIMENT]) == 2
    assert "is not carried out here" in capsys.readouterr().err
    assert places[0] != places[1]
    assert all(re.fullmatch(r"runs/retention-\d{8}-\d{6}-\d{6}", place) for place in places)


def test_what_a_run_leaves_that_was_killed_with_the_lock_does_not_stop_the_next(tmp_path):
    (tmp_path / "lock").touch()
    Run(tmp_path, Settings(), quiet=True).claim()
    other = tmp_path / "other"
    other.mkdir()
    (other / "lock").write_text("of another program")
    with pytest.raises(ConfigError, match=r"which would replace its lock: name another"):
        Run(other, Settings(), quiet=True)


def test_a_stage_without_moments_keeps_its_state_and_needs_only_shapes_to_go_on(tmp_path):
    def through(run, state):
        return run.stage(Stage("kept", lambda: state, [], None))

    run = Run(tmp_path / "r", Settings(), quiet=True)
    assert not run.has() and not run.has("kept")
    assert through(run, jnp.float32(7)) == 7
    assert run.has() and run.has("kept") and not run.has("a")
    again = Run(tmp_path / "r", Settings(), resume=True, quiet=True)
    assert through(again, jax.ShapeDtypeStruct((), jnp.float32)) == 7


def test_a_checkpoint_that_is_not_yet_whole_is_not_one_that_a_run_has(tmp_path):
    run = Run(tmp_path / "r", Settings(), quiet=True)
    (tmp_path / "r" / "checkpoints" / "a" / "0.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not run.has("a") and not run.has()


@pytest.mark.parametrize(("place", "said"), [("arm 2/19", "arm 2/19 a: "), ("", "a: ")])
def test_lines_say_which_part_of_the_run_a_stage_is(tmp_path, capsys, place, said):
    run = Run(tmp_path / "r", Settings())
    run.stage(Stage("a", lambda: jnp.int32(0), Counting(2).agenda, None, place))
    assert f"[ 50%] {said}moment 0 loss 0" in capsys.readouterr().err
    assert {line["stage"] for line in read_metrics(tmp_path / "r" / "metrics.jsonl")} == {"a"}


def test_a_run_goes_on_only_with_what_its_settings_named_when_it_began(tmp_path):
    def begin(**options):
        return Run(tmp_path / "r", Settings(), quiet=True, **options)

    run = begin()
    run.reads("world", "facts:mine.jsonl", b"one")
    run.claim()
    again = begin(resume=True)
    again.reads("world", "facts:mine.jsonl", b"one")
    again.reads("general", "new.txt", b"a run of before knew nothing of it")
    with pytest.raises(ConfigError, match=r"world = 'facts:mine.jsonl': has other content than"):
        begin(resume=True).reads("world", "facts:mine.jsonl", b"two")


class Killed(BaseException):
    pass


def killed(*_):
    raise Killed


def test_a_run_that_was_killed_before_its_configuration_was_whole_begins_anew(tmp_path):
    place = tmp_path / "r"
    run = Run(place, Settings(), quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pathlib.Path, "replace", killed)
        with pytest.raises(Killed):
            run.claim()
    assert sorted(path.name for path in place.iterdir()) == ["config.partial", "lock"]
    (place / "notes.txt").write_text("mine")  # what no run writes may be there
    again = Run(place, Settings(), quiet=True)
    again.stage(Stage("a", lambda: jnp.int32(0), Counting(1).agenda, None))
    assert (place / "notes.txt").read_text() == "mine"
    names = {path.name for path in place.iterdir()} - {"config.json", "notes.txt"}
    assert names <= set(WRITTEN) and not (place / "config.partial").exists()
