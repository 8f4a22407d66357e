"""An experiment with sweeps: the brief life of the bench, a fit over a mesh, or a mere number."""

import dataclasses
import json
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from launch.axes import fixed, product, sweep, vmap, zipit
from sleeplm.core.checks import at_least
from sleeplm.core.errors import ConfigError
from sleeplm.runtime.config import load_config
from sleeplm.runtime.learners import MeshConfig
from sleeplm.runtime.lifecycle import Moment
from sleeplm.runtime.placing import everywhere, place
from sleeplm.runtime.run import Stage

LIFE = pathlib.Path(__file__).parents[1] / "bench" / "tiny_life.py"


NAP = 0.1


def nap(state):
    time.sleep(NAP)
    return {"naps": state["naps"] + 1}, None


@dataclasses.dataclass
class Inner:
    """A nested setting."""

    rate: float = 0.1


@dataclasses.dataclass
class Job:
    """Waits, then writes its settings down; fails where it is told to."""

    seed: int = 0
    world_seed: int = 0
    seeds: int = 1
    text: str = ""
    seconds: float = 0.0
    fail: str = ""
    megabytes: int = 0
    sizes: list[int] = dataclasses.field(default_factory=list)
    inner: Inner = dataclasses.field(default_factory=Inner)
    keep: int = 3
    save_seconds: float = 1.0

    def check(self, field: str) -> None:
        at_least("seconds", self.seconds, 0)

    def run(self, run) -> None:
        run.claim()
        with open(run.directory / "starts", "a") as file:
            file.write(f"{os.getpid()}\n")
        bytearray(self.megabytes << 20)
        if self.seconds:
            moments = [Moment(f"nap {i}", {}, nap) for i in range(round(self.seconds / NAP))]
            run.stage(Stage("naps", lambda: {"naps": np.zeros(())}, moments, None))
        if self.fail == "config":
            raise ConfigError("fail", self.fail, "as it was told")
        if self.fail:
            raise RuntimeError(self.fail)
        cores = sorted(os.sched_getaffinity(0))
        (run.directory / "done.json").write_text(json.dumps({"seed": self.seed, "cores": cores}))


@dataclasses.dataclass
class Descent:
    """Fits a line to rows that lie on all devices of all processes; naps at every step."""

    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    steps: int = 24
    nap: float = 0.0
    keep: int = 3
    save_seconds: float = 0.0

    def run(self, run) -> None:
        mesh = self.mesh.make()
        run.claim()
        (run.directory / f"pid{jax.process_index()}").write_text(str(os.getpid()))
        x = np.linspace(-1, 1, 16, dtype=np.float32)
        rows = place(np.stack([x, 3 * x + 1], 1), NamedSharding(mesh, PartitionSpec("data")))

        def loss(line, rows):
            return jnp.mean((line[0] * rows[:, 0] + line[1] - rows[:, 1]) ** 2)

        @jax.jit
        def step(line, rows):
            value, slope = jax.value_and_grad(loss)(line, rows)
            return line - 0.1 * slope, value

        def move(state):
            time.sleep(self.nap)
            line, value = step(state["line"], rows)
            return {"line": line}, {"loss": (value, 1.0)}

        moments = [Moment(f"step {i}", {"step": i}, move) for i in range(self.steps)]
        newborn = {"line": np.zeros(2, np.float32)}
        run.stage(Stage("descent", lambda: everywhere(newborn, mesh), moments, None))


def get_config(kind: str = "job"):
    if kind == "life":
        return load_config(f"{LIFE}:brief", [])
    return Descent() if kind == "descent" else Job()


def sweep_rates():
    for rate in (1e-3, 3e-3):
        yield {"inner.rate": rate}


def sweep_seeds():
    return sweep("seed", range(3))


def sweep_fused():
    return vmap(sweep("seed", range(2, 5)))


def sweep_numbers():
    rates = zipit(sweep("sleep.learning_rate", [1e-3, 1e-2]), sweep("sleep.z0", [2.0, 4.0]))
    return product(vmap(sweep("seed", range(2, 5))), vmap(rates))


def sweep_structures():
    return vmap(sweep("sleep.lam", [0.0, 0.5]))


def sweep_shapes():
    return vmap(sweep("sleep.rows", [8, 16]))


def sweep_grid():
    return product(zipit(sweep("seed", [0, 1]), sweep("world_seed", [5, 6])), fixed("text", "a b"))


def sweep_misspelt():
    yield {"seed": 1}
    yield {"sead": 2}


def sweep_fails():
    for fail in ("", "boom", "config"):
        yield {"fail": fail}


def sweep_slow():
    yield {"seconds": 2.0}


def sweep_large():
    yield {"megabytes": 6000}


def sweep_nothing():
    return []


def sweep_broken():
    raise KeyError("no such table")


def sweep_object():
    yield {"text": object()}
