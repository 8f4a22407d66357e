from __future__ import annotations

import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.core.errors import CheckpointError, ConfigError
from sleeplm.runtime.checkpoint import Checkpoints


class Moments(NamedTuple):
    mean: jax.Array
    count: jax.Array


def make_learner(seed: int = 0, width: int = 5) -> dict:
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "params": [{"w": jax.random.normal(keys[0], (3, width))}, {"b": jnp.full((7,), 0.1)}],
        "half": jax.random.normal(keys[1], (4, 4)).astype(jnp.bfloat16),
        "moments": Moments(jnp.array([jnp.nan, -0.0, jnp.inf]), jnp.int32(seed)),
        "nothing": jnp.zeros((0, 3)),
        "key": keys[2],
        "keys": keys,
    }


def bits(leaf: object) -> tuple[str, tuple[int, ...], bytes]:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        kind = f"key {jax.random.key_impl(leaf)}"
        return kind, leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes()
    return str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()


def assert_same_bits(a: object, b: object) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert [bits(x) for x in jax.tree.leaves(a)] == [bits(x) for x in jax.tree.leaves(b)]


def make_stream() -> grain.DatasetIterator:
    dataset = grain.MapDataset.range(1000).shuffle(seed=1).repeat().to_iter_dataset()
    return iter(dataset.batch(3))


def test_what_is_saved_is_restored_bit_by_bit_with_keys_and_bfloat16(tmp_path):
    learner = make_learner(3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, learner, None, {"night": 2, "phase": "wake"})
        restored = checkpoints.restore(make_learner(0))
    assert restored.step == 7
    assert restored.metadata == {"night": 2, "phase": "wake"}
    assert_same_bits(restored.learner, learner)


def test_shapes_alone_are_enough_to_restore_and_their_shardings_are_kept(tmp_path):
    learner = make_learner(3)
    mesh = jax.make_mesh((1,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    shapes = jax.eval_shape(lambda: learner)
    shapes["half"] = jax.ShapeDtypeStruct((4, 4), jnp.bfloat16, sharding=sharding)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, learner, None, {})
        restored = checkpoints.restore(shapes)
    assert_same_bits(restored.learner, learner)
    assert restored.learner["half"].sharding == sharding


@pytest.mark.parametrize("like", [make_learner, lambda: jax.eval_shape(make_learner)])
def test_all_leaves_are_committed_so_that_a_restored_learner_is_compiled_for_once(tmp_path, like):
    step = jax.jit(lambda learner: jax.tree.map(lambda x: x, learner))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_learner(3), None, {})
        restored = checkpoints.restore(like()).learner
    for learner in (restored, step(restored)):
        assert {leaf.committed for leaf in jax.tree.leaves(learner)} == {True}


def test_a_grain_iterator_goes_on_where_it_was_at_the_save_not_where_it_is_now(tmp_path):
    stream = make_stream()
    next(stream)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_learner(), stream, {})
        expected = [next(stream).tolist() for _ in range(3)]
        restored = checkpoints.restore(make_learner(), stream=make_stream())
        assert [next(restored.stream).tolist() for _ in range(3)] == expected


def test_a_stream_state_may_be_plain_json(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_learner(), {"epoch": 1, "row": [2, 3]}, {})
        assert checkpoints.restore(make_learner()).stream == {"epoch": 1, "row": [2, 3]}
        with pytest.raises(CheckpointError, match="without a data iterator"):
            checkpoints.restore(make_learner(), stream=make_stream())


def test_the_values_saved_are_those_of_the_call_even_when_buffers_are_donated_after_it(tmp_path):
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    control = {"w": jnp.zeros((500, 500)) + 1}
    step(control)
    assert control["w"].is_deleted(), "donation has no effect here, so this test shows nothing"
    learner = {f"w{i}": jnp.full((500, 500), float(i)) for i in range(10)}
    host = np.arange(100_000)
    expected = jax.tree.map(np.array, {**learner, "host": host})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {**learner, "host": host}, None, {})
        host[:] = -1
        learner = step(step(learner))
        jax.block_until_ready(learner)
        assert_same_bits(checkpoints.restore(expected).learner, expected)


def test_the_last_checkpoints_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(4):
            checkpoints.save(step, {"x": jnp.float32(step)}, None, {})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]


def test_saving_a_step_again_replaces_it(tmp_path):
    with Checkpoints(tmp_path, asynchronous=False) as checkpoints:
        checkpoints.save(1, {"x": jnp.float32(1)}, None, {"take": 1})
        checkpoints.save(1, {"x": jnp.float32(2)}, None, {"take": 2})
        restored = checkpoints.restore({"x": jnp.float32(0)})
    assert restored.metadata == {"take": 2}
    assert float(restored.learner["x"]) == 2


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("run")
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(1, make_learner(1), make_stream(), {"step": 1})
        checkpoints.save(2, make_learner(2), make_stream(), {"step": 2})
    return directory


def largest_file(directory: pathlib.Path) -> pathlib.Path:
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(directory: pathlib.Path) -> None:
    data = largest_file(directory / "learner")
    data.write_bytes(data.read_bytes()[:-10])


def flip_one_bit(directory: pathlib.Path) -> None:
    data = largest_file(directory / "learner")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)


def empty(directory: pathlib.Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


DAMAGES = {
    "truncated": truncate,
    "flipped bit": flip_one_bit,
    "empty directory": empty,
    "no metadata": lambda d: (d / "metadata" / "data.json").unlink(),
    "no learner": lambda d: shutil.rmtree(d / "learner"),
    "no stream": lambda d: shutil.rmtree(d / "stream"),
    "garbled checksums": lambda d: (d / "checksums.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_newest_checkpoint_is_reported_in_one_line_and_the_one_before_is_used(
    two_checkpoints, tmp_path, damage
):
    run = shutil.copytree(two_checkpoints, tmp_path / "run")
    damage(run / "2")
    lines: list[str] = []
    with Checkpoints(run, keep=1, warn=lines.append) as checkpoints:
        restored = checkpoints.restore(make_learner(), stream=make_stream())
        assert restored.metadata == {"step": 1}
        assert_same_bits(restored.learner, make_learner(1))
        assert len(lines) == 1
        assert str(run / "2") in lines[0]
        assert "\n" not in lines[0]
        # The damaged one no longer counts, so it does not push the good one out.
        assert checkpoints.steps() == [1]
        checkpoints.save(2, make_learner(2), None, {"step": 2})
        assert_same_bits(checkpoints.restore(make_learner()).learner, make_learner(2))
    assert (run / "damaged-2").is_dir()


def test_when_no_checkpoint_can_be_read_or_there_is_none_one_line_says_so(
    two_checkpoints, tmp_path
):
    run = shutil.copytree(two_checkpoints, tmp_path / "run")
    for step in ("1", "2"):
        truncate(run / step)
    lines: list[str] = []
    with Checkpoints(run, warn=lines.append) as checkpoints:
        with pytest.raises(CheckpointError, match=r"none of the checkpoints \[1, 2\] can be read"):
            checkpoints.restore(make_learner())
        assert len(lines) == 2
        with pytest.raises(CheckpointError, match="2: damaged checkpoint"):
            checkpoints.restore(make_learner(), step=2)
        with pytest.raises(CheckpointError, match=r"5: no such checkpoint; there are \[1, 2\]"):
            checkpoints.restore(make_learner(), step=5)
    with (
        Checkpoints(tmp_path / "new") as checkpoints,
        pytest.raises(CheckpointError, match="there is no checkpoint to continue from"),
    ):
        checkpoints.restore(make_learner())


@pytest.mark.parametrize(
    ("like", "what"),
    [
        (lambda: make_learner(width=6), r"is float32\[3,5\] there and float32\[3,6\] here"),
        (lambda: {**make_learner(), "more": jnp.zeros(2)}, r"absent there and float32\[2\] here"),
        (lambda: {"key": jax.random.key(0)}, r"absent here \(and 6 more leaves differ\)"),
    ],
)
def test_a_checkpoint_of_another_learner_is_an_error_not_a_fallback(two_checkpoints, like, what):
    with (
        Checkpoints(two_checkpoints) as checkpoints,
        pytest.raises(CheckpointError, match=what) as caught,
    ):
        checkpoints.restore(like())
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in two_checkpoints.iterdir()) == ["1", "2"]


def test_bad_settings_and_metadata_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="checkpoint.keep = 0"):
        Checkpoints(tmp_path, keep=0)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ConfigError, match=r"checkpoint.metadata .* must be JSON-able"):
            checkpoints.save(1, make_learner(), None, {"a": object()})
        assert checkpoints.steps() == []
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be used"):
        Checkpoints(tmp_path / "file")


SAVE_FOREVER = textwrap.dedent(
    """
    import itertools, sys
    import jax.numpy as jnp
    from sleeplm.runtime.checkpoint import Checkpoints

    with Checkpoints(sys.argv[1], keep=2) as checkpoints:
        first = max(checkpoints.steps(), default=-1) + 1
        for step in itertools.count(first):
            learner = {f"w{i}": jnp.full((200, 200), float(step)) for i in range(20)}
            checkpoints.save(step, learner, {"step": step}, {"step": step})
            print(step, flush=True)
    """
)


@pytest.mark.slow
def test_after_a_kill_at_any_moment_a_complete_checkpoint_is_restored(tmp_path):
    like = {f"w{i}": jnp.zeros((200, 200)) for i in range(20)}
    reached = -1
    for round_ in range(5):
        command = [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for _ in range(3 + round_):
                started = int(process.stdout.readline())
            time.sleep(0.03 * round_)
            process.send_signal(signal.SIGKILL)
        warnings: list[str] = []
        with Checkpoints(tmp_path, keep=2, warn=warnings.append) as checkpoints:
            restored = checkpoints.restore(like)
        assert not warnings
        # A save returns when the one before it is complete.
        assert restored.step >= max(reached, started - 1)
        assert restored.metadata == restored.stream == {"step": restored.step}
        for leaf in jax.tree.leaves(restored.learner):
            np.testing.assert_array_equal(leaf, np.full((200, 200), restored.step, np.float32))
        assert not [p for p in tmp_path.iterdir() if not p.name.isdigit()]
        reached = restored.step
