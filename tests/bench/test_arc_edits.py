"""Self-edits: which texts are one, and the rows of training text that they make."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sleeplm.bench.arc.edits import PRODUCTS, answered, expander, plain_rows, read_edit, row_of
from sleeplm.bench.arc.material import Sizes, prepare, turned
from sleeplm.data import grids
from sleeplm.data.grid_rules import dihedral
from sleeplm.data.grids import GridTask, GridTokenizer, Pair, pair_tokens
from sleeplm.methods.dreams.write import memory_of

WORDS = GridTokenizer()
WIDTH = 80
PAIRS = (
    Pair(((1, 2, 0),), ((2, 1),)),
    Pair(((3, 0, 4),), ((4, 3),)),
    Pair(((5, 6, 7),), ((7, 5),)),
)
TASK = GridTask("t", PAIRS, (Pair(((8, 0, 9),), ((9, 8),)),))
CORNERS = (Pair(((1, 2), (3, 4)), ((5,),)), Pair(((4, 3), (1, 2)), ((6,),)))
SQUARE = GridTask("s", CORNERS, CORNERS[:1])  # no two symmetries of it are the same
SIZES = Sizes([WIDTH], pairs=5, tests=1, answer=8)


def edit_tokens(text):
    tokens = [*WORDS.encode(text), grids.EOS]
    return jnp.array(tokens + [0] * (grids.EDIT_TOKENS - len(tokens)))


def shown(task=TASK):
    return prepare(task, SIZES).shown


READ, ROW = jax.jit(read_edit), jax.jit(row_of, static_argnums=4)


def row(text, number=0, seed=0, task=TASK):
    return ROW(READ(edit_tokens(text)), shown(task), number, jax.random.key(seed), WIDTH)


def told(memory):
    """Pairs of a row, as lists of tokens."""
    tokens = np.asarray(memory.tokens)
    assert tokens[0] == grids.BOS
    ends = np.flatnonzero(tokens == grids.EOS) + 1
    assert not tokens[ends[-1] :].any()
    return [part.tolist() for part in np.split(tokens[1 : ends[-1]], ends[:-1] - 1)]


# --- reading --------------------------------------------------------------------------------------


def test_an_edit_says_what_is_to_be_done():
    edit = READ(edit_tokens("rotate recolour on_outputs rate2 steps1"))
    assert edit.valid
    assert edit.uses.tolist() == [True, False, False, True, False]
    assert [int(x) for x in (edit.loss, edit.rate, edit.steps)] == [1, 2, 1]


@pytest.mark.parametrize(
    "text", ["on_all rate0 steps0", " ".join([*grids.AUGMENTATIONS, "on_outputs rate3 steps2"])]
)
def test_the_shortest_and_the_longest_are_edits(text):
    assert READ(edit_tokens(text)).valid


@pytest.mark.parametrize(
    "text",
    [
        "", "rotate", "rate0 steps0", "on_all steps0", "on_all rate0", "rate0 on_all steps0",
        "flip rotate on_all rate0 steps0", "rotate rotate on_all rate0 steps0",
        "on_all on_outputs rate0 steps0", "on_all rate0 rate1 steps0", "on_all rate0 steps0 1",
        "3 on_all rate0 steps0", "edit on_all rate0 steps0",
    ],
)  # fmt: skip
def test_other_texts_are_none(text):
    assert not READ(edit_tokens(text)).valid


def test_an_edit_has_to_end():
    tokens = jnp.array(WORDS.encode(" ".join([*grids.AUGMENTATIONS, "on_all rate0 steps0 steps1"])))
    assert len(tokens) == grids.EDIT_TOKENS and not READ(tokens).valid
    open_end = edit_tokens("on_all rate0 steps0").at[3].set(0)
    assert not READ(open_end).valid


def test_what_stands_behind_the_end_does_not_count():
    assert READ(edit_tokens("on_all rate0 steps0").at[4].set(grids.EDIT)).valid


# --- rows -----------------------------------------------------------------------------------------


def test_without_augmentations_rows_are_the_demonstrations_each_the_query_in_turn():
    plain = [pair_tokens(pair) for pair in PAIRS]
    for number in range(4):
        query = number % 3
        others = [tokens for i, tokens in enumerate(plain) if i != query]
        assert told(row("on_all rate0 steps0", number)) == [*others, plain[query]]


def test_the_loss_is_of_outputs_or_of_all_tokens():
    every, outputs = (row(f"{loss} rate0 steps0") for loss in grids.LOSSES)
    used = np.asarray(every.tokens) > 0
    assert np.array_equal(np.asarray(every.weights) > 0, used & (np.arange(WIDTH) > 0))
    words = WORDS.decode(np.asarray(outputs.tokens)[np.asarray(outputs.weights) > 0])
    assert words == "4 3 / 7 5 / 2 1 /"
    assert outputs.weights.sum() == 3 * 4  # their ends are learned as well


@pytest.mark.parametrize(
    ("names", "symmetries"),
    [
        ("rotate", {0, 1, 2, 3}),
        ("flip", {0, 4}),
        ("transpose", {0, 7}),
        ("rotate flip", set(range(8))),
    ],
)
def test_a_row_is_turned_as_a_whole_by_one_of_the_symmetries_it_names(names, symmetries):
    ways = {
        i: sorted(pair_tokens(turned(pair, i)) for pair in SQUARE.demonstrations) for i in range(8)
    }
    seen = set()
    for seed in range(80):
        mine = sorted(told(row(f"{names} on_all rate0 steps0", seed=seed, task=SQUARE)))
        (way,) = [i for i, tokens in ways.items() if tokens == mine]
        seen.add(way)
    assert seen == symmetries


def test_symmetries_are_put_together_as_numpy_does():
    grid = np.arange(12).reshape(3, 4)
    for k, mirrored, transposed in np.ndindex(4, 2, 2):
        want = np.rot90(grid, k)
        want = want[:, ::-1] if mirrored else want
        want = want.T if transposed else want
        assert np.array_equal(dihedral(grid, PRODUCTS[k, mirrored, transposed]), want)


def test_colours_change_places_alike_in_a_row_and_the_background_stays():
    plain = row("on_all rate0 steps0").tokens
    tables = set()
    for seed in range(6):
        table = {}
        for old, new in zip(
            plain, row("recolour on_all rate0 steps0", seed=seed).tokens, strict=True
        ):
            table.setdefault(int(old), set()).add(int(new))
        assert all(len(new) == 1 for new in table.values())
        assert len({min(new) for new in table.values()}) == len(table)
        colours = range(grids.COLOUR + 1, grids.COLOUR + 10)
        moved = {old: min(new) for old, new in table.items() if old not in colours}
        assert all(old == new for old, new in moved.items())
        assert all(min(table[c]) in colours for c in colours if c in table)
        tables.add(tuple(min(table[old]) for old in sorted(table)))
    assert len(tables) > 3


def test_reordered_rows_keep_their_query_last():
    plain = [pair_tokens(pair) for pair in PAIRS]
    orders = set()
    for seed in range(12):
        parts = told(row("reorder on_all rate0 steps0", number=1, seed=seed))
        assert parts[-1] == plain[1] and sorted(parts) == sorted(plain)
        orders.add(plain.index(parts[0]))
    assert orders == {0, 2}


def test_rows_hold_as_many_pairs_as_there_is_room_for():
    long = Pair(((1,) * 10,), ((2,) * 10,))  # 25 tokens, and 43 transposed
    task = GridTask("long", (long, *PAIRS), PAIRS[:1])
    assert shown(task).room == 3  # 1 + 43 + 13 + 13 of 80; a fourth would be too much
    for number in range(4):
        assert len(told(row("reorder on_all rate0 steps0", number, task=task))) == 3


def test_answers_are_outputs_and_edits():
    text = "in 1 / out 2 / <eos> in 3 / out 4 / <eos> edit flip <eos>"
    tokens = jnp.array([grids.WORDS.index(word) for word in f"<bos> {text} <pad>".split()])
    marked = np.asarray(tokens)[np.asarray(answered(tokens))]
    assert " ".join(grids.WORDS[t] for t in marked) == "2 / <eos> 4 / <eos> flip <eos>"
    both = jnp.stack([tokens, tokens[::-1]])
    assert np.array_equal(answered(both)[0], answered(tokens))


# --- lessons --------------------------------------------------------------------------------------


def lessons(*texts):
    expand = expander(rows=4, width=WIDTH, rates=[0.1, 0.2, 0.3, 0.4], steps=[1, 2, 5])
    edits = jnp.stack([edit_tokens(text) for text in texts])
    rows = jnp.pad(edits, ((0, 0), (1, 0)), constant_values=grids.BOS)
    dreams = memory_of(rows, rows > 0, (rows > 0).sum(1))
    keys = jax.random.split(jax.random.key(0), len(texts))
    return jax.jit(expand)(dreams, {"shown": shown()}, keys)


def test_the_pace_is_the_rate_for_so_many_steps():
    (_, pace), fit = lessons("on_all rate1 steps1", "flip on_outputs rate3 steps2", "flip")
    np.testing.assert_allclose(pace[0], [0.2, 0.2, 0, 0, 0])
    np.testing.assert_allclose(pace[1], [0.4] * 5, rtol=1e-6)
    assert fit.tolist() == [True, True, False]


def test_what_is_no_edit_teaches_nothing():
    (rows, _), _ = lessons("on_all rate1 steps1", "flip")
    assert rows.weights[0].any(1).all() and not rows.weights[1].any()


def test_a_dreams_rows_depend_on_its_own_key_alone():
    text = "rotate recolour on_all rate0 steps0"
    (two, _), _ = lessons(text, "on_all rate0 steps0")
    (one, _), _ = lessons(text, text)
    assert np.array_equal(two.tokens[0], one.tokens[0])
    assert not np.array_equal(one.tokens[0], one.tokens[1])


def test_plain_rows_have_every_demonstration_as_the_query_once():
    memory = jax.jit(plain_rows, static_argnums=1)(shown(), WIDTH)
    there = np.asarray(memory.weights).any(1)
    assert there.tolist() == [True] * 3 + [False] * 2
    queries = [told(jax.tree.map(lambda x, i=i: x[i], memory))[-1] for i in range(3)]
    assert queries == [pair_tokens(pair) for pair in PAIRS]
