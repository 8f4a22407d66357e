"""A plan: what lies on a chip, what fits, and what is said where something cannot work."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import pytest

from sleeplm import cli
from sleeplm.bench import flops
from sleeplm.core import tree
from sleeplm.core.errors import ConfigError
from sleeplm.core.platform import platform, written_for
from sleeplm.models.graft import backbone_config
from sleeplm.models.transformer import Model
from sleeplm.plan import topology
from sleeplm.plan.chips import CHIPS
from sleeplm.plan.collectives import Collective
from sleeplm.plan.compiling import Plan, compiled, room
from sleeplm.plan.config import MeshConfig
from sleeplm.plan.findings import large_whole, unexpected, waiting
from sleeplm.plan.fit import fit
from sleeplm.plan.memory import by_kind, nbytes
from sleeplm.plan.programs import placed, programs
from sleeplm.plan.report import as_dict, as_json, as_text
from sleeplm.plan.roofline import Bound, lower_bound
from sleeplm.plan.table import read, table
from sleeplm.runtime.config import load_config
from sleeplm.runtime.parallel import mesh

LIBTPU = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(not LIBTPU, reason="needs libtpu: pip install 'sleeplm[plan]'")
#: Parameters as the makers publish them.
SHAPES = {
    "smollm2": 134_515_008,
    "llama1b": 1_235_814_400,
    "qwen8b": 8_190_735_360,
    "llama8b": 8_030_261_248,
}


@pytest.fixture
def one_program(small):
    def make(name, **settings):
        over = mesh({"data": 1, "fsdp": 4, "tensor": 1})
        (program,) = programs(small(programs=[name], **settings), over)
        return program, over

    return make


def unusual(made):
    """Warnings, but that so small a program waits for its links."""
    return [line for line in made.warnings if not line.startswith("links take")]


def test_every_plan_among_the_experiments_is_one_of_these_shapes():
    plans = pathlib.Path("experiments").glob("plan_*.py")
    assert {path.stem.removeprefix("plan_") for path in plans} == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_the_shapes_are_those_of_the_published_models(name):
    config = load_config(f"experiments/plan_{name}.py", [])
    plain = Model(backbone_config(config.model))
    shapes = jax.eval_shape(plain.init, jax.eval_shape(lambda: jax.random.key(0)))
    assert tree.size(shapes) == SHAPES[name]
    assert [level.kind for level in config.model.levels] == ["graft"] * 5 + ["replace"]


@pytest.mark.parametrize("name", ["wake", "decode"])
def test_bytes_by_kind_are_all_that_a_program_is_given(one_program, name):
    program, over = one_program(name)
    state, batch = program.arguments(over)
    kinds = by_kind(state, batch)
    shards = jax.tree.map(nbytes, (state, batch))
    assert sum(kinds.values()) == sum(jax.tree.leaves(shards))
    (matrix,) = (state.params if name == "wake" else state["params"])["blocks"]["attn"][
        "q"
    ].values()
    assert nbytes(matrix) == matrix.size * 2 / 4
    if name == "wake":
        assert all(size > 0 for size in kinds.values())


def test_a_teacher_costs_the_senders_subtree_and_no_more(one_program):
    program, over = one_program("wake")
    state, batch = program.arguments(over)
    fast = state.params["blocks"]["levels"]["fast"]
    one = sum(map(nbytes, jax.tree.leaves(fast)))
    anchor = state.anchors["fast"]
    ledgers = (anchor.dawn_slots, anchor.dusk_slots, anchor.receiver_slots)
    small = sum(map(nbytes, jax.tree.leaves(ledgers))) + 4 * 4
    assert by_kind(state, batch)["teachers"] == 3 * one + small


def test_programs_compile_for_simulated_chips_too_and_say_what_they_need(one_program, small):
    program, over = one_program("wake")
    made = compiled(program, over, CHIPS["v5e"])
    assert made.fits and made.donated and unusual(made) == []
    tokens = 8 * 32
    # Pieces of logits are made again on the way back.
    by_hand = flops.train(small().model, 32, "bases") + 2 * 64 * 256
    assert made.flops * 4 == pytest.approx(tokens * by_hand, rel=0.05)
    summed = [c for c in made.collectives if c.kind in ("all-reduce", "reduce-scatter")]
    gradient = 4 * 2 * 3 * 64 * 16
    assert summed and all(c.nbytes <= gradient for c in summed if "fsdp" in c.axis)
    told = as_dict(Plan("v5e:2x2", dict(over.shape), CHIPS["v5e"], (made,)))
    assert json.loads(json.dumps(told))["programs"][0]["flops_per_token"] == made.flops * 4 / tokens
    assert "roofline lower bound" in as_text(
        Plan("v5e:2x2", dict(over.shape), CHIPS["v5e"], (made,))
    )


def test_generation_gathers_no_activations_and_sums_nothing_over_rows(one_program):
    program, over = one_program("decode")
    assert unusual(compiled(program, over, CHIPS["v5e"])) == []


def test_what_is_planned_for_a_tpu_is_written_for_one():
    assert platform() == jax.default_backend()
    with written_for("tpu"):
        assert platform() == "tpu"
    assert platform() == jax.default_backend()


def test_large_arrays_that_every_chip_holds_are_told(one_program):
    program, over = one_program("wake")
    state = placed(program.state, over)
    assert large_whole(state, CHIPS["v5e"].memory) == ()
    everywhere = large_whole(state, memory=1e3)
    assert any("final_norm [64] is whole on every chip: 128 bytes" in line for line in everywhere)


def test_collectives_that_no_step_needs_are_told(one_program):
    program, _ = one_program("wake")
    params = {"params": program.state.params}

    def told(kind, axis, size):
        return unexpected([Collective(kind, axis, 4, size, 1, "here")], params, gradient=2.0**21)

    assert told("all-gather", "fsdp", 4 * 64 * 256) == ()
    assert "more than one matrix" in told("all-gather", "fsdp", 4 * 64 * 256 + 1)[0]
    assert "more than the gradient" in told("all-reduce", "data", 2**21 + 1)[0]
    assert told("all-reduce", "tensor", 2**30) == ()
    assert "no axis of the mesh" in told("all-reduce", "?", 4)[0]


def test_a_program_that_waits_for_its_links_is_told():
    assert waiting(Bound(compute=1.0, memory=9.0, links=2.0)) == ()
    (line,) = waiting(Bound(compute=1.0, memory=9.0, links=3.0))
    assert "links take 3 times as long as products" in line


def test_the_roofline_is_the_longest_of_three():
    chip = dataclasses.replace(CHIPS["v5e"], flops=10.0, bandwidth=10.0, links=10.0, on_chip=5.0)

    def bound(**what):
        nothing = {"flops": 0.0, "moved": 0.0, "weights": 0.0, "reads": 1, "sent": 0.0}
        return lower_bound(chip, **{**nothing, **what})

    assert (bound(flops=20.0).seconds, bound(flops=20.0).by) == (2.0, "compute")
    assert (bound(moved=30.0, flops=20.0).seconds, bound(moved=30.0).by) == (3.0, "memory")
    assert bound(moved=10.0, weights=25.0, reads=3).memory == 1.0 + 2 * 2.0  # 5 may stay
    assert (bound(sent=40.0, moved=30.0).seconds, bound(sent=40.0).by) == (4.0, "links")


def test_what_fits_keeps_rows_first_then_whole_matrices_then_stores_as_much_as_it_can(small):
    def needs(config):
        stored = {"full": 1, "dots": 2}[config.model.remat_policy] if config.model.remat else 4
        return config.rows * stored / config.mesh.tensor

    best, tried = fit(small(rows=4), 8, lambda config: needs(config) <= 2)
    assert (best.rows, best.mesh.tensor, best.model.remat) == (4, 2, True)
    assert best.model.remat_policy == "full" and len(tried) == 3
    best, _ = fit(small(rows=4), 8, lambda config: needs(config) <= 1)
    assert (best.rows, best.mesh.tensor) == (2, 2)
    best, _ = fit(small(rows=4), 8, lambda config: True)
    assert (best.rows, best.mesh.tensor, best.model.remat) == (4, 1, False)
    wide = small()
    wide.model.d_model = 4096
    best, tried = fit(wide, 256, lambda config: True)
    assert best.mesh == MeshConfig() and "mesh.data=8 mesh.fsdp=32" in tried[0]
    with pytest.raises(ConfigError, match=r"rows = 4: 6 arrangements do not fit 8 chips"):
        fit(small(rows=4), 8, lambda config: False)


@pytest.mark.parametrize(
    ("mesh", "chips", "arranged"),
    [
        ({}, 16, (1, 16, 1)),
        ({}, 256, (8, 32, 1)),  # 128 of 4,096 columns each
        ({"tensor": 8}, 256, (1, 32, 8)),
        ({"fsdp": 256}, 256, (1, 256, 1)),
        ({"fsdp": 4}, 16, (4, 4, 1)),
        ({"data": 16}, 256, (16, 16, 1)),
    ],
)
def test_chips_without_a_place_cut_matrices_as_far_as_is_good_and_are_copies_beyond(
    mesh, chips, arranged
):
    assert tuple(MeshConfig(**mesh).shape(chips, d_model=4096).values()) == arranged


@pytest.mark.parametrize(
    ("said", "needs"),
    [
        ("Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm.", 17.5 * 2**30),
        ("the total memory required for HLO temporaries (22.50G) exceeds available HBM (15.75G).",
         22.5 * 2**30 + 1000),
        ("a compiler that crashes says something else", None),
    ],
)  # fmt: skip
def test_what_a_program_would_need_is_read_off_the_compilers_complaint(said, needs):
    assert room(f"RESOURCE_EXHAUSTED: {said}", arguments=1000) == needs


def test_many_plans_are_one_table(one_program, tmp_path):
    program, over = one_program("wake")
    made = compiled(program, over, CHIPS["v5e"])
    crowded = dataclasses.replace(made, name="seed", fits=False, needs=17 * 2**30)
    plan = Plan("v5e:2x2", dict(over.shape), CHIPS["v5e"], (made, crowded))
    file = tmp_path / "small.json"
    file.write_text(as_json(plan))
    head, _, wake, seed = table([read(file)]).splitlines()
    cells = dict(zip(head.split(" | "), wake.split(" | "), strict=True))
    assert wake.startswith("| small | v5e:2x2 | fsdp=4 | wake | ")
    assert cells["FLOPs"] == f"{made.flops:.3e}" and float(cells["of gradient"]) > 0
    assert "17 GiB (106%), DOES NOT FIT" in seed and len(seed.split(" | ")) == len(cells)
    for content in ("{}", "no JSON"):
        file.write_text(content)
        with pytest.raises(ConfigError, match="is no plan: write one with sleeplm plan"):
            read(file)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5e", "name a chip and its grid"),
        ("v9:2x2", "the chip is one of v5e, v5p, v6e"),
        ("gpu:8", "GPUs cannot be planned for without one"),
    ],
)
def test_an_unknown_topology_is_one_line(name, said):
    with pytest.raises(ConfigError, match=said) as told:
        topology.devices(name)
    assert str(told.value).startswith(f"topology = {name!r}") and "\n" not in str(told.value)


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(topology, "there_is_a_compiler", lambda: False)
    with pytest.raises(ConfigError, match=r"needs libtpu.*pip install 'sleeplm\[plan\]'"):
        topology.devices("v5e:2x2")


def test_settings_that_cannot_work_are_one_line(small):
    with pytest.raises(ConfigError, match=r"mesh = \[1, 3, 1\]: .* topology's 4 chips"):
        MeshConfig(fsdp=3).shape(4, d_model=4096)
    with pytest.raises(ConfigError, match=r"programs = 'train': "):
        small(programs=["train"]).check("")
    config = small()
    for level in config.model.levels:
        level.night = 0
    with pytest.raises(
        ConfigError, match=r"model.levels = \['fast', 'slow'\]: no level has a night"
    ):
        config.check("")


def test_an_experiment_that_is_no_plan_is_one_line(capsys):
    command = ["plan", "experiments/retention.py", "--topology", "v5e:2x2"]
    assert cli.main(command) == 2
    told = capsys.readouterr().err
    assert "must return a PlanConfig, not RetentionConfig" in told and told.count("\n") == 1
    assert cli.main([*command, "--topolgy=v5e:2x2"]) == 2
    assert "did you mean --topology?" in capsys.readouterr().err


@needs_libtpu
def test_a_tiny_learner_is_planned_for_four_chips_of_v5e(small):
    found = topology.devices("v5e:2x2")
    assert len(found) == 4 and found[0].device_kind == CHIPS["v5e"].kind
    over = mesh({"data": 1, "fsdp": 4, "tensor": 1}, found)
    with written_for("tpu"):
        (program,) = programs(small(programs=["wake"]), over)
        made = compiled(program, over, CHIPS["v5e"], fast=True)
    assert made.fits and made.donated and made.memory["padding"] >= 0
    assert math.isclose(sum(made.memory.values()), made.needs)
    assert unusual(made) == []
    assert {c.axis for c in made.collectives} <= {"fsdp"}


def test_a_cache_is_laid_out_as_the_platform_that_is_planned_for_likes_it(one_program):
    shapes = one_program("decode")[0].cache
    with written_for("tpu"):
        planned = one_program("decode")[0].cache
    assert shapes["k"].shape == (2, 8, 2, 16, 32) and planned["k"].shape == (2, 8, 16, 2, 32)
    assert planned["k"].dtype == jnp.bfloat16


@needs_libtpu
def test_a_mesh_whose_sizes_are_no_axes_of_the_torus_cuts_some():
    over = mesh({"data": 32, "fsdp": 32}, topology.devices("v5p:8x8x16"))
    assert dict(over.shape) == {"data": 32, "fsdp": 32}
    assert len({device.id for device in over.devices.flat}) == 1024
