"""An imported model computes what the reference implementation computes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.memory.levels import LevelConfig
from sleeplm.models.decode import generate
from sleeplm.models.graft import graft
from sleeplm.models.transformer import Model
from sleeplm.pretrained.hf_config import read_config
from sleeplm.pretrained.hf_weights import load_params

FAMILIES = ("llama3", "linear", "smollm2", "qwen3")


@pytest.fixture(scope="module")
def imported(reference):
    """``family -> (reference, model, variables)``."""

    def load(family: str):
        found = reference(family)
        model = Model(read_config(found.folder, max_len=256))
        params = load_params(found.folder, model.config)
        return found, model, {"params": params, "slots": model.init_slots()}

    return load


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_continuations_are_those_of_the_reference(imported, family):
    found, model, variables = imported(family)
    prompts = jnp.asarray(found.prompts, jnp.int32)
    logits = np.asarray(jax.jit(model.logits)(variables, prompts))
    assert np.abs(found.logits).max() > 1  # there is something to agree on
    assert np.abs(logits - found.logits).max() <= 1e-4
    samples = generate(
        model,
        variables,
        prompts,
        jnp.full((5,), prompts.shape[1]),
        jax.random.split(jax.random.key(0), 5),
        max_new=found.greedy.shape[1] - prompts.shape[1],
        temperature=0.0,
        eos=-1,
    )
    np.testing.assert_array_equal(samples.tokens, found.greedy)


@pytest.mark.slow
def test_decoding_with_a_cache_is_the_full_forward_pass(imported):
    found, model, variables = imported("qwen3")
    samples = generate(
        model,
        variables,
        jnp.asarray(found.prompts[:2, :7], jnp.int32),
        jnp.asarray([7, 3]),
        jax.random.split(jax.random.key(1), 2),
        max_new=20,
        eos=-1,
    )
    logits = model.logits(variables, samples.tokens, samples.segments)
    logp = jax.nn.log_softmax(logits[:, :-1])
    whole = jnp.take_along_axis(logp, samples.tokens[:, 1:, None], 2)[..., 0]
    written = np.asarray(samples.written)[:, 1:]
    np.testing.assert_allclose(samples.logp[:, 1:][written], whole[written], atol=1e-5)


@pytest.mark.slow
def test_memory_levels_are_grafted_without_changing_a_bit(imported):
    found, plain, variables = imported("smollm2")
    levels = [
        LevelConfig(name="fast", kind="graft", width=8, period=1, night=4),
        LevelConfig(name="mlp", kind="replace", width=80, slots=2, rank=4, top_k=2),
    ]
    model = Model(dataclasses.replace(plain.config, levels=levels))
    params = graft(model, variables["params"], jax.random.key(0))
    prompts = jnp.asarray(found.prompts, jnp.int32)
    grown = {"params": params, "slots": model.init_slots()}
    np.testing.assert_array_equal(
        jax.jit(model.logits)(grown, prompts), jax.jit(plain.logits)(variables, prompts)
    )


@pytest.mark.slow
def test_half_precision_parameters_are_the_rounded_ones(imported):
    found, _, variables = imported("llama3")
    config = read_config(found.folder, dtype="bfloat16", param_dtype="bfloat16")
    half = load_params(found.folder, config)
    for ours, whole in zip(
        jax.tree.leaves(half), jax.tree.leaves(variables["params"]), strict=True
    ):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_array_equal(ours, whole.astype(jnp.bfloat16))
