"""The comparison with PyTorch compares the same computation, and counts what it says it counts."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from sleeplm.bench import peers
from sleeplm.core.errors import ConfigError
from sleeplm.models.transformer import Model
from sleeplm.pretrained.published import find_backbone


@pytest.fixture(scope="module")
def both(reference, needs):
    """A tiny model in JAX and in PyTorch."""
    needs("transformers")
    import transformers

    folder = reference("smollm2").folder
    found = find_backbone(str(folder), max_len=64)
    model = Model(found.config)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, found.load(found.config), theirs


TOKENS = np.random.default_rng(0).integers(3, 97, (3, 16))


@pytest.mark.slow
def test_both_write_the_same_continuations(both):
    model, params, theirs = both
    variables = {"params": params, "slots": model.init_slots()}
    ways = peers.decoders(model, variables, theirs, TOKENS, new=8)
    ours, other = ways["sleeplm"](), ways["transformers"]()
    assert ours.shape == (3, 24)
    np.testing.assert_array_equal(ours, other.numpy())


@pytest.mark.slow
def test_both_differentiate_the_same_loss(both):
    model, params, theirs = both
    ways = peers.steps(model, params, theirs, TOKENS)
    loss, gradient = ways["sleeplm, all parameters"]()
    assert loss == pytest.approx(float(ways["transformers"]()), rel=1e-5)
    embed = theirs.model.embed_tokens.weight.grad.numpy()
    np.testing.assert_allclose(gradient["embed"], embed, atol=1e-5)
    state, metrics = ways["sleeplm, a wake step of one grafted level"]()
    total, weight = metrics["loss"]
    assert float(total / weight) == pytest.approx(float(loss), rel=1e-5)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_both_compute_on_devices_of_one_kind(monkeypatch, needs):
    needs("torch")
    import torch

    assert peers._their_device() == "cpu"
    monkeypatch.setattr(peers.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert peers._their_device() == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device = 'gpu': PyTorch sees none; .*JAX_PLATFORMS=cpu"):
        peers._their_device()
