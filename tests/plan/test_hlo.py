# ruff: noqa: E501 (a program's text has long lines)
"""A compiled program's text is read as it was meant: loops, products, and who talks to whom."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sleeplm.core.errors import ConfigError
from sleeplm.plan.collectives import axis_of, groups_of
from sleeplm.plan.costs import costs
from sleeplm.plan.hlo import parse
from sleeplm.runtime.parallel import mesh

MESH = {"data": 2, "fsdp": 2, "tensor": 1}

TEXT = """
HloModule step, is_scheduled=true, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%all-reduce-scatter.1 (input: bf16[4,8]) -> bf16[4,4] {
  %input = bf16[4,8]{1,0} parameter(0)
  %reduced = bf16[4,8]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=2, replica_groups={{0,1},{2,3}}, use_global_device_ids=true, to_apply=%add
  ROOT %mine = bf16[4,4]{1,0} slice(%reduced), slice={[0:4], [0:4]}
}

%beside (given: bf16[2,8], x: f32[4,8]) -> f32[4,4] {
  %given = bf16[2,8]{1,0} parameter(0)
  %x.1 = f32[4,8]{1,0} parameter(1)
  %gathered = bf16[4,8]{1,0} all-gather(%given), channel_id=7, replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}, use_global_device_ids=true
  ROOT %product = f32[4,4]{1,0} dot(%x.1, %x.1), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}

%body (carry: (s32[], bf16[2,8], f32[4,8])) -> (s32[], bf16[2,8], f32[4,8]) {
  %carry = (s32[]{:T(128)}, bf16[2,8]{1,0}, /*index=2*/f32[4,8]{1,0}) parameter(0)
  %part = bf16[2,8]{1,0} get-tuple-element(%carry), index=1
  %rest = f32[4,8]{1,0} get-tuple-element(%carry), index=2
  %began = f32[4,4]{1,0} fusion(%part, %rest), kind=kCustom, calls=%beside
  %ended = f32[4,4]{1,0} fusion(%part, %began), kind=kCustom, calls=%beside
  ROOT %next = (s32[], bf16[2,8], f32[4,8]) tuple(%part, %part, %ended)
}

%until (carry.1: (s32[], bf16[2,8], f32[4,8])) -> pred[] {
  %carry.1 = (s32[]{:T(128)}, bf16[2,8]{1,0}, f32[4,8]{1,0}) parameter(0)
  %limit = s32[] constant(6)
  %count = s32[] get-tuple-element(%carry.1), index=0
  ROOT %less = pred[] compare(%count, %limit), direction=LT
}

%cheap (p: f32[4,8]) -> f32[4,8] {
  ROOT %p = f32[4,8]{1,0} parameter(0)
}

%dear (q: f32[4,8]) -> f32[4,8] {
  %q = f32[4,8]{1,0} parameter(0)
  ROOT %again = f32[4,4]{1,0} convolution(%q, %q), dim_labels=bf_oi->bf
}

ENTRY %main (a: bf16[2,8], b: f32[4,8], c: bf16[4,8]) -> f32[4,8] {
  %a = bf16[2,8]{1,0} parameter(0)
  %b = f32[4,8]{1,0} parameter(1)
  %c = bf16[4,8]{1,0} parameter(2)
  %one = s32[] constant(1)
  %start = (s32[], bf16[2,8], f32[4,8]) tuple(%one, %a, %b)
  %loop = (s32[], bf16[2,8], f32[4,8]) while(%start), condition=%until, body=%body, metadata={op_name="step/while"}
  %piece = bf16[4,4]{1,0} fusion(%c), kind=kCustom, calls=%all-reduce-scatter.1
  %moved = bf16[2,8]{1,0} collective-permute(%a), channel_id=9, source_target_pairs={{0,2},{2,0}}
  %mine = f32[4,8]{1,0} all-reduce(%b), channel_id=3, replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0','axis_1'}, use_global_device_ids=true, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %picked = f32[4,8]{1,0} conditional(%zero, %b, %b), branch_computations={%cheap, %dear}
}
"""


@pytest.fixture(scope="module")
def found():
    return costs(parse(TEXT), MESH)


def test_a_loop_counts_as_often_as_it_runs_and_of_branches_the_dearest(found):
    inside = 2 * (2 * 4 * 4 * 8)  # two products [4, 8] x [8, 4] each time
    branch = 2 * 4 * 4 * 8
    assert found.flops == 5 * inside + branch  # from 1 to 6
    assert found.bounded == ()


def test_collectives_say_kind_axis_bytes_and_how_often(found):
    told = {(c.kind, c.axis, c.chips, c.nbytes, c.times) for c in found.collectives}
    assert told == {
        ("all-gather", "data", 2, 2 * 32.0, 5),  # one, though two computations name its channel
        ("reduce-scatter", "fsdp", 2, 2 * 32.0, 1),
        ("all-reduce", "data x fsdp", 4, 4 * 32.0, 1),
        ("collective-permute", "data", 2, 2 * 16.0, 1),
    }


def test_a_loop_that_may_stop_early_counts_whole_and_says_so():
    early = TEXT.replace(
        "ROOT %less = pred[] compare(%count, %limit), direction=LT",
        "%less = pred[] compare(%count, %limit), direction=LT\n"
        "  ROOT %both = pred[] and(%less, %less)",
    )
    found = costs(parse(early), MESH)
    assert found.bounded == ("step/while",)
    assert found.flops == costs(parse(TEXT), MESH).flops


def test_every_way_to_write_groups_is_read():
    want = [[0, 2], [1, 3]]
    assert groups_of("replica_groups={{0,2},{1,3}}, x", 4) == want
    assert groups_of("replica_groups=[2,2]<=[2,2]T(1,0), x", 4) == want
    assert groups_of("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", 4) == want
    turned = "replica_groups=mesh['a'=2,'b'=1,'c'=2], device_ids=([2,2]T(1,0)) {'c'}, x"
    assert groups_of(turned, 4) == want
    assert groups_of("replica_groups=mesh['a'=4] {'a':(1)2}, x", 4) == want
    assert groups_of("replica_groups={}", 4) == [[0, 1, 2, 3]]
    assert axis_of(want, MESH) == "data" and axis_of([[0, 1], [2, 3]], MESH) == "fsdp"
    assert axis_of([[0, 3], [1, 2]], MESH) == "?"


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ConfigError, match="not the text of a compiled program"):
        parse("nothing")


def test_a_dense_network_has_two_flops_a_parameter_and_token_forward_and_six_in_all():
    layers, width, tokens = 5, 16, 8
    weights = jax.ShapeDtypeStruct((layers, width, width), jnp.float32)
    x = jax.ShapeDtypeStruct((tokens, width), jnp.float32)

    def loss(weights, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0].sum()

    parameters = layers * width * width
    forward = costs(parse(jax.jit(loss).lower(weights, x).compile().as_text()), {"data": 1})
    assert forward.flops == 2 * parameters * tokens
    both = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(weights, x).compile()
    assert costs(parse(both.as_text()), {"data": 1}).flops == 6 * parameters * tokens
    assert both.cost_analysis()["flops"] < 2 * 6 * parameters * tokens / layers  # one layer


def test_real_collectives_of_simulated_devices_are_found_on_their_axes():
    over = mesh({"data": 2, "fsdp": 2})

    def at(*spec):
        return NamedSharding(over, P(*spec))

    def step(w, x):
        def loss(w):
            y = jax.lax.with_sharding_constraint(x @ w, at(("data", "fsdp")))
            return jnp.sum(y**2)

        return jax.lax.with_sharding_constraint(jax.grad(loss)(w), at("fsdp"))

    places = {"in_shardings": (at("fsdp"), at(("data", "fsdp"))), "out_shardings": at("fsdp")}
    lowered = jax.jit(step, **places)
    text = lowered.lower(np.zeros((8, 64), np.float32), np.zeros((16, 8), np.float32)).compile()
    found = costs(parse(text.as_text()), dict(over.shape))
    gathered = [c for c in found.collectives if c.kind == "all-gather"]
    assert {(c.axis, c.nbytes) for c in gathered} == {("fsdp", 8 * 64 * 4.0)}
    summed = [c for c in found.collectives if c.kind in ("all-reduce", "reduce-scatter")]
    assert {axis for c in summed for axis in c.axis.split(" x ")} == {"data", "fsdp"}
    assert found.flops == 2 * (2 * 16 * 8 * 64) / 4  # forward and the gradient of w, on 4 devices
