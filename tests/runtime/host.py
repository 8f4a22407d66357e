"""One process of several: wakes, saves after every step, and goes on from what is there.

``python host.py DIRECTORY COORDINATOR PROCESSES PROCESS STEPS MESH``: lives to STEPS on MESH.
MESH is JSON, and so is what it prints: the losses of its own steps, and a digest of the learner at
the end.
"""

from __future__ import annotations

import hashlib
import json
import sys

import jax
import numpy as np

from sleeplm.bench.meshes import LENGTH, ROWS, awake
from sleeplm.data.streams import day_stream
from sleeplm.runtime import parallel
from sleeplm.runtime.checkpoint import Checkpoints
from sleeplm.runtime.hosts import joined
from sleeplm.runtime.rules import born, placed_shapes, state_specs


def documents():
    random = np.random.default_rng(3)
    return [random.integers(3, 40, n).tolist() for n in random.integers(4, LENGTH, 60)]


def live(directory: str, steps: int, mesh: jax.sharding.Mesh) -> dict:
    case = awake()
    sharing = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    stream = iter(day_stream(documents(), ROWS, LENGTH, seed=1, **sharing))
    step = parallel.jit_step(case.step, mesh, state_specs=state_specs)
    key, losses = jax.random.key(6), []
    with Checkpoints(directory, keep=9, asynchronous=False) as checkpoints:
        done = max(checkpoints.steps(), default=0)
        if done:
            shapes = placed_shapes(jax.eval_shape(case.state, 0), mesh)
            restored = checkpoints.restore(shapes)
            state = restored.learner
            stream.set_state(restored.stream)
        else:
            state = born(lambda: case.state(0), mesh)
        for i in range(done, steps):
            batch = next(stream)
            batch = parallel.shard({k: batch[k] for k in ("tokens", "segments")}, mesh)
            state, metrics = step(state, batch, jax.random.fold_in(key, i))
            losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
            checkpoints.save(i + 1, state, stream.get_state(), {})
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        whole = jax.jit(lambda s: jax.tree.leaves(s.replace(key=jax.random.key_data(s.key))),
                        out_shardings=everywhere)(state)  # fmt: skip
    digest = hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in whole)).hexdigest()
    pieces = {str(s.data.shape) for s in state.params["embed"].addressable_shards}
    return {"losses": losses, "digest": digest, "done": done, "pieces": sorted(pieces)}


if __name__ == "__main__":
    directory, coordinator, processes, process, steps, shape = sys.argv[1:]
    with joined(coordinator, int(processes), int(process)):
        mesh = parallel.mesh(json.loads(shape))
        print(json.dumps(live(directory, int(steps), mesh)), flush=True)
