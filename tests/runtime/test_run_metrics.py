from __future__ import annotations

import io
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.core.errors import CheckpointError, ConfigError
from sleeplm.runtime.metrics import MetricsLog, Progress, mean_metrics, plain, read_metrics


def test_means_are_sums_over_weights_and_a_weight_of_zero_is_left_out():
    metrics = {
        "loss": (jnp.float32(6), jnp.float32(4)),
        "unseen": (jnp.float32(0), jnp.float32(0)),
        "accuracy": (np.int32(3), 3),
    }
    means = mean_metrics(metrics)
    assert means == {"loss": 1.5, "accuracy": 1.0}
    assert all(type(value) is float for value in means.values())


def test_values_become_plain_json_and_what_is_not_finite_becomes_null():
    record = {
        "loss": jnp.float32(0.5),
        "steps": np.int64(3),
        "bad": [math.nan, np.float32(np.inf)],
        "done": True,
        "row": jnp.arange(2),
        "name": "night",
        "none": None,
    }
    assert json.dumps(plain(record)) == (
        '{"loss": 0.5, "steps": 3, "bad": [null, null], "done": true, "row": [0, 1], '
        '"name": "night", "none": null}'
    )
    with pytest.raises(ConfigError, match="must be numbers, strings"):
        plain({"what": object()})


def write_steps(log: MetricsLog, start: int, stop: int) -> None:
    for step in range(start, stop):
        log.write({"step": step, "loss": 1 / (step + 1)})


def test_a_resumed_file_is_bit_identical_to_that_of_an_uninterrupted_run(tmp_path):
    with MetricsLog(tmp_path / "whole.jsonl") as log:
        write_steps(log, 0, 10)
    with MetricsLog(tmp_path / "run" / "metrics.jsonl") as log:
        write_steps(log, 0, 6)
        saved = log.position
        write_steps(log, 6, 8)
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 8, "lo')  # killed in the middle of a line
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 8
    with MetricsLog(tmp_path / "run" / "metrics.jsonl", position=saved) as log:
        assert log.position == saved
        write_steps(log, 6, 10)
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "run" / "metrics.jsonl"
    assert whole.read_bytes() == resumed.read_bytes()


def test_every_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    with MetricsLog(tmp_path / "m.jsonl") as log:
        log.write({"step": 0})
        assert read_metrics(tmp_path / "m.jsonl") == [{"step": 0}]
        assert log.position == (tmp_path / "m.jsonl").stat().st_size


def test_a_new_run_starts_afresh_and_none_appends(tmp_path):
    for position, expected in ((0, [1]), (0, [2]), (None, [2, 3])):
        with MetricsLog(tmp_path / "m.jsonl", position=position) as log:
            log.write({"step": expected[-1]})
        assert [r["step"] for r in read_metrics(tmp_path / "m.jsonl")] == expected


def test_a_file_shorter_than_its_checkpoint_says_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="has 0 bytes, but the checkpoint was made after 10"):
        MetricsLog(tmp_path / "m.jsonl", position=10)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_plain_lines_come_at_most_every_interval_with_time_to_go():
    stream, clock = io.StringIO(), Clock()
    with Progress(200, done=100, stream=stream, interval=5.0, clock=clock) as progress:
        for step in range(100):
            clock.now += 1.0
            progress.update(f"night 3/8 seeding {step}/100", advance=1, loss=0.4123, kl=None)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[ 50%] night 3/8 seeding 0/100 loss 0.412, 1:39 to go"
    assert lines[1] == "[ 53%] night 3/8 seeding 5/100 loss 0.412, 1:34 to go"
    assert len(lines) == 20


def test_quiet_progress_writes_nothing_and_a_printed_line_is_not_throttled():
    stream = io.StringIO()
    with Progress(10, quiet=True, stream=stream) as progress:
        progress.update("night 1/8", advance=1)
        progress.print("saved")
    assert stream.getvalue() == ""
    with Progress(10, stream=stream) as progress:
        progress.update("night 1/8")
        progress.print("[saved] checkpoint 1")
        progress.print("[saved] checkpoint 2")
    assert stream.getvalue().splitlines()[1:] == ["[saved] checkpoint 1", "[saved] checkpoint 2"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_one_line_is_redrawn_with_the_description(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress(10, stream=stream) as progress:
        progress.update("night [2/8]", advance=5, loss=0.5)
        progress.print("kept")
    assert "night [2/8] loss 0.5" in stream.getvalue()
    assert "50%" in stream.getvalue()
    assert "kept" in stream.getvalue()
