"""An imported model against ``transformers`` on PyTorch, on this machine's CPU, in turns.

    python -m sleeplm.bench.peers            # decoding at batch 1 and 32, and a training step
    python -m sleeplm.bench.peers --rounds 5 --batches 1 8 32
    python -m sleeplm.bench.peers --llama-cpp         # decoding there too, with 4-bit weights

Both run the same weights (SmolLM2 from its package, float32) on as many threads as the process may
use cores, greedily, from prompts of 16 tokens. They take turns, so that whatever else runs here
slows both alike; the first turn of each compiles or warms up and does not count. Needs PyTorch and
transformers, which the package itself does not.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sleeplm.bench.llama_cpp import decoder, llama_cpp
from sleeplm.core.types import Array, Params, Variables
from sleeplm.methods.config import SleepConfig
from sleeplm.methods.extract import wake_batch
from sleeplm.methods.learner import learner
from sleeplm.methods.objectives import language_model
from sleeplm.models.decode import generate
from sleeplm.models.graft import graft
from sleeplm.models.transformer import Model
from sleeplm.pretrained.gguf_file import smollm2_file
from sleeplm.pretrained.grafts import cheap
from sleeplm.pretrained.hf_export import hf_config
from sleeplm.pretrained.published import SMOLLM2, find_backbone

PROMPT = 16


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints medians and ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=48, help="tokens written after each prompt")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rows", type=int, default=4, help="rows of 128 tokens of a training step")
    parser.add_argument("--llama-cpp", action="store_true", help="decode with llama.cpp too")
    options = parser.parse_args(arguments)
    found = find_backbone(SMOLLM2, max_len=128 + options.new)
    model, params = Model(found.config), found.load(found.config)
    theirs = reference(model)
    variables = {"params": params, "slots": model.init_slots()}
    server = llama_cpp(PROMPT + options.new, max(options.batches)) if options.llama_cpp else None
    rng = np.random.default_rng(0)
    print(f"{len(os.sched_getaffinity(0))} cores, medians of {options.rounds}")
    for batch in options.batches:
        tokens = rng.integers(3, model.config.vocab_size, (batch, PROMPT))
        ways = decoders(model, variables, theirs, tokens, options.new)
        if server is not None:
            ways["llama.cpp, 4-bit weights"] = decoder(server, tokens, options.new)
        seconds = in_turns(ways, options.rounds)
        rates = {name: batch * options.new / s for name, s in seconds.items()}
        _tell(f"decode, batch {batch}", rates, "tokens/s")
    tokens = rng.integers(3, model.config.vocab_size, (options.rows, 128))
    seconds = in_turns(steps(model, params, theirs, tokens), options.rounds)
    rates = {name: tokens.size / s for name, s in seconds.items()}
    _tell(f"gradient of a batch of {options.rows} x 128", rates, "tokens/s")


def _tell(what: str, rates: Mapping[str, float], unit: str) -> None:
    print(what)
    for name, rate in rates.items():
        print(f"  {name:44} {rate:8.1f} {unit}, {rate / rates['transformers']:.2f} x")


def in_turns(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each way; all take turns, and the first turn does not count.

    What a way returns is waited for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, run in ways.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def reference(model: Model) -> Any:
    """The same model in PyTorch, from the same file."""
    import torch
    import transformers
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = transformers.LlamaConfig.from_dict(hf_config(model.config))
    theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    path = str(smollm2_file())
    found = load_gguf_checkpoint(path, return_tensors=True, model_to_load=theirs)
    theirs.load_state_dict(found["tensors"], strict=False)  # the unembedding is tied
    return theirs.eval()


def decoders(
    model: Model, variables: Variables, theirs: Any, tokens: np.ndarray, new: int
) -> dict[str, Callable[[], Any]]:
    """Greedy continuations of prompts [B, P] by ``new`` tokens each, with a cache."""
    import torch

    lengths = jnp.full(len(tokens), tokens.shape[1])
    keys = jax.random.split(jax.random.key(0), len(tokens))
    write = functools.partial(generate, model, max_new=new, temperature=0.0, eos=-1)
    ours = jax.jit(lambda v, t: write(v, t, lengths, keys).tokens)
    prompts = torch.tensor(tokens)

    def their_turn() -> Any:
        with torch.inference_mode():
            return theirs.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )

    return {
        "sleeplm": lambda: ours(variables, jnp.asarray(tokens, jnp.int32)),
        "transformers": their_turn,
    }


def steps(
    model: Model, params: Params, theirs: Any, tokens: np.ndarray
) -> dict[str, Callable[[], Any]]:
    """Loss and gradient of all parameters; and of one grafted level, with its optimiser's step."""
    import torch

    text = jnp.asarray(tokens, jnp.int32)
    batch = {"tokens": text, "segments": jnp.ones_like(text)}
    key = jax.random.key(0)
    memory, _ = wake_batch().extract({}, (), batch, key)
    objective = language_model(model)

    def loss(params: Params) -> Array:
        total, weight, _ = objective({"params": params, "slots": model.init_slots()}, memory)
        return total / weight

    whole = jax.jit(jax.value_and_grad(loss))
    grown = Model(cheap(model.config))
    life = learner(grown, SleepConfig())
    state = jax.jit(lambda p: life.init(graft(grown, p, key), key))(params)
    awake = jax.jit(life.wake)
    labels = torch.tensor(tokens)

    def their_turn() -> Any:
        theirs.zero_grad(set_to_none=True)
        loss = theirs(labels, labels=labels, use_cache=False).loss
        loss.backward()
        return loss.detach()

    return {
        "sleeplm, all parameters": lambda: whole(params),
        "sleeplm, a wake step of one grafted level": lambda: awake(state, batch, key),
        "transformers": their_turn,
    }


if __name__ == "__main__":
    main()
