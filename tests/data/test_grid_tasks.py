"""Generated grid tasks: rules that hold for all pairs of a task, and none that is kept back."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sleeplm.data import grids
from sleeplm.data.grid_rules import dihedral
from sleeplm.data.grid_tasks import (
    FAMILIES,
    HELD_OUT,
    TAUGHT,
    GridTaskConfig,
    make_task,
    pretraining_documents,
    random_edit,
    task_tokens,
)
from sleeplm.data.gridfiles import read_tasks
from sleeplm.data.grids import GridTokenizer, pair_tokens

DATA = Path(os.environ.get("SLEEPLM_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
MANY = 30


def arrays(task):
    """Inputs and outputs of all pairs of a task."""
    return [(np.array(p.input), np.array(p.output)) for p in (*task.demonstrations, *task.tests)]


def tasks(family, many=MANY, **settings):
    return [make_task(3, number, (family,), **settings) for number in range(many)]


def one_rule(task, rules):
    """Whether one and the same of some rules explains every pair."""
    return any(
        all(np.array_equal(rule(given), made) for given, made in arrays(task)) for rule in rules
    )


def test_a_task_is_a_function_of_its_seed_and_number():
    assert make_task(1, 5) == make_task(1, 5)
    others = [make_task(1, 6), make_task(2, 5)]
    assert make_task(1, 5) not in others and others[0] != others[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_tasks_have_different_pairs_that_change_and_fit_arcs_limits(family):
    for task in tasks(family, most=4):
        pairs = (*task.demonstrations, *task.tests)
        assert 2 <= len(task.demonstrations) <= 4 and len(task.tests) == 1
        assert len(set(pairs)) == len(pairs)
        for given, made in arrays(task):
            assert not np.array_equal(given, made)
            assert max(given.shape + made.shape) <= 30
            assert given.min() >= 0 and max(given.max(), made.max()) <= 9


def test_turns_are_one_symmetry_for_all_pairs():
    symmetries = [lambda g, i=i: dihedral(g, i) for i in range(1, 8)]
    assert all(one_rule(task, symmetries) for task in tasks("turn"))


def test_the_eight_symmetries_are_all_there_are():
    grid = np.arange(6).reshape(2, 3)
    made = {tuple(map(tuple, dihedral(grid, i).tolist())) for i in range(8)}
    assert len(made) == 8
    turned = [np.rot90(turned) for turned in map(np.array, made)]
    assert {tuple(map(tuple, grid.tolist())) for grid in turned} == made


def test_recolourings_are_one_table_that_leaves_the_background():
    for task in tasks("recolour"):
        table = {0: {0}}
        for given, made in arrays(task):
            for old, new in zip(given.ravel(), made.ravel(), strict=True):
                table.setdefault(int(old), set()).add(int(new))
        assert all(len(new) == 1 for new in table.values())


def test_tiles_are_copies_of_the_input_and_blocks_are_of_its_cells():
    for family in ("tile", "scale"):
        for task in tasks(family):
            for given, made in arrays(task):
                (h, w), high, wide = given.shape, len(made), made.shape[1]
                rows, columns = np.indices(made.shape)
                if family == "tile":
                    assert np.array_equal(made, given[rows % h, columns % w])
                else:
                    assert np.array_equal(made, given[rows * h // high, columns * w // wide])
                assert made.size > given.size


def test_mirrored_tiles_are_mirrored_alike_in_all_pairs():
    flips = [lambda g: g, lambda g: g[::-1], lambda g: g[:, ::-1], lambda g: g[::-1, ::-1]]
    for task in tasks("mirror"):
        possible = None
        for given, made in arrays(task):
            h, w = given.shape
            cut = made.reshape(made.shape[0] // h, h, made.shape[1] // w, w).swapaxes(1, 2)
            mine = [
                {i for i, flip in enumerate(flips) if np.array_equal(flip(given), tile)}
                for row in cut
                for tile in row
            ]
            possible = (
                mine if possible is None else [a & b for a, b in zip(possible, mine, strict=True)]
            )
        assert all(possible)


def test_what_falls_keeps_its_cells_and_lies_on_one_side():
    def fallen(grid, number):
        columns = np.rot90(grid, number).T
        return all((np.diff((column != 0).astype(int)) >= 0).all() for column in columns)

    for task in tasks("gravity"):
        for given, made in arrays(task):
            assert Counter(given.ravel().tolist()) == Counter(made.ravel().tolist())
        assert any(all(fallen(made, i) for _, made in arrays(task)) for i in range(4))


def test_counts_are_those_of_their_inputs():
    for task in tasks("count"):
        assert all(made.shape == (1, (given != 0).sum()) for given, made in arrays(task))


def test_the_most_frequent_colour_is_so_alone():
    for task in tasks("most"):
        for given, made in arrays(task):
            (first, many), *rest = Counter(given.ravel().tolist()).most_common(2)
            assert (made == first).all() and all(many > other for _, other in rest)


def test_joined_halves_follow_one_table_of_truth():
    for task in tasks("halves"):
        table = {}
        for given, made in arrays(task):
            if given.shape[0] != made.shape[0]:
                given, made = given.T, made.T
            wide = made.shape[1]
            a, b = given[:, :wide] != 0, given[:, wide + 1 :] != 0
            for key, value in zip(
                zip(a.ravel(), b.ravel(), strict=True), made.ravel(), strict=True
            ):
                table.setdefault(key, set()).add(int(value))
        assert all(len(values) == 1 for values in table.values())


def test_filled_is_what_an_outline_encloses_and_hollow_what_it_does_not():
    for family, empty in (("fill", True), ("hollow", False)):
        for given, made in (both for task in tasks(family) for both in arrays(task)):
            changed = np.argwhere(given != made)
            (top, left), (bottom, right) = changed.min(0) - 1, changed.max(0) + 2
            place, inside = (
                np.s_[top:bottom, left:right],
                np.s_[top + 1 : bottom - 1, left + 1 : right - 1],
            )
            outline = given[top, left]
            assert outline and (given[place] == outline).all() != empty
            assert len(changed) == given[inside].size == (given[inside] != made[inside]).sum()
            assert len(set(made[inside].ravel())) == 1 and np.count_nonzero(made[place] == outline)


def test_families_held_out_are_never_taught():
    assert set(HELD_OUT) | set(TAUGHT) == set(FAMILIES) and not set(HELD_OUT) & set(TAUGHT)
    taught = {make_task(0, number).name.rstrip("0123456789") for number in range(400)}
    assert taught == set(TAUGHT)


def test_composed_tasks_change_outputs_that_their_family_alone_would_make():
    plain, composed = (tasks("count", composed=share) for share in (0.0, 1.0))
    shapes = [{made.shape[0] for _, made in arrays(t)} for t in composed]
    assert all(made.shape[0] == 1 for t in plain for _, made in arrays(t))
    assert any(rows != {1} for rows in shapes)  # a row that was turned stands upright


def test_documents_are_whole_pairs_and_some_have_an_edit_behind_them():
    config = GridTaskConfig(tasks=200, tokens=120, edits=0.5)
    documents = pretraining_documents(config)
    assert documents == pretraining_documents(config)
    assert 100 < len(documents) <= 200  # tasks whose first pair is too long are left out
    edited = 0
    for number, tokens in enumerate(documents):
        assert len(tokens) <= 120
        assert tokens[0] == grids.BOS and tokens[-1] == grids.EOS
        edited += grids.EDIT in tokens
        assert tokens.count(grids.IN) == tokens.count(grids.OUT) > 0, number
    assert 0.35 < edited / len(documents) < 0.65


def test_a_task_is_told_pair_after_pair_as_far_as_there_is_room():
    task = make_task(0, 0)
    lengths = [len(pair_tokens(p)) for p in task.demonstrations]
    whole = task_tokens(task, 10_000)
    assert task_tokens(task, 1 + sum(lengths[:2])) == whole[: 1 + sum(lengths[:2])]
    assert task_tokens(task, sum(lengths[:2])) == whole[: 1 + lengths[0]]


def test_random_edits_are_as_varied_as_they_can_be():
    rng, words = np.random.default_rng(0), GridTokenizer()
    seen = Counter(word for _ in range(600) for word in words.decode(random_edit(rng)).split())
    assert seen["edit"] == 600
    for choices in (grids.LOSSES, grids.RATES, grids.STEPS):
        assert sum(seen[word] for word in choices) == 600
        assert min(seen[word] for word in choices) > 600 / len(choices) * 0.7
    assert all(250 < seen[word] < 350 for word in grids.AUGMENTATIONS)


def test_no_task_of_arc_is_among_them():
    files = [DATA / "arc_seal" / f"arc_agi1_{part}.jsonl.gz" for part in ("training", "evaluation")]
    if not all(file.is_file() for file in files):
        pytest.skip("needs arc_seal in $SLEEPLM_TEST_DATA")
    theirs = {
        pair for file in files for task in read_tasks(str(file), "train") for pair in task.tests
    }
    for number in range(3000):
        task = make_task(0, number)
        assert not theirs & {*task.demonstrations, *task.tests}
