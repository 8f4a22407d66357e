"""The exam of few-shot ARC as one program, with the texts that really are self-edits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.bench.arc.config import ArcConfig
from sleeplm.bench.arc.material import Sizes, prepare
from sleeplm.bench.arc.programs import Programs, arrays
from sleeplm.data import grids
from sleeplm.data.grids import EDIT_TOKENS, WORDS, GridTask, GridTokenizer, Pair
from sleeplm.memory.levels import LevelConfig
from sleeplm.methods.dreams.config import DreamConfig
from sleeplm.models.config import ModelConfig
from sleeplm.models.transformer import Model

WIDTH = 32
TASK = GridTask("t", (Pair(((1, 2),), ((2,),)),), (Pair(((3, 4),), ((4,),)),))
EDITS = {
    "rotate on_all rate0 steps0": True,
    "flip rotate on_all rate0 steps0": False,  # not in their order
    "rotate on_all steps0": False,  # no rate
    "on_outputs rate1 steps0": True,
}


def tokens_of(edit: str) -> list[int]:
    words = [*GridTokenizer().encode(edit), grids.EOS]
    return words + [grids.PAD] * (EDIT_TOKENS - len(words))


@pytest.fixture(scope="module")
def solving():
    """Programs, variables of a model that solves a task without having learned, and the task.

    Trials take steps so small that none unlearns it.
    """
    config = ArcConfig(
        rows=1, paces=[1, 2, 3], rates=[1e-9, 2e-9, 3e-9, 4e-9], widths=[WIDTH],
        dream=DreamConfig(rank=1, steps=3, batch=1, new_tokens=EDIT_TOKENS, alone=True),
    )  # fmt: skip
    sizes = {"vocab_size": len(WORDS), "d_model": 8, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1}
    own = {"max_len": WIDTH, "tie_embeddings": False, "levels": [LevelConfig(width=8)]}
    model = Model(ModelConfig(**sizes, **own))
    params = model.init(jax.random.key(0))
    variables = {"params": params, "slots": model.init_slots()}
    task = arrays(prepare(TASK, Sizes([WIDTH], pairs=1, tests=1, answer=3)))
    # Of all states of one length each is the most like itself: it says what comes next.
    length, answer = int(task["questions"].lengths[0]), task["questions"].answers[0]
    text = jnp.concatenate([task["questions"].prompts[0, :length], answer])
    states = model.hidden(variables, text[None])[0, length - 1 : -1]
    unembed = jnp.zeros_like(params["unembed"]).at[:, answer].set(states.T)
    variables["params"] = {**params, "unembed": unembed}
    return Programs(model, config, "", WIDTH), variables, task


def test_a_copy_of_a_text_that_is_no_self_edit_has_solved_nothing(solving):
    """Whatever it answers: it has learned nothing, and what it could before is not its dream's."""
    programs, variables, task = solving
    edits = jnp.array([tokens_of(edit) for edit in EDITS])
    before, logp = jax.jit(programs.asked)(variables, task)
    exam = jax.jit(programs.exam)(variables, task, edits, jax.random.key(0))
    assert bool(before)
    np.testing.assert_allclose(exam.logp, float(logp), atol=1e-4)  # all copies answer alike
    assert exam.valid.tolist() == exam.solved.tolist() == list(EDITS.values())
