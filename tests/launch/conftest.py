"""Sweeps to run, and workers in processes of their own."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import fsspec
import pytest
from etils.epath.backend import fsspec_backend
from fsspec.implementations.memory import MemoryFileSystem

from launch.expand import expand
from launch.trials import write_trials

ROOT = pathlib.Path(__file__).parents[2]
SWEEPS = str(pathlib.Path(__file__).with_name("sweeps.py"))


class Sweep:
    """A sweep directory."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.trials = folder, []

    def __str__(self):
        return str(self.folder)

    def expand(self, *sweeps, kind="", **settings):
        self.trials = expand(f"{SWEEPS}:{kind}" if kind else SWEEPS, sweeps, settings)
        write_trials(str(self), self.trials)
        return self

    def trial(self, number=0) -> pathlib.Path:
        """The directory of a trial."""
        return self.folder / "trials" / self.trials[number].id

    def worker(self, number=0, *arguments, **environment) -> subprocess.Popen:
        """Starts a worker."""
        name = self.trials[number].id
        command = [sys.executable, "-m", "launch.worker", "--sweep", str(self), "--trial", name]
        return subprocess.Popen(
            [*command, *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def starts(self, number=0) -> int:
        """How often a trial's job was begun."""
        path = self.trial(number) / "starts"
        return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def new_sweep(tmp_path):
    """Makes sweep directories by name."""
    return lambda name: Sweep(tmp_path / name)


@pytest.fixture
def a_sweep(new_sweep) -> Sweep:
    return new_sweep("sweep")


class Bucket(MemoryFileSystem):
    """Objects in the memory of this process, under addresses of Google Cloud Storage."""

    protocol = ("gs", "gcs")
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("gs://").strip("/")


@pytest.fixture
def bucket(monkeypatch):
    """An address where what is written is kept; every reading asks the store."""
    Bucket.store.clear()
    made = Bucket(**fsspec.config.conf["gs"])
    monkeypatch.setattr(type(fsspec_backend), "_get_filesystem", lambda self, name: made)
    return "gs://bucket/sweeps/lr"
