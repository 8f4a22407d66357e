from __future__ import annotations

import numpy as np

from sleeplm.bench.streams import DayStreams, JointStream

DAYS = [[[1, day, i, 2] for i in range(3, 9)] for day in (10, 20, 30)]  # 6 texts a day


def days_in(batches) -> set[int]:
    """Which days' texts batches hold."""
    return set(np.unique(batches["tokens"]).tolist()) & {10, 20, 30}


def test_a_day_is_read_from_its_own_texts():
    stream = DayStreams(DAYS, batch=2, length=12, seed=0)
    for day, mark in enumerate((10, 20, 30)):
        assert days_in(stream.take(day, 4)) == {mark}


def test_the_joint_stream_reads_all_days_on_every_day_each_text_once_an_epoch():
    stream = JointStream(DAYS, batch=2, length=12, seed=0)
    parts = [stream.take(day, 1)["tokens"] for day in range(3)]  # 18 texts, 3 a row: one epoch
    texts = np.concatenate(parts).reshape(-1, 4)
    assert sorted(map(tuple, texts.tolist())) == sorted(tuple(t) for day in DAYS for t in day)


def test_the_joint_stream_goes_on_where_it_was_saved():
    def new():
        return JointStream(DAYS, batch=2, length=12, seed=0)

    stream = new()
    stream.take(0, 2)
    saved = stream.checkpointable()
    coming = stream.peek(1)["tokens"]
    after = stream.take(1, 2)["tokens"]
    np.testing.assert_array_equal(after[0], coming)
    again = new()
    again.restore(saved)
    np.testing.assert_array_equal(again.take(1, 2)["tokens"], after)
