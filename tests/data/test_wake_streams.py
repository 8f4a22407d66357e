"""The wake stream: packed, shuffled, endless, resumable, sharded."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from orbax.checkpoint import v1 as ocp

from sleeplm.core.errors import ConfigError
from sleeplm.data.streams import PackedDay, batches_per_epoch, day_stream

ARRAYS = ("tokens", "segments", "positions")


def _documents(count: int, seed: int = 0) -> list[list[int]]:
    """Different documents of 3 to 14 tokens; the first token tells which one it is."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 15, size=count)
    return [[1000 + i, *rng.integers(3, 900, size=n - 1).tolist()] for i, n in enumerate(lengths)]


DOCUMENTS = _documents(97)


def _take(stream, count: int) -> list[dict[str, np.ndarray]]:
    return list(itertools.islice(iter(stream), count))


def _read(batch: dict[str, np.ndarray]) -> list[tuple[int, ...]]:
    """The documents of a batch, found by their segment ids."""
    found = []
    for tokens, segments in zip(batch["tokens"], batch["segments"], strict=True):
        for segment in range(1, segments.max() + 1):
            found.append(tuple(tokens[segments == segment].tolist()))
    return found


def _same(left, right) -> bool:
    return all(
        np.array_equal(a[name], b[name])
        for a, b in zip(left, right, strict=True)
        for name in ARRAYS
    )


def _epoch(**changes) -> list[dict[str, np.ndarray]]:
    settings = {"batch_size": 4, "length": 32, "seed": 0, **changes}
    count = batches_per_epoch(DOCUMENTS, settings["batch_size"], settings["length"])
    return _take(day_stream(DOCUMENTS, **settings), count)


def test_batches_are_int32_of_the_asked_shape():
    for batch in _epoch():
        for name in ARRAYS:
            assert batch[name].shape == (4, 32) and batch[name].dtype == np.int32


def test_one_epoch_shows_every_document_exactly_once():
    seen = Counter(document for batch in _epoch() for document in _read(batch))
    assert seen == Counter(map(tuple, DOCUMENTS))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 16), min_size=1, max_size=40), st.integers(1, 5), st.integers(0, 3))
def test_every_epoch_shows_every_document_exactly_once(lengths, batch_size, seed):
    documents = [[100 + i] * n for i, n in enumerate(lengths)]
    count = batches_per_epoch(documents, batch_size, 16)
    batches = _take(day_stream(documents, batch_size, 16, seed), 3 * count)
    for epoch in range(3):
        told = batches[epoch * count : (epoch + 1) * count]
        assert Counter(d for b in told for d in _read(b)) == Counter(map(tuple, documents))


def test_a_document_is_one_run_of_one_row_with_positions_from_zero():
    for batch in _epoch():
        for segments, positions in zip(batch["segments"], batch["positions"], strict=True):
            used = segments[segments > 0]
            assert (segments[: len(used)] == used).all(), "padding comes last"
            assert (np.diff(used) >= 0).all() and set(np.diff(used)) <= {0, 1}
            for segment in set(used.tolist()):
                run = positions[segments == segment]
                assert (run == np.arange(len(run))).all()


def test_padding_is_zero_everywhere():
    for batch in _epoch():
        padding = batch["segments"] == 0
        assert not batch["tokens"][padding].any() and not batch["positions"][padding].any()


def test_rows_are_well_filled():
    assert PackedDay(DOCUMENTS, 1, 64, seed=0).fill > 0.9


def test_the_same_seed_gives_the_same_stream_and_another_one_another():
    assert _same(_epoch(seed=1), _epoch(seed=1))
    assert not _same(_epoch(seed=1), _epoch(seed=2))


def test_each_epoch_is_shuffled_anew_with_new_neighbours_in_a_row():
    count = batches_per_epoch(DOCUMENTS, 4, 32)
    batches = _take(day_stream(DOCUMENTS, 4, 32, 0), 2 * count)

    def rows(part):
        pairs = [pair for b in part for pair in zip(b["tokens"], b["segments"], strict=True)]
        return {frozenset(row[segments > 0].tolist()) for row, segments in pairs}

    shared = rows(batches[:count]) & rows(batches[count:])
    assert len(shared) < 0.2 * len(rows(batches[:count]))


def test_a_finite_stream_ends_after_its_epochs():
    count = batches_per_epoch(DOCUMENTS, 4, 32)
    assert len(list(day_stream(DOCUMENTS, 4, 32, 0, epochs=2))) == 2 * count


@pytest.mark.parametrize("taken", [0, 1, 5, 23])
def test_a_resumed_stream_goes_on_bit_identically(taken):
    first = iter(day_stream(DOCUMENTS, 4, 32, 7))
    for _ in range(taken):
        next(first)
    state = first.get_state()
    expected = [next(first) for _ in range(30)]
    second = iter(day_stream(DOCUMENTS, 4, 32, 7))
    second.set_state(state)
    assert _same([next(second) for _ in range(30)], expected)


def test_a_batch_can_be_read_by_its_number():
    stream = _take(day_stream(DOCUMENTS, 4, 32, 7), 40)
    day = PackedDay(DOCUMENTS, 4, 32, seed=7)
    for step in (39, 0, 17):
        assert _same([day.batch_at(step)], [stream[step]])


def test_orbax_saves_and_restores_the_iterator(tmp_path):
    first = iter(day_stream(DOCUMENTS, 4, 32, 7))
    for _ in range(11):
        next(first)
    ocp.save_checkpointables(tmp_path / "saved", {"stream": first})
    expected = [next(first) for _ in range(5)]
    second = iter(day_stream(DOCUMENTS, 4, 32, 7))
    ocp.load_checkpointables(tmp_path / "saved", {"stream": second})
    assert _same([next(second) for _ in range(5)], expected)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_yield_the_global_batch(count):
    whole = _epoch(seed=3)
    shards = [_epoch(seed=3, process_index=i, process_count=count) for i in range(count)]
    for step, batch in enumerate(whole):
        for index in range(count):
            assert shards[index][step]["tokens"].shape == (4 // count, 32)
            for name in ARRAYS:
                assert np.array_equal(shards[index][step][name], batch[name][index::count])


def test_no_two_processes_see_the_same_document_in_an_epoch():
    shards = [_epoch(process_index=i, process_count=2) for i in range(2)]
    seen = [{d for batch in shard for d in _read(batch)} for shard in shards]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(map(tuple, DOCUMENTS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": []}, "at least one document"),
        ({"documents": [[1, 2], []]}, "drop empty documents"),
        ({"documents": [[1, 2], [1] * 9]}, "document 1 has 9 tokens"),
        ({"batch_size": 0}, "positive multiple"),
        ({"batch_size": 3, "process_count": 2}, "multiple of process_count = 2"),
        ({"process_index": 1}, "0 <= index < 1"),
        ({"epochs": 0}, "None for ever"),
    ],
)
def test_impossible_streams_are_refused(changes, message):
    arguments = {"documents": [[1, 2]], "batch_size": 2, "length": 8, "seed": 0, **changes}
    with pytest.raises(ConfigError, match=message):
        day_stream(**arguments)
