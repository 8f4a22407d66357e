"""How much memory an import takes at most: ``python tests/pretrained/peak_memory.py PATH DTYPE``.

PATH is a Hugging Face folder, alone or with memories for it, or a GGUF file. One line of JSON:
``model`` is the size of the parameters in bytes, ``peak`` the most resident memory that the
process has had since before the file was opened (Linux' VmHWM: its own memory and the pages of
files that it had mapped), less what it had then; ``anon`` is how much more memory of its own it
holds at the end (RssAnon).
"""

from __future__ import annotations

import json
import pathlib
import sys
import time

import jax

from sleeplm.pretrained.gguf_config import gguf_config
from sleeplm.pretrained.gguf_file import read_gguf
from sleeplm.pretrained.gguf_weights import load_gguf
from sleeplm.pretrained.hf_config import read_config
from sleeplm.pretrained.hf_weights import load_params
from sleeplm.pretrained.learner_folder import load_learner
from sleeplm.pretrained.memory_files import has_memories

STATUS = pathlib.Path("/proc/self/status")


def load(path: pathlib.Path, dtype: str):
    if has_memories(path):
        return load_learner(path)[1]["params"]
    if path.is_dir():
        return load_params(path, read_config(path, param_dtype=dtype))
    file = read_gguf(path)
    return load_gguf(file, gguf_config(file, param_dtype=dtype))


def resident() -> dict[str, int]:
    """Bytes by the names that Linux has for them."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return {name: 1024 * int(lines[name].split()[0]) for name in ("VmRSS", "VmHWM", "RssAnon")}


def main(path: str, dtype: str) -> None:
    jax.devices()
    before, start = resident(), time.perf_counter()
    params = jax.block_until_ready(load(pathlib.Path(path), dtype))
    seconds, after = time.perf_counter() - start, resident()
    report = {
        "model": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "peak": after["VmHWM"] - before["VmRSS"],
        "anon": after["RssAnon"] - before["RssAnon"],
        "seconds": round(seconds, 1),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
