"""Generation: prefill, then one compiled loop over a key/value cache."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from sleeplm.core.platform import platform
from sleeplm.core.types import Array, PyTree, Variables
from sleeplm.models.transformer import Model

MIN_TEMPERATURE = 1e-4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
    """Prompts and what the model wrote after them, left-aligned.

    Attributes:
      tokens: int32 [B, C + new], prompt then continuation then padding (0).
      start: int32 [B], where the continuation begins (the prompt's length).
      length: int32 [B], tokens in all, the stop token included.
      logp: float32 [B, C + new], log-probability (temperature 1) of each written token, else 0.
      hidden: [B, C + new, D] or None, the writer's final hidden states from which each written
        token was drawn (they stand one position before it), 0 elsewhere: with the unembedding a
        lossless code for the distributions it was drawn from.
    """

    tokens: Array
    start: Array
    length: Array
    logp: Array
    hidden: Array | None = None

    @property
    def written(self) -> Array:
        """bool [B, C + new]: the tokens that the model wrote, the stop token included."""
        index = jnp.arange(self.tokens.shape[1])
        return (index >= self.start[:, None]) & (index < self.length[:, None])

    @property
    def segments(self) -> Array:
        """int32 [B, C + new]: 1 on tokens, 0 on padding."""
        return (jnp.arange(self.tokens.shape[1]) < self.length[:, None]).astype(jnp.int32)


def generate(
    model: Model,
    variables: Variables,
    prompts: Array,
    lengths: Array,
    keys: Array,
    *,
    max_new: int,
    temperature: Array | float = 1.0,
    top_k: int = 0,
    eos: Array | int | None = None,
    explore: bool = False,
    keep_hidden: bool = False,
    alike: bool = True,
) -> Samples:
    """Continues prompts until the stop token or ``max_new`` tokens.

    Args:
      prompts: int32 [B, C], left-aligned. lengths: int32 [B], at least 1 each.
      keys: [B] PRNG keys, one a row, so that the sample of a row does not depend on how rows
        are spread over devices.
      max_new: most tokens written per row.
      temperature: 0 is greedy; may be traced.
      top_k: sample among the k likeliest tokens only; 0: all.
      eos: the stop token; None: the model's own. -1: never stop. May be traced.
      explore: every router also uses one random open expert, drawn per row (section 6).
      keep_hidden: also return the writer's hidden states, which spares whoever needs its
        distributions a second forward pass.
      alike: ``variables`` are the same for all rows; False if they hold something for each row, so
        that no row can go on without the others.
    """
    batch, cue = prompts.shape
    c = model.config
    eos = c.eos if eos is None else eos
    pad = cue - lengths
    index = jnp.arange(cue)
    # Right-align: every row then writes its cache at the same time, with no scatter.
    source = index[None] - pad[:, None]
    aligned = jnp.take_along_axis(prompts, jnp.maximum(source, 0), axis=1)
    noise = explore_noise(model, keys) if explore else None
    uniform = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 0), (max_new,)))(keys)
    unembed = model.unembed(variables["params"]).astype(jnp.dtype(c.dtype))
    variables = _apart(model, variables)
    total = cue + max_new
    times = jnp.arange(total)

    given = {"pad": pad, "uniform": uniform, "noise": noise}  # of each row, for all steps

    def forward(given: PyTree, tokens: Array, at: Array | int, cache: PyTree):
        pad = given["pad"]
        now = at + jnp.arange(tokens.shape[1])
        seen = (times[None, None] <= now[None, :, None]) & (times >= pad[:, None])[:, None]
        # A padding query sees only itself, so that no row of the softmax is empty.
        seen = seen | (times[None, None] == now[None, :, None])
        positions = jnp.maximum(now[None] - pad[:, None], 0)
        x, cache = model.run(
            variables, tokens, positions, seen[:, None], explore=given["noise"], cache=cache, at=at
        )
        logits = jnp.matmul(x[:, -1], unembed, preferred_element_type=jnp.float32)
        return logits, x[:, -1:] if keep_hidden else None, cache

    def choose(given: PyTree, logits: Array, step: Array | int, done: Array):
        token = sample(logits, given["uniform"][:, step], temperature, top_k)
        chosen = jnp.take_along_axis(logits, token[:, None], 1)[:, 0]
        logp = chosen - jax.nn.logsumexp(logits, axis=-1)
        return jnp.where(done, 0, token), jnp.where(done, 0.0, logp)

    def write(given: PyTree, written: _Written, cache: PyTree, step: Array, until: int):
        """Goes on until no more than ``until`` rows are unfinished."""

        def cond(carry):
            step, written, _ = carry
            return (step < max_new) & (_unfinished(written.done) > until)

        def body(carry):
            step, written, cache = carry
            logits, x, cache = forward(given, written.token[:, None], cue + step - 1, cache)
            token, logp = choose(given, logits, step, written.done)
            return step + 1, written.add(step, token, logp, x, eos), cache

        return jax.lax.while_loop(cond, body, (step, written, cache))

    logits, x, cache = forward(given, aligned, 0, model.init_cache(batch, total))
    token, logp = choose(given, logits, 0, jnp.zeros_like(lengths, bool))
    written = _Written(
        token=token,
        done=token == eos,
        out=jnp.zeros_like(prompts, shape=(batch, max_new)).at[:, 0].set(token),
        logps=jnp.zeros_like(logits, shape=(batch, max_new)).at[:, 0].set(logp),
        states=jnp.pad(x, ((0, 0), (0, max_new - 1), (0, 0))) if keep_hidden else None,
    )
    few = _few(batch) if alike else 0
    step, written, cache = write(given, written, cache, jnp.int32(1), few)
    if few:
        # The long ones go on among themselves: a step costs a processor what its rows cost.
        rows = jnp.argsort(written.done, stable=True)[:few]
        axis = 1 if c.scan_layers else 0
        noise = None if noise is None else jax.tree.map(lambda x: x[:, rows], noise)
        given = {"pad": pad[rows], "uniform": uniform[rows], "noise": noise}
        cache = jax.tree.map(lambda x: jnp.take(x, rows, axis), cache)
        late = jax.tree.map(lambda x: x[rows], written)
        _, late, _ = write(given, late, cache, step, 0)
        written = jax.tree.map(lambda x, new: x.at[rows].set(new), written, late)
    out, logps, states = written.out, written.logps, written.states
    stop = out == eos
    new = jnp.where(stop.any(1), jnp.argmax(stop, 1) + 1, max_new).astype(jnp.int32)
    return _join(prompts, lengths, out, logps, states, new)


def _apart(model: Model, variables: Variables) -> Variables:
    """On a CPU the layers' parameters, cut apart once: in the loop every step would copy them all.

    The barrier keeps XLA from moving the cuts back to where they are used.
    """
    if platform() != "cpu" or model.config.scan_layers:
        return variables
    layers = jax.lax.optimization_barrier(model.layers(variables["params"]))
    return {**variables, "params": {**variables["params"], "blocks": layers}}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Written:
    """What the loop has written so far: per row the last token, whether it is done, and all."""

    token: Array
    done: Array
    out: Array
    logps: Array
    states: Array | None

    def add(
        self, step: Array, token: Array, logp: Array, x: Array | None, eos: Array | int
    ) -> _Written:
        """One more token of every row; x [B, 1, D] are the states they were drawn from."""

        def put(whole: Array, column: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(whole, column, step, 1)

        return _Written(
            token=token,
            done=self.done | (token == eos),
            out=put(self.out, token[:, None]),
            logps=put(self.logps, logp[:, None]),
            states=None if self.states is None or x is None else put(self.states, x),
        )


def _few(batch: int) -> int:
    """How many unfinished rows go on without the others; 0: all stay together to the end.

    On an accelerator a step costs about the same for fewer rows, and rows may be spread over
    devices: there they stay where they are.
    """
    return batch // 4 if platform() == "cpu" and batch >= 64 else 0


@jax.custom_batching.custom_vmap
def _unfinished(done: Array) -> Array:
    """How many rows are unfinished. Under ``vmap``: of the learner with most, one answer for all.

    A loop whose condition differs from learner to learner would copy every cache at every step.
    """
    return (~done).sum()


@_unfinished.def_vmap
def _most_unfinished(axis_size: int, in_batched: list[bool], done: Array) -> tuple[Array, bool]:
    return (~done).sum(-1).max(), False


def sample(logits: Array, uniform: Array, temperature: Array | float, top_k: int) -> Array:
    """Tokens int32 [B] from logits [B, V] by inverting the CDF at uniform [B] in [0, 1).

    One random number a row instead of V; ``temperature`` 0 takes the likeliest token.
    """
    kept = None
    if top_k:
        logits, kept = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))
    top = jnp.max(logits, -1, keepdims=True)
    mass = jnp.exp((logits - top) / jnp.maximum(temperature, MIN_TEMPERATURE))
    greedy = _first(logits == top)
    token = jnp.where(temperature <= MIN_TEMPERATURE, greedy, invert_cdf(mass, uniform))
    if kept is not None:
        token = jnp.take_along_axis(kept, token[:, None], 1)[:, 0]
    return token.astype(jnp.int32)


def invert_cdf(mass: Array, uniform: Array) -> Array:
    """int32 [B]: the class of masses [B, V] in which uniform [B] falls; never one of mass 0.

    First among about sqrt(V) blocks, then inside one: two short running sums cost a fraction of
    a long one.
    """
    batch, classes = mass.shape
    width = math.isqrt(classes - 1) + 1
    blocks = jnp.pad(mass, ((0, 0), (0, -classes % width))).reshape(batch, -1, width)
    block, rest = _fall(blocks.sum(-1), uniform)
    inside = jnp.take_along_axis(blocks, block[:, None, None], 1)[:, 0]
    return block * width + _fall(inside, rest)[0]


def _fall(mass: Array, uniform: Array) -> tuple[Array, Array]:
    """The class of masses [B, n] in which uniform [B] falls, and where in it, both of [0, 1)."""
    cdf = jnp.cumsum(mass, -1)
    target = uniform[:, None] * cdf[:, -1:]
    last = jnp.max(jnp.where(mass > 0, jnp.arange(mass.shape[-1]), 0), -1)
    hit = jnp.minimum(_first((cdf > target) & (mass > 0)), last)  # rounding may leave none above
    here = jnp.take_along_axis(mass, hit[:, None], 1)[:, 0]
    end = jnp.take_along_axis(cdf, hit[:, None], 1)[:, 0]
    return hit, jnp.clip((target[:, 0] - end + here) / here, 0.0, 1.0)


def _first(mask: Array) -> Array:
    """int32 [B]: index of the first True in bool [B, n], n - 1 if there is none.

    An argmax would say the same; on a CPU it is several times slower.
    """
    n = mask.shape[-1]
    return jnp.min(jnp.where(mask, jnp.arange(n), n - 1), -1)


def explore_noise(model: Model, keys: Array) -> dict[str, Array]:
    """``{level: float32 [N, B, S]}``: its largest open entry picks a row's random extra expert."""
    layers = model.config.n_layers

    def one(key: Array, salt: int, slots: int) -> Array:
        return jax.random.uniform(jax.random.fold_in(key, salt), (layers, slots))

    return {
        lv.name: jax.vmap(lambda k, i=i, s=lv.slots: one(k, i, s), out_axes=1)(keys)
        for i, lv in enumerate(model.config.levels, start=1)
    }


def _join(
    prompts: Array, lengths: Array, out: Array, logps: Array, states: Array | None, new: Array
) -> Samples:
    """Puts continuations [B, new] right behind prompts [B, C] of ragged lengths."""
    cue, max_new = prompts.shape[1], out.shape[1]
    index = jnp.arange(cue + max_new)
    offset = index[None] - lengths[:, None]

    def place(values: Array, offset: Array) -> Array:
        """Values [B, new, ...] at the positions where ``offset`` counts the written tokens."""
        written = (offset >= 0) & (offset < new[:, None])
        extra = (1,) * (values.ndim - 2)
        take = jnp.clip(offset, 0, max_new - 1).reshape(*offset.shape, *extra)
        taken = jnp.take_along_axis(values, take, 1)
        return jnp.where(written.reshape(*offset.shape, *extra), taken, 0)

    prompt = jnp.pad(prompts, ((0, 0), (0, max_new)))
    return Samples(
        tokens=jnp.where(offset < 0, prompt, place(out, offset)),
        start=lengths,
        length=lengths + new,
        logp=place(logps, offset),
        hidden=None if states is None else place(states, offset + 1),
    )
