"""A run that is killed at any moment, however often, ends as if nothing had happened."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from sleeplm.bench.arms import build_arm
from sleeplm.bench.lives import Bench, learners_of, newborns
from sleeplm.models.graft import backbone_config
from sleeplm.models.transformer import Model
from sleeplm.runtime.checkpoint import Checkpoints
from sleeplm.runtime.config import load_config

ROOT = pathlib.Path(__file__).parents[2]
LIFE = str(pathlib.Path(__file__).with_name("tiny_life.py"))
CACHE = pathlib.Path(".cache") / "pretrained"  # in the working directory of a run
STAGES = ("pretrain", "sleep", "wake_only")
SELDOM = "--config.save_seconds=60"  # where no kill falls between two moments

pytestmark = pytest.mark.slow


class Place:
    """A working directory of its own, where the tiny life is run in processes of its own."""

    def __init__(self, folder: pathlib.Path, compiled: pathlib.Path):
        self.folder, self.run = folder, folder / "run"
        folder.mkdir(exist_ok=True)
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_FLAGS": " ".join(
                flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag
            ),
        }

    def start(self, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "sleeplm", "run", LIFE, "--workdir", "run", *arguments]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def finish(self, *arguments: str, status: int = 0) -> str:
        """Runs to the end; what was said on standard error."""
        process = self.start(*arguments)
        _, said = process.communicate(timeout=400)
        assert process.returncode == status, said
        assert "Traceback" not in said
        return said

    def moments(self) -> int:
        """How many moments were finished, as far as the disk knows."""
        path = self.run / "timings.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def wait(self, process: subprocess.Popen, ready) -> None:
        """Until ``ready()``, or the process is at its end."""
        limit = time.monotonic() + 400
        while not ready() and process.poll() is None:
            assert time.monotonic() < limit, "the run does not get on"
            time.sleep(0.005)

    def metrics(self) -> bytes:
        return (self.run / "metrics.jsonl").read_bytes()

    def results(self) -> dict:
        return without_clock(json.loads((self.run / "results.json").read_text()))

    def timed(self) -> list[tuple[str, int]]:
        lines = (self.run / "timings.jsonl").read_text().splitlines()
        return [(r["stage"], r["position"]) for r in map(json.loads, lines)]

    def last(self, arm: str) -> dict[str, bytes]:
        """The bits of both learners at the end of an arm's life."""
        like = shape_of(arm)
        with Checkpoints(self.run / "checkpoints" / arm) as checkpoints:
            state = checkpoints.restore(like).learner
        return {path: bits(leaf) for path, leaf in leaves(state)}


@functools.cache
def shape_of(arm: str):
    """Learners of that arm, without their arrays."""
    config = load_config(LIFE, [])

    def make(keys):
        params = jax.vmap(Model(backbone_config(config.model)).init)(keys)
        bench = Bench(config, learners_of(config), [], None, params, {})
        return newborns(bench, build_arm(arm, config, classes=0))

    return jax.eval_shape(make, jax.random.split(jax.random.key(0), config.seeds))


def leaves(state) -> list[tuple[str, jax.Array]]:
    flat = jax.tree_util.tree_leaves_with_path(state)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in flat]


def bits(leaf: jax.Array) -> bytes:
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def without_clock(value):
    """Results without what may differ: how long it took, and how often it was saved."""
    if isinstance(value, list):
        return [without_clock(entry) for entry in value]
    if isinstance(value, dict):
        return {k: without_clock(v) for k, v in value.items() if "seconds" not in k}
    return value


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("compiled-life")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compiled) -> Place:
    """The run that nothing interrupted; not to be changed."""
    place = Place(tmp_path_factory.mktemp("whole"), compiled)
    place.finish("--quiet")
    return place


@pytest.fixture
def copy(tmp_path, whole, compiled) -> Place:
    """A copy of the finished run, to be spoilt."""
    shutil.copytree(whole.folder, tmp_path / "copy")
    return Place(tmp_path / "copy", compiled)


def assert_same_end(place: Place, whole: Place) -> None:
    assert place.metrics() == whole.metrics()
    assert place.results() == whole.results()
    assert place.timed() == whole.timed()
    for arm in ("sleep", "wake_only"):
        assert place.last(arm) == whole.last(arm)


def test_a_run_killed_again_and_again_ends_bit_identical(tmp_path, whole, compiled):
    dice = random.Random(20)
    place = Place(tmp_path / "killed", compiled)
    # After so many moments of the run, and a little later; None: soon after the process began.
    kills: list[tuple[int | None, float]] = [(None, dice.uniform(0.1, 2.5))]
    for stage in STAGES:
        moments = [n for n, (of, _) in enumerate(whole.timed(), start=1) if of == stage]
        kills.append((dice.choice(moments[:-1]), dice.choice([0, 0.05, 0.2]) * dice.random()))
    stages = set()
    for done, delay in kills:
        process = place.start("--resume", "--quiet")
        if done is not None:
            place.wait(process, lambda n=done: place.moments() >= n)
        time.sleep(delay)
        kill(process)
        stages |= {stage for stage, _ in place.timed()} if place.moments() else set()
    assert stages == set(STAGES), "kills should fall into every stage"
    process = place.start("--resume", "--quiet")
    place.wait(process, (place.run / "results.json").exists)
    time.sleep(dice.uniform(0, 0.3))
    kill(process)  # while the report is written
    process = place.start("--resume", "--quiet")
    time.sleep(dice.uniform(0.8, 1.5))
    kill(process)  # while it is written again
    place.finish("--resume", "--quiet")
    assert_same_end(place, whole)
    assert (place.run / "retention.png").stat().st_size > 0


def kill(process: subprocess.Popen) -> None:
    assert process.poll() is None, f"ended too early: {process.communicate()}"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_signals_stop_a_run_in_one_line_that_says_how_to_go_on(tmp_path, whole, compiled):
    place = Place(tmp_path / "stopped", compiled)
    shutil.copytree(whole.folder / ".cache", place.folder / ".cache")
    for signum in (signal.SIGTERM, signal.SIGINT):
        before = place.moments()
        process = place.start("--resume", "--quiet", "--config.seed=0", SELDOM)
        place.wait(process, lambda b=before: place.moments() > b + 3)
        process.send_signal(signum)
        _, said = process.communicate(timeout=60)  # its moments are short
        assert process.returncode == 128 + signum
        assert len(said.splitlines()) == 1
        assert f"stopped by {signum.name}; saved" in said
        command = said.split("Go on with: ")[1]
        assert command.split() == [
            *["sleeplm", "run", LIFE, "--config.seed=0", SELDOM, "--workdir", "run", "--resume"]
        ]
    said = place.finish(*command.split()[3:])
    assert "sleep: going on from" in said
    assert "arm 1/2 sleep: " in said and "arm 2/2 wake_only: " in said
    lines = [line for line in whole.metrics().splitlines() if b'"pretrain", "event' not in line]
    assert place.metrics().splitlines() == lines  # the backbone was found in the cache
    assert place.results() == whole.results()
    for arm in ("sleep", "wake_only"):
        assert place.last(arm) == whole.last(arm)


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_goes_on(copy, whole):
    folder = copy.run / "checkpoints" / "sleep"
    newest = max((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    for path in newest.rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    (copy.run / "results.json").unlink()
    said = copy.finish("--resume", "--quiet")
    assert said == ""
    assert (folder / f"damaged-{newest.name}").is_dir()
    assert_same_end(copy, whole)


def test_a_damaged_checkpoint_is_told_to_people(copy):
    newest = copy.run / "checkpoints" / "wake_only" / str(wake_moments(copy))
    shutil.rmtree(newest / "learner")
    (copy.run / "results.json").unlink()
    said = copy.finish("--resume")
    told = [line for line in said.splitlines() if "damaged checkpoint" in line]
    assert len(told) == 1
    assert str(newest) in told[0] and "the one before" in told[0]


def wake_moments(place: Place) -> int:
    return sum(stage == "wake_only" for stage, _ in place.timed())


def test_a_directory_with_a_run_is_not_overwritten_without_resume(whole):
    before = whole.metrics()
    said = whole.finish(status=2)
    assert len(said.splitlines()) == 1
    assert "holds a run" in said and "--resume" in said
    assert whole.metrics() == before


def test_a_run_is_not_resumed_with_other_settings_but_may_be_kept_otherwise(whole, copy):
    said = whole.finish("--resume", "--config.seed=1", status=2)
    assert len(said.splitlines()) == 1
    assert "another configuration" in said
    copy.finish("--resume", "--config.keep=5", SELDOM)


def test_a_finished_run_only_reports_again(copy):
    for name in ("report.json", "report.md", "retention.png"):
        (copy.run / name).unlink()
    shutil.rmtree(copy.run / "checkpoints")
    before = copy.metrics()
    copy.finish("--resume")
    assert copy.metrics() == before
    assert not (copy.run / "checkpoints").exists()
    for name in ("report.json", "report.md", "retention.png"):
        assert (copy.run / name).stat().st_size > 0


def test_a_run_whose_results_are_garbled_makes_them_again(copy, whole):
    (copy.run / "results.json").write_text("{")
    copy.finish("--resume", "--quiet")
    assert_same_end(copy, whole)


def test_a_damaged_cache_is_told_in_one_line_and_trained_again(copy, whole):
    shutil.rmtree(copy.run)
    store = next((copy.folder / CACHE).iterdir())
    for path in store.rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    assert len(list((copy.folder / CACHE).iterdir())) == 2  # the other learner's is whole
    short = ("--config.arms=['wake_only']", SELDOM)
    said = copy.finish(*short)
    told = [line for line in said.splitlines() if "cached backbone cannot be used" in line]
    assert len(told) == 1
    assert b'"event": "pretrain"' in copy.metrics()
    shutil.rmtree(copy.run)
    said = copy.finish(*short)
    assert "pretrained backbones found" in said
    assert b'"event": "pretrain"' not in copy.metrics()


def test_a_cache_that_cannot_be_written_does_not_stop_a_run(tmp_path, compiled):
    place = Place(tmp_path / "uncached", compiled)
    (place.folder / ".cache").write_text("a file")
    said = place.finish("--config.arms=['wake_only']", SELDOM)
    assert said.count("not cached") == 2


def test_the_whole_life_has_every_moment_and_its_sizes(whole):
    """So that the tests above cannot pass on an empty life."""
    config = load_config(LIFE, [])
    stages = [stage for stage, _ in whole.timed()]
    assert stages.count("pretrain") == config.pretrain.steps // config.pretrain.chunk
    night = 3 + config.sleep.blocks  # falling asleep, beginning, ending
    day = 1 + config.day.steps // config.day.chunk + 2  # cues, awake, two exams
    first_cues = last_questions = 1
    assert stages.count("sleep") == first_cues + config.days * (day + night) + last_questions
    assert stages.count("wake_only") == config.days * (config.day.steps + 1)
    assert len(whole.last("sleep")) > len(whole.last("wake_only")) > 40
    lines = [json.loads(line) for line in whole.metrics().splitlines()]
    losses = [line["loss"] for line in lines if line["event"] in ("pretrain", "wake", "seed")]
    assert all(len(loss) == config.seeds == 2 for loss in losses)
    assert all(one != other for one, other in losses), "the learners should not be the same"
    results = whole.results()["arms"]
    assert [run["seed"] for run in results["sleep"]] == [0, 1]
