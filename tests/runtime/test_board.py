"""What TensorBoard is shown of a run."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import signal
import struct

import jax.numpy as jnp
import pytest

from sleeplm.runtime.board import EVENTS, scalars
from sleeplm.runtime.lifecycle import Moment, Stopped, StopRequest
from sleeplm.runtime.metrics import read_metrics
from sleeplm.runtime.run import Run, Stage

if importlib.util.find_spec("tensorboardX") is None:
    pytest.skip("needs tensorboardX: pip install 'sleeplm[tensorboard]'", allow_module_level=True)
from tensorboardX.proto import event_pb2 as events


@dataclasses.dataclass
class Settings:
    keep: int = 3
    save_seconds: float = 1e9


def shown(run: Run) -> dict[str, list[tuple[str, int, float]]]:
    """(chart, step, number) by stage, as they are in the files."""
    found: dict[str, list[tuple[str, int, float]]] = {}
    for path in sorted((run.directory / "tensorboard").glob(EVENTS)):
        data, at = path.read_bytes(), 0
        lines = found.setdefault(path.parent.name, [])
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = events.Event.FromString(data[at + 12 : at + 12 + length])
            lines += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            at += 16 + length
    return found


def stage(name: str, stop: StopRequest | None = None) -> Stage:
    """Four moments, of which the third asks to stop."""

    def moment(number: int) -> Moment:
        def run(state):
            if stop is not None and number == 2:
                stop.signum = signal.SIGTERM
            return state + 1, {"loss": (jnp.array([number, 0.5]), jnp.ones(2))}

        return Moment("", {"event": "wake", "step": 10 * number}, run)

    return Stage(name, lambda: jnp.int32(0), [moment(i) for i in range(4)], None)


def test_a_line_has_a_chart_for_every_number_and_every_learner():
    record = {"stage": "sleep", "event": "exam", "when": "dusk", "step": 90, "day": 1}
    record |= {"recall": [[1, 0.5, None], [None]], "kl": [0.25, None], "said": [["a"], ["b"]]}
    assert list(scalars(record | {"rate": 0.5, "bad": None, "plain": True})) == [
        ("exam/dusk/day", 1),
        ("exam/dusk/recall/0", 0.75),
        ("exam/dusk/kl/0", 0.25),
        ("exam/dusk/rate", 0.5),
    ]


def test_a_run_shows_its_metrics_by_stage(tmp_path):
    run = Run(tmp_path / "r", Settings(), quiet=True, tensorboard=True)
    for name in ("a", "b"):
        run.stage(stage(name))
    found = shown(run)
    assert found.keys() == {"a", "b"} and found["a"] == found["b"]
    assert found["a"][:4] == [
        *(("wake/loss/0", 0, 0.0), ("wake/loss/1", 0, 0.5)),
        *(("wake/loss/0", 10, 1.0), ("wake/loss/1", 10, 0.5)),
    ]
    assert len(found["a"]) == 8


@pytest.mark.parametrize("before", [False, True])
def test_what_is_resumed_shows_what_a_run_shows_that_was_not_stopped(tmp_path, before):
    """Also where it is asked for only now: that changes no setting, and stages are over already."""
    whole = Run(tmp_path / "whole", Settings(), quiet=True, tensorboard=True)
    for name in ("a", "b"):
        whole.stage(stage(name))
    stop, place = StopRequest(), tmp_path / "r"
    first = Run(place, Settings(), quiet=True, stop=stop, tensorboard=before)
    first.stage(stage("a"))
    with pytest.raises(Stopped):
        first.stage(stage("b", stop))
    with (place / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "b", "event": "wake", "step": 30, "loss": 9}\n')  # after the save
    again = Run(place, Settings(), quiet=True, resume=True, tensorboard=True)
    for name in ("a", "b"):
        again.stage(stage(name))
    assert shown(again) == shown(whole)
    metrics = [read_metrics(run.directory / "metrics.jsonl") for run in (again, whole)]
    assert metrics[0] == metrics[1]


def test_nothing_is_shown_that_nobody_asked_for_and_no_other_file_is_removed(tmp_path):
    mine = pathlib.Path(tmp_path / "r" / "tensorboard" / "a" / "notes")
    run = Run(tmp_path / "r", Settings(), quiet=True)
    run.stage(stage("a"))
    assert not (run.directory / "tensorboard").exists()
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    run = Run(tmp_path / "r", Settings(), quiet=True, resume=True, tensorboard=True)
    run.stage(stage("a"))
    run.stage(stage("b"))
    assert mine.read_text() == "mine" and shown(run).keys() == {"a", "b"}
