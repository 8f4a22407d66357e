"""llama.cpp as one of the peers: the same file, its 4-bit weights as they are.

Needs the package ``xllamacpp``, whose wheels bring llama.cpp compiled (for any x86-64 of some age,
not for this machine's own instructions).
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from sleeplm.core.errors import ConfigError
from sleeplm.pretrained.gguf_file import smollm2_file


def llama_cpp(length: int, slots: int) -> Any:
    """A server in this process, on as many threads as the process may use cores.

    Args:
      length: positions of every sequence. slots: sequences that are continued at once.

    Raises:
      ConfigError: the package is not installed.
    """
    try:
        import xllamacpp
    except ImportError as error:
        raise ConfigError("--llama-cpp", True, "needs `pip install xllamacpp`") from error

    settings = xllamacpp.CommonParams()
    settings.model.path = str(smollm2_file())
    settings.n_ctx, settings.n_parallel = length * slots, slots
    settings.verbosity = 0
    for threads in (settings.cpuparams, settings.cpuparams_batch):
        threads.n_threads = len(os.sched_getaffinity(0))
    return xllamacpp.Server(settings)


def decoder(server: Any, prompts: np.ndarray, new: int) -> Callable[[], None]:
    """Greedy continuations of prompts [B, P] by ``new`` tokens each, all at once.

    Raises:
      RuntimeError: a continuation has another length.
    """

    def one(prompt: list[int]) -> None:
        told = server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": new,
                "temperature": 0.0,
                "ignore_eos": True,
                "cache_prompt": False,
            }
        )
        if told["usage"]["completion_tokens"] != new:
            raise RuntimeError(f"llama.cpp told {told['usage']} instead of {new} tokens")

    def run() -> None:
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            list(pool.map(one, prompts.tolist()))

    return run
