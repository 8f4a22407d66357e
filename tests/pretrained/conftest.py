"""Tiny random models of the supported families, written by ``transformers`` on PyTorch."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import numpy as np
import pytest

LONG = 96  # tokens of a prompt: beyond the 64 that the scaled model was "trained" on
NEW = 64
#: As SmolLM2-135M is published.
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 49152,
}


@dataclasses.dataclass(frozen=True)
class Reference:
    """A folder, and what the reference implementation says to its five prompts."""

    folder: pathlib.Path
    prompts: np.ndarray  # int64 [5, LONG]
    logits: np.ndarray  # float32 [5, LONG, V]
    greedy: np.ndarray  # int64 [5, LONG + NEW]


def tiny_model(family: str):
    """A random PyTorch model with every feature of the family that we import."""
    import torch
    import transformers as hf

    sizes = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    llama3 = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    linear = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    make = {
        # Rotary scaling, a head wider than D / H, an unembedding of its own.
        "llama3": lambda: hf.LlamaForCausalLM(
            hf.LlamaConfig(**sizes, head_dim=16, rope_parameters=llama3, rms_norm_eps=1e-5)
        ),
        "linear": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, rope_parameters=linear)),
        # SmolLM2 is a Llama with tied embeddings.
        "smollm2": lambda: hf.LlamaForCausalLM(
            hf.LlamaConfig(
                **sizes,
                tie_word_embeddings=True,
                rope_parameters={"rope_type": "default", "rope_theta": 1e5},
            )
        ),
        # Norms of queries and keys.
        "qwen3": lambda: hf.Qwen3ForCausalLM(
            hf.Qwen3Config(**sizes, head_dim=12, tie_word_embeddings=True)
        ),
    }
    torch.manual_seed(0)
    model = make[family]().eval()
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn_like(weight)
            weight.copy_(0.1 * noise if weight.ndim > 1 else 1 + 0.3 * noise)
    return model


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """``family -> Reference``, made once."""

    @functools.cache
    def make(family: str) -> Reference:
        import torch

        folder = tmp_path_factory.mktemp(family)
        model = tiny_model(family)
        model.save_pretrained(folder, max_shard_size="60KB")
        prompts = torch.randint(0, 97, (5, LONG))
        with torch.no_grad():
            logits = model(prompts).logits
            greedy = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=NEW,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return Reference(folder, prompts.numpy(), logits.numpy(), greedy.numpy())

    return make


@pytest.fixture(scope="session")
def smollm2(needs):
    """SmolLM2-135M-Instruct as a GGUF file that was read; skips where it is not installed."""
    from sleeplm.pretrained.gguf_file import SMOLLM2 as PACKAGE
    from sleeplm.pretrained.gguf_file import read_gguf, smollm2_file

    needs("gguf", PACKAGE)
    return read_gguf(smollm2_file())


@pytest.fixture(scope="session")
def published():
    """The config.json that SmolLM2-135M is published with."""
    return dict(SMOLLM2)
