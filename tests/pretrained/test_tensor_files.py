"""Tensor files that others read, written piece by piece; folders that are whole or not there."""

from __future__ import annotations

import hashlib
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from sleeplm.core.errors import ConfigError
from sleeplm.pretrained.memories import named
from sleeplm.pretrained.tensor_files import digest_of, digest_of_file, new_folder, write_tensors

PARTS = {
    "flags": np.array([True, False, True]),
    "deep": {"half": jnp.arange(5, dtype=jnp.bfloat16), "whole": np.ones((2, 3), np.float32)},
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "one": np.int32(7),
    "none": np.zeros((0, 4), np.float32),
}


def test_the_library_reads_what_is_written(tmp_path):
    path = tmp_path / "x.safetensors"
    digest = write_tensors(path, named(PARTS), {"format": "pt"})
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() == digest_of_file(path)
    found = load_file(path)
    assert set(found) == {"flags", "deep.half", "deep.whole", "turned", "one", "none"}
    for tensor in named(PARTS):
        assert found[tensor.name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[tensor.name], tensor.read())
    with safe_open(path, framework="np") as file:
        assert file.metadata() == {"format": "pt"}


def test_tensors_are_read_one_after_the_other_while_the_file_is_written(tmp_path):
    path, sizes = tmp_path / "x", []

    def watched(tensor):
        def read():
            sizes.append(path.stat().st_size)
            return tensor.read()

        return tensor._replace(read=read)

    large = {f"t{i}": np.ones((1 << 16,), np.float32) for i in range(4)}
    write_tensors(path, [watched(tensor) for tensor in named(large)], {})
    assert len(sizes) == 4 and sizes == sorted(sizes) and sizes[3] - sizes[1] == 2 * (4 << 16)


def test_the_digest_knows_names_shapes_and_types_but_no_order():
    first = digest_of(named({"a": np.zeros(4, np.float32), "b": np.ones(2, np.float32)}))
    assert first == digest_of(named({"b": np.ones(2, np.float32), "a": np.zeros(4, np.float32)}))
    for other in (
        {"a": np.zeros((2, 2), np.float32), "b": np.ones(2, np.float32)},
        {"a": np.zeros(4, np.int32), "b": np.ones(2, np.float32)},
        {"c": np.zeros(4, np.float32), "b": np.ones(2, np.float32)},
    ):
        assert digest_of(named(other)) != first


def test_a_folder_appears_when_it_is_complete_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "out"
    with pytest.raises(RuntimeError), new_folder(target, replaceable=lambda p: False) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert list(target.parent.iterdir()) == []
    with new_folder(target, replaceable=lambda p: False) as folder:
        (folder / "whole").write_text("x")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["whole"]


def any_folder(path):
    return True


@pytest.mark.parametrize("name", [".", "..", "../here", "deep/.."])
@pytest.mark.parametrize("force", [False, True])
def test_the_folder_that_a_process_stands_in_is_refused(tmp_path, monkeypatch, name, force):
    """It would be renamed away under whoever stands there."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    made = new_folder(pathlib.Path(name), force=force, replaceable=any_folder)
    with pytest.raises(ConfigError) as error, made:
        pass
    assert error.value.field == "out" and "name one inside it" in str(error.value)
    assert list(tmp_path.iterdir()) == [here] and list(here.iterdir()) == []


@pytest.mark.parametrize("name", ["out", "./out", "deep/../out", "../here/out", "link"])
def test_a_name_may_be_relative_and_a_link(tmp_path, monkeypatch, name):
    here = tmp_path / "here"
    here.mkdir()
    (here / "link").symlink_to(here / "out")
    monkeypatch.chdir(here)
    for content in ("first", "second"):
        with new_folder(pathlib.Path(name), force=True, replaceable=any_folder) as folder:
            (folder / content).write_text("x")
        assert [path.name for path in (here / "out").iterdir()] == [content]
    assert (here / "link").is_symlink()


def test_an_old_folder_stays_until_the_new_one_is_complete(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("x")
    for force, mine in ((False, True), (True, False)):
        keep = pytest.raises(ConfigError, match="out = ")
        with keep, new_folder(target, force=force, replaceable=lambda p, m=mine: m):
            pass
    again = {"force": True, "replaceable": lambda p: True}
    with pytest.raises(RuntimeError), new_folder(target, **again):
        raise RuntimeError
    assert [path.name for path in target.iterdir()] == ["old"]
    with new_folder(target, **again) as folder:
        (folder / "new").write_text("x")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
