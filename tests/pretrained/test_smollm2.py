"""The real SmolLM2, from its GGUF file, computes what ``transformers`` computes from the same file.

Logits reach 40 here, so that 1e-4 is little more than rounding leaves of them: PyTorch in float32
is off by up to 6e-5 of PyTorch in float64. XLA's CPU adds up a product of matrices in one running
sum, which rounds more often than PyTorch's blocks; the tests say what both ways come to.
"""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.models import layers
from sleeplm.models.decode import generate
from sleeplm.models.graft import graft
from sleeplm.models.transformer import Model
from sleeplm.pretrained.gguf_config import gguf_config
from sleeplm.pretrained.gguf_tokenizer import gguf_tokenizer
from sleeplm.pretrained.gguf_weights import load_gguf
from sleeplm.pretrained.grafts import grafted
from sleeplm.pretrained.hf_config import model_config
from sleeplm.pretrained.hf_weights import sources

#: After each the model's first choice is always ahead of its second by at least 0.005, so that no
#: machine's rounding decides what is written.
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:",
    "In 1969, the first human",
    "<unk> Der schnelle braune Fuchs",
    "Sleep helps the brain",
]
NEW = 64
#: Other tests compile more than they run, and have XLA optimise nothing.
RUN_LONG = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ours(smollm2):
    """The imported model, and what it writes greedily after the prompts."""
    config = dataclasses.replace(gguf_config(smollm2, max_len=128), scan_layers=True)
    model, tokenizer = Model(config), gguf_tokenizer(smollm2)
    variables = {"params": load_gguf(smollm2, config), "slots": model.init_slots()}
    rows = tokenizer.encode_batch(PROMPTS)
    lengths = np.asarray([len(row) for row in rows])
    prompts = np.zeros((len(rows), lengths.max()), np.int32)
    for prompt, row in zip(prompts, rows, strict=True):
        prompt[: len(row)] = row
    keys = jax.random.split(jax.random.key(0), len(rows))
    write = functools.partial(generate, model, max_new=NEW, temperature=0.0, eos=-1)
    write = jax.jit(write, compiler_options=RUN_LONG)
    samples = write(variables, jnp.asarray(prompts), jnp.asarray(lengths), keys)
    logits = jax.jit(model.logits)(variables, samples.tokens, samples.segments)
    return SimpleNamespace(config=config, variables=variables, samples=samples, logits=logits)


@pytest.fixture(scope="module")
def theirs(smollm2, published, needs):
    """The file as ``transformers`` reads it into the model of the published config.json."""
    needs("torch", "transformers")
    import torch
    import transformers as hf
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = hf.LlamaConfig.from_dict(published)
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    found = load_gguf_checkpoint(smollm2.path, return_tensors=True, model_to_load=model)
    missing, left = model.load_state_dict(found["tensors"], strict=False)
    assert missing == ["lm_head.weight"] and not left  # it is tied
    return model.eval()


def logits_of(model, tokens) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor(np.asarray(tokens), dtype=torch.long)).logits.numpy()


def test_every_weight_is_the_one_that_the_reference_reads(ours, theirs):
    tensors = theirs.state_dict()
    for source, leaf in zip(
        jax.tree.leaves(sources(ours.config)),
        jax.tree.leaves(ours.variables["params"]),
        strict=True,
    ):
        layers = range(ours.config.n_layers) if source.stacked else [None]
        for layer in layers:
            found = np.asarray(leaf if layer is None else leaf[layer])
            expected = tensors[source.name.format(layer)].numpy()
            np.testing.assert_array_equal(found, expected.T if source.transposed else expected)


@pytest.fixture(scope="module")
def expected(ours, theirs):
    """The reference's logits of our tokens."""
    return logits_of(theirs, ours.samples.tokens)


def furthest(ours, here, there) -> np.ndarray:
    """The largest difference of two logits in each prompt."""
    prompts = np.asarray(ours.samples.segments > 0) & ~np.asarray(ours.samples.written)
    apart = np.abs(np.asarray(here) - there).max(-1)
    return np.where(prompts, apart, 0).max(1)


def test_greedy_continuations_are_those_of_the_reference(ours, expected):
    """Its choice after every prefix of what we wrote is ours: so it would have written the same."""
    tokens, written = np.asarray(ours.samples.tokens), np.asarray(ours.samples.written)
    assert (written.sum(1) == NEW).all()
    ahead, after = expected[:, :-1], written[:, 1:]
    best, second = np.sort(ahead[after], -1)[:, [-1, -2]].T
    assert (best - second).min() > 0.003  # else another machine might choose otherwise
    np.testing.assert_array_equal(ahead.argmax(-1)[after], tokens[:, 1:][after])


def test_logits_are_those_of_the_reference_but_for_rounding(ours, expected):
    apart = furthest(ours, ours.logits, expected)
    used = np.asarray(ours.samples.segments) > 0
    print("in each prompt", apart, "with continuations", np.abs(ours.logits - expected)[used].max())
    assert np.abs(expected).max() > 30
    assert apart.max() <= 3e-4


def test_logits_are_within_1e_4_if_products_are_added_up_in_blocks(ours, expected, monkeypatch):
    monkeypatch.setattr(layers, "matmul", matmul_in_blocks)
    model = Model(ours.config)
    logits = jax.jit(model.logits)(ours.variables, ours.samples.tokens, ours.samples.segments)
    apart = furthest(ours, logits, expected)
    print("in each prompt", apart)
    assert apart.max() <= 1e-4


def matmul_in_blocks(x, w, blocks=8):
    """``x @ w`` with sums of an eighth of the terms, which are added at the end."""
    xs = x.reshape(*x.shape[:-1], blocks, -1)
    return jnp.einsum("...nk,nkf->n...f", xs, w.reshape(blocks, -1, w.shape[-1])).sum(0)


def test_the_metadata_say_what_the_published_configuration_says(smollm2, published):
    ours, theirs = gguf_config(smollm2), model_config(published)
    assert dataclasses.replace(ours, head_dim=0, max_len=64) == theirs


def test_decoding_with_a_cache_is_the_full_forward_pass(ours):
    logp = jax.nn.log_softmax(ours.logits[:, :-1])
    whole = jnp.take_along_axis(logp, ours.samples.tokens[:, 1:, None], 2)[..., 0]
    written = np.asarray(ours.samples.written)[:, 1:]
    np.testing.assert_allclose(ours.samples.logp[:, 1:][written], whole[written], atol=1e-4)


def test_the_papers_five_levels_change_no_bit_of_its_logits(ours):
    plain, tokens = Model(ours.config), ours.samples.tokens[:2, :24]
    model = Model(grafted(ours.config))
    grow = jax.jit(lambda params, key: graft(model, params, key))
    grown = grow(ours.variables["params"], jax.random.key(0))
    np.testing.assert_array_equal(
        jax.jit(model.logits)({"params": grown, "slots": model.init_slots()}, tokens),
        jax.jit(plain.logits)(ours.variables, tokens),
    )
