"""Grid tasks as arrays: what of them is shown, and which are too long."""

from __future__ import annotations

import dataclasses

import numpy as np

from sleeplm.bench.arc.material import Sizes, prepare, sizes_of
from sleeplm.data import grids
from sleeplm.data.grids import GridTask, GridTokenizer, Pair, pair_tokens, question_tokens

WORDS = GridTokenizer()


def pair(n, wide=2):
    return Pair(((n,) * wide,), ((n, n),))  # 9 tokens; transposed 11


TASK = GridTask("t", (pair(1), pair(2), pair(3)), (pair(4), pair(5)))
SIZES = Sizes([40, 60], pairs=4, tests=2, answer=6)


def words(row, length):
    return WORDS.decode(np.asarray(row)[: int(length)])


def test_the_dream_is_written_behind_the_demonstrations_and_the_mark():
    ready = prepare(TASK, SIZES)
    shown = [token for p in TASK.demonstrations for token in pair_tokens(p)]
    length = int(ready.context.length[0])
    assert ready.context.tokens[0, :length].tolist() == [grids.BOS, *shown, grids.EDIT]
    assert not ready.context.tokens[0, length:].any()


def test_every_test_is_asked_behind_the_demonstrations_and_its_output_is_the_answer():
    ready = prepare(TASK, SIZES)
    shown = [token for p in TASK.demonstrations for token in pair_tokens(p)]
    for i, test in enumerate(TASK.tests):
        length = int(ready.questions.lengths[i])
        prompt = ready.questions.prompts[i, :length].tolist()
        assert prompt == [grids.BOS, *shown, *question_tokens(test.input)]
        assert words(ready.questions.answers[i], 6) == f"{i + 4} {i + 4} /"


def test_tests_that_are_not_there_are_padding():
    ready = prepare(dataclasses.replace(TASK, tests=TASK.tests[:1]), SIZES)
    assert ready.questions.lengths.tolist() == [int(ready.questions.lengths[0]), 0]


def test_a_task_takes_the_first_width_that_it_fits_into():
    assert prepare(TASK, SIZES).width == 40  # 1 + 4 * 9
    more = dataclasses.replace(TASK, demonstrations=(*TASK.demonstrations, pair(6)))
    assert prepare(more, SIZES).width == 60


def test_rows_have_room_for_every_demonstration_turned():
    tall = Pair(((1,) * 16,), ((2, 2),))  # 23 tokens, 39 when it stands upright
    ready = prepare(GridTask("tall", (pair(1), tall), (pair(3),)), SIZES)
    assert ready.width == 60 and ready.shown.lengths[:, 1].tolist() == [23, 39] * 4
    exact = dataclasses.replace(SIZES, widths=[40, 60])
    assert prepare(GridTask("just", (tall,), (pair(3),)), exact).width == 40


def test_demonstrations_that_do_not_fit_are_not_shown_but_learned():
    narrow = dataclasses.replace(SIZES, widths=[30])
    ready = prepare(TASK, narrow)
    assert ready.shown_pairs == 2 and ready.shown.total == 3 and ready.shown.room == 2
    assert words(ready.context.tokens[0], ready.context.length[0]).count("in") == 2


def test_a_task_that_does_not_fit_is_left_out_for_the_reason_that_is_told():
    def why(task=TASK, **changes):
        return str(prepare(task, dataclasses.replace(SIZES, **changes)))

    assert why(widths=[18]) == "19 tokens of one demonstration and a test, room for 18"
    assert why(answer=3) == "4 tokens of a test's output, room for 3"
    assert why(tests=1) == "2 tests, room for 1"
    long = dataclasses.replace(TASK, demonstrations=(pair(1), pair(2, wide=40)))
    assert why(long) == "88 tokens of one demonstration, turned, room for 60"  # 40 rows of 1


def test_there_is_room_for_every_test_and_output_of_tasks_that_fit_into_the_widest_row():
    tests = tuple(pair(n) for n in range(3))
    tall = Pair(((1,),), ((2,),) * 50)  # 101 tokens of output
    wide = GridTask("wide", (pair(1),), (Pair(((1,),), ((2,) * 149,)),))
    tasks = [TASK, dataclasses.replace(TASK, tests=tests), GridTask("tall", (pair(1),), (tall,))]
    sizes = sizes_of([*tasks, wide], [40, 140])
    assert (sizes.tests, sizes.answer) == (3, 101)  # the wide one's 151 tokens have no row
    ready = [prepare(task, sizes) for task in tasks]
    assert {r.questions.answers.shape for r in ready} == {(3, 101)}
    assert ready[2].questions.answers[0].tolist()[-1] == grids.EOS
    assert prepare(wide, sizes).what == "tokens of one demonstration and a test"


def test_usual_tasks_share_the_usual_sizes():
    assert sizes_of([TASK], [40, 60]) == sizes_of([], [40, 60]) == Sizes([40, 60])


def test_all_symmetries_are_there():
    shown = prepare(TASK, SIZES).shown
    assert (
        shown.lengths[:, :3].tolist() == [[9] * 3, [11] * 3] * 4 and not shown.lengths[:, 3].any()
    )
    assert words(shown.pairs[1, 0], 11) == "in 1 / 1 / out 1 / 1 /"
