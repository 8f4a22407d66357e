"""An imported model against ``transformers`` on PyTorch, on this machine's CPU or GPU, in turns.

    python -m sleeplm.bench.peers            # decoding at batch 1 and 32, and a training step
    python -m sleeplm.bench.peers --rounds 5 --batches 1 8 32
    python -m sleeplm.bench.peers --llama-cpp         # decoding there too, with 4-bit weights

Both run the same weights (SmolLM2 from its package) greedily, from prompts of 16 tokens: on the
device that JAX takes, where PyTorch needs one of the same kind, and on a CPU on as many threads as
the process may use cores. Products of matrices are of float32 in both (GPUs would round what JAX
multiplies to fewer bits), or all is bfloat16 (``--dtype``). They take turns, so that whatever else
runs here slows both alike; the first turn of each compiles or warms up and does not count. Needs
PyTorch and transformers, which the package itself does not.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sleeplm.bench.llama_cpp import decoder, llama_cpp
from sleeplm.bench.turns import in_turns
from sleeplm.core.checks import require
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
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    with jax.default_matmul_precision("highest"):
        compare(parser.parse_args(arguments))


def compare(options: argparse.Namespace) -> None:
    """Prints it, of the program's options."""
    found = find_backbone(SMOLLM2, max_len=128 + options.new)
    config = dataclasses.replace(found.config, dtype=options.dtype, param_dtype=options.dtype)
    model, params = Model(config), found.load(config)
    theirs = reference(model)
    variables = {"params": params, "slots": model.init_slots()}
    server = llama_cpp(PROMPT + options.new, max(options.batches)) if options.llama_cpp else None
    rng = np.random.default_rng(0)
    print(
        f"{jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores, {options.dtype}, "
        f"medians of {options.rounds}"
    )
    for batch in options.batches:
        tokens = rng.integers(3, model.config.vocab_size, (batch, PROMPT))
        ways = decoders(model, variables, theirs, tokens, options.new)
        if server is not None:
            ways["llama.cpp, 4-bit weights"] = decoder(server, tokens, options.new)
        times = in_turns(ways, options.rounds)
        rates = {name: batch * options.new / own.median for name, own in times.items()}
        _tell(f"decode, batch {batch}", rates, "tokens/s")
    tokens = rng.integers(3, model.config.vocab_size, (options.rows, 128))
    times = in_turns(steps(model, params, theirs, tokens), options.rounds)
    rates = {name: tokens.size / own.median for name, own in times.items()}
    _tell(f"gradient of a batch of {options.rows} x 128", rates, "tokens/s")


def _tell(what: str, rates: Mapping[str, float], unit: str) -> None:
    print(what)
    for name, rate in rates.items():
        print(f"  {name:44} {rate:8.1f} {unit}, {rate / rates['transformers']:.2f} x")


def reference(model: Model) -> Any:
    """The same model in PyTorch, from the same file, on a device of the kind that JAX takes.

    Raises:
      ConfigError: JAX computes on a GPU, and this PyTorch has none.
    """
    import torch
    import transformers
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = transformers.LlamaConfig.from_dict(hf_config(model.config))
    theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    path = str(smollm2_file())
    found = load_gguf_checkpoint(path, return_tensors=True, model_to_load=theirs)
    theirs.load_state_dict(found["tensors"], strict=False)  # the unembedding is tied
    return theirs.to(getattr(torch, model.config.dtype)).to(_their_device()).eval()


def _their_device() -> str:
    import torch

    platform = jax.default_backend()
    if platform == "cpu":
        return "cpu"
    remedy = "PyTorch sees none; compare on the CPU: JAX_PLATFORMS=cpu"
    require(platform == "gpu" and torch.cuda.is_available(), "device", platform, remedy)
    return "cuda"


def _done(found: Any) -> Any:
    """PyTorch's result, computed: a GPU works on when Python goes on."""
    if found.is_cuda:
        import torch

        torch.cuda.synchronize()
    return found


def decoders(
    model: Model, variables: Variables, theirs: Any, tokens: np.ndarray, new: int
) -> dict[str, Callable[[], Any]]:
    """Greedy continuations of prompts [B, P] by ``new`` tokens each, with a cache."""
    import torch

    lengths = jnp.full(len(tokens), tokens.shape[1])
    keys = jax.random.split(jax.random.key(0), len(tokens))
    write = functools.partial(generate, model, max_new=new, temperature=0.0, eos=-1)
    ours = jax.jit(lambda v, t: write(v, t, lengths, keys).tokens)
    prompts = torch.tensor(tokens, device=theirs.device)

    def their_turn() -> Any:
        with torch.inference_mode():
            written = theirs.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )
        return _done(written)

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
    labels = torch.tensor(tokens, device=theirs.device)

    def their_turn() -> Any:
        theirs.zero_grad(set_to_none=True)
        loss = theirs(labels, labels=labels, use_cache=False).loss
        loss.backward()
        return _done(loss.detach())

    return {
        "sleeplm, all parameters": lambda: whole(params),
        "sleeplm, a wake step of one grafted level": lambda: awake(state, batch, key),
        "transformers": their_turn,
    }


if __name__ == "__main__":
    main()
