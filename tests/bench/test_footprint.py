"""What a learner on a backbone trains: said from shapes, and held to what real steps move."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.bench import footprint as program
from sleeplm.bench.footprint import footprint
from sleeplm.core import tree
from sleeplm.core.errors import ConfigError
from sleeplm.memory.levels import LevelConfig
from sleeplm.methods.config import SleepConfig, TeacherConfig
from sleeplm.methods.learner import learner
from sleeplm.models.config import ModelConfig
from sleeplm.models.graft import graft
from sleeplm.models.transformer import Model
from sleeplm.pretrained.grafts import PERIODS, cheap, grafted

SIZES = {"vocab_size": 32, "d_model": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1}
PLAIN = ModelConfig(**SIZES, qk_norm=True, levels=[LevelConfig(name="mlp", width=24)])
NIGHT = SleepConfig(
    teachers=[TeacherConfig("dusk", "today", imitate=False)],
    updates=1, inner=1, epochs=1, rows=2, length=8, lam=0.0, alpha=1.0, reservoir=4, cue_tokens=3,
)  # fmt: skip


def test_the_papers_five_levels_are_consolidated_at_the_pace_that_they_move_at():
    *levels, mlp = grafted(PLAIN, day=10, slots=3).levels
    assert [level.period for level in levels] == list(PERIODS) == [1, 5, 10, 50, 100]
    assert [level.night for level in levels] == [10, 50, 100, 500, 1000]
    assert {(level.kind, level.width) for level in levels} == {("graft", 64)}
    # Room for every night of the level before, until its own night clears the experts.
    assert [level.slots for level in levels] == [0, 5, 2, 5, 2]
    assert (mlp.name, mlp.kind, mlp.period, mlp.width, mlp.slots) == ("mlp", "replace", 0, 24, 3)


@pytest.mark.parametrize("make", [grafted, cheap])
def test_grafted_levels_change_no_bit_of_any_logit(make):
    plain, model = Model(PLAIN), Model(make(PLAIN))
    backbone = plain.init(jax.random.key(0))
    grown = graft(model, backbone, jax.random.key(1))
    tokens = jax.random.randint(jax.random.key(2), (3, 20), 0, 32)
    np.testing.assert_array_equal(
        jax.jit(model.logits)({"params": grown, "slots": model.init_slots()}, tokens),
        jax.jit(plain.logits)({"params": backbone, "slots": plain.init_slots()}, tokens),
    )


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"periods": ()}, "periods"),
        ({"periods": (0, 1)}, "periods"),
        ({"periods": (2, 5)}, r"model\.levels\[1\]\.period"),
        ({"day": 0}, "day"),
        ({"periods": (3,), "day": 100}, r"model\.levels\[0\]\.night"),
    ],
)
def test_periods_that_are_no_chain_are_refused(settings, field):
    with pytest.raises(ConfigError, match=field):
        grafted(PLAIN, **settings)


def test_a_backbone_that_has_levels_is_refused():
    with pytest.raises(ConfigError, match=r"backbone\.levels"):
        cheap(cheap(PLAIN))


@pytest.fixture(scope="module")
def lived():
    """A learner with one grafted level before and after a wake step, and after a night's update."""
    model = Model(cheap(PLAIN, slots=2, rank=4, width=8))
    life = learner(model, NIGHT)
    params = graft(model, Model(PLAIN).init(jax.random.key(0)), jax.random.key(1))
    born = life.init(params, jax.random.key(2))
    tokens = jax.random.randint(jax.random.key(3), (2, 8), 3, 32)
    batch = {"tokens": tokens, "segments": jnp.ones_like(tokens)}
    dusk, _ = jax.jit(life.wake)(born, batch, jax.random.key(4))
    night = {"rows": jnp.arange(2, dtype=jnp.int32)[None], "today": jnp.int32(0)}
    (rest,) = life.rests
    asleep, _ = jax.jit(rest.begin)(dusk, night, jax.random.key(5))
    learned, _ = jax.jit(rest.seed)(asleep, night, jax.random.key(6))
    return model.config, born, dusk, asleep, learned


def moved(before, after) -> set[str]:
    return {re.sub(r"\W+", "/", path).strip("/") for path in tree.differing(before, after)}


def test_awake_and_asleep_only_levels_experts_and_routers_move(lived):
    _, born, dusk, asleep, learned = lived
    awake = moved(born.params, dusk.params)
    assert awake
    assert all(re.match(r"blocks/levels/level1/(base|norm)", path) for path in awake)
    by_night = moved(asleep.params, learned.params)
    assert by_night
    assert all(re.match(r"blocks/levels/mlp/(experts|router)", path) for path in by_night)


def test_numbers_and_bytes_are_those_of_a_real_learner(lived):
    config, born, *_ = lived
    rows = {name: (numbers, size) for name, numbers, size in footprint(config, NIGHT)}
    plain = tree.size(Model(PLAIN).init(jax.random.key(0)))
    assert rows["backbone, frozen"] == (plain, 4 * plain)
    mlp = 2 * (3 * 16 * 8 + 16)  # two layers of gate, up, down and a norm's scale
    assert rows["level1: MLP, learns awake"] == (mlp, 4 * mlp)
    expert = 2 * (2 * 16 * 4 + 16 + 1)  # A, B, a router column and its bias
    assert rows["mlp: 2 experts and router, learn asleep"] == (2 * expert, 8 * expert)
    assert rows["awake: gradient"] == (mlp, 4 * mlp)
    night = "night of level1 into mlp"
    assert rows[f"{night}: gradient"] == (2 * expert, 8 * expert)
    for name, private in (
        ("awake: optimiser", born.private["wake"]),
        (f"{night}: optimiser", born.private["night"]["level1"]),
    ):
        assert rows[name] == (tree.size(private), tree.nbytes(private))
    # Moments of what learns (and, awake, what is gathered until a level moves), and a few counts.
    assert 0 <= rows["awake: optimiser"][0] - 3 * mlp < 10
    assert 0 <= rows[f"{night}: optimiser"][0] - 2 * expert < 10


def test_the_program_prints_a_line_for_every_part(monkeypatch, capsys):
    class Found:
        config = PLAIN

    monkeypatch.setattr(program, "find_backbone", lambda name: Found)
    program.main(["anything", "--levels", "cheap"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(footprint(cheap(PLAIN)))
    assert any(line.startswith("level1: MLP, learns awake") for line in lines)
