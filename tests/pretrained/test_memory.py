"""An import needs little more memory than the model that comes out of it."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from sleeplm.pretrained.grafts import cheap
from sleeplm.pretrained.hf_config import model_config, read_config
from sleeplm.pretrained.hf_export import base_digest
from sleeplm.pretrained.hf_weights import load_params, tensor_shapes
from sleeplm.pretrained.memories import Memories
from sleeplm.pretrained.memory_files import write_memories

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "pretrained" / "peak_memory.py"
STATUS = pathlib.Path("/proc/self/status")
RAW = {
    "model_type": "llama",
    "vocab_size": 32_000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not STATUS.exists() or "VmHWM" not in STATUS.read_text(),
        reason="only Linux tells a process its peak",
    ),
]


def measure(path, dtype) -> dict[str, float]:
    """One import in a process of its own, on one device."""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(PROGRAM), str(path), dtype]
    out = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr
    found = json.loads(out.stdout)
    print(path, dtype, found, "peak / model", found["peak"] / found["model"])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Half a gigabyte of float32 in three shards."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "config.json").write_text(json.dumps(RAW))
    rng, names = np.random.default_rng(0), {}
    shapes = tensor_shapes(model_config(RAW))
    for shard in range(3):
        file = f"model-{shard}.safetensors"
        part = {n: rng.random(shapes[n], np.float32) for n in sorted(shapes)[shard::3]}
        save_file(part, folder / file)
        names |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    yield folder
    for path in folder.iterdir():  # pytest keeps the folders of three runs
        path.unlink()


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_a_folder_takes_at_most_a_fifth_more_than_its_parameters(folder, dtype, size):
    found = measure(folder, dtype)
    assert 120e6 < found["model"] / size < 130e6
    assert found["anon"] > 0.95 * found["model"]  # it is all there, and was counted
    assert found["peak"] <= 1.2 * found["model"]


def test_a_learner_takes_little_more_than_its_base(folder, tmp_path):
    """Not another model's worth of random numbers, nor of copies."""
    config = read_config(folder, max_len=64)
    base = load_params(folder, config)
    model = cheap(config, slots=2, width=8, rank=2)
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    write_memories(tmp_path, Memories(base_digest(config, base), model, True, (), {}, {}))
    del base
    found = measure(tmp_path, "float32")
    assert found["peak"] <= 1.4 * found["model"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantised_file_takes_at_most_a_fifth_more_than_its_parameters(smollm2, dtype):
    found = measure(smollm2.path, dtype)
    assert found["peak"] <= 1.2 * found["model"]
