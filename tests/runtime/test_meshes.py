"""A step gives the same on one device and on eight, however these are laid out."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from sleeplm.bench.meshes import TOLERANCE, Differences, factorisations, main
from sleeplm.core.errors import ConfigError

pytestmark = pytest.mark.slow


def differences(*arguments):
    """What the program prints, in a process of its own: this one has four devices."""
    flags = os.environ["XLA_FLAGS"].split()
    flags = [flag for flag in flags if "device_count" not in flag]
    done = subprocess.run(
        [sys.executable, "-m", "sleeplm.bench.meshes", "--json", *arguments],
        env={**os.environ, "XLA_FLAGS": " ".join(flags)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr[-2000:]
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def hold(found):
    """Held to the numbers themselves, and not to what the program makes of them."""
    for one in found:
        gaps = [one[name] for name in ("loss", "params", "others")]
        assert max(gaps) <= 1e-5 and one["integers"] == 0, one
        assert one["moved"] > 1e-3, one


def test_eight_devices_can_be_laid_out_in_twenty_ways():
    counts = [len(list(factorisations(n))) for n in (1, 2, 4, 8)]
    assert counts == [1, 4, 10, 20]
    assert {"replica": 2, "fsdp": 2, "tensor": 2} in list(factorisations(8))


def test_wake_steps_are_the_same_along_every_three_axes_at_once():
    """The other sixteen layouts of eight devices, and 1, 2 and 4: ``sleeplm.bench.meshes``."""
    meshes = [mesh for mesh in factorisations(8) if len(mesh) == 3]
    shapes = (",".join(f"{axis}={size}" for axis, size in mesh.items()) for mesh in meshes)
    status, found = differences("wake", *(f"--mesh={shape}" for shape in shapes))
    assert status == 0 and [one["mesh"] for one in found] == meshes and len(meshes) == 4
    hold(found)
    assert any(one["params"] > 0 for one in found)  # they are other programs


def test_a_night_with_rollouts_and_imitation_is_the_same_on_a_mesh():
    """Other axes: ``tests/test_laws.py`` (rows) and ``tests/bench/test_mesh_life.py``; dreams on a
    mesh: ``tests/bench/test_dream_life.py``."""
    status, found = differences("seeding", "--mesh=tensor=2")
    assert status == 0 and len(found) == 1
    hold(found)


def test_differences_that_are_too_large_and_learners_that_stand_still_are_no_equality():
    good = Differences(loss=0.0, params=TOLERANCE / 2, others=0.0, integers=0, moved=0.1)
    assert good.good
    for bad in ({"params": 2e-5}, {"loss": float("nan")}, {"integers": 1}, {"moved": 0.0}):
        assert not good._replace(**bad).good


def test_meshes_and_phases_that_there_are_not_are_refused():
    with pytest.raises(ConfigError, match=r"--mesh = 'date'.*did you mean 'data'"):
        main(["wake", "--mesh", "date=2"])
    with pytest.raises(ConfigError, match="phase = 'walk'"):
        main(["walk"])
    with pytest.raises(ConfigError, match=r"--form = 'pmpa'.*did you mean 'pmap'"):
        main(["--form", "pmpa"])
    with pytest.raises(ConfigError, match=r"--mesh = \{'data': 2\}: not with pmap"):
        main(["wake", "--form", "pmap", "--mesh", "data=2"])
