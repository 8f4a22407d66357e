"""The wake stream: a day's documents, packed into rows, in batches, for ever.

Packing is laid out once: documents are placed longest first, each into the fullest row that still
has room, and never cut. Each epoch then deals the documents anew among the places of their own
length, and shuffles the rows. So every epoch has exactly the same number of batches, rows have
ever new neighbours, and batch number t is a function of (documents, seed, t) alone: the state of
the stream is one integer, and resuming costs one epoch's shuffle, wherever it resumes. (Grain's
own packing works on an iterator: its batches per epoch vary, and it resumes by packing again.)

``batch_size`` is global. Process p of n yields rows p, p + n, ... of every global batch, so the
global batch is the same for any number of processes.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence

import grain
import numpy as np

from sleeplm.core.errors import ConfigError


class PackedDay:
    """All batches of a day by number: a random-access source for Grain.

    Attributes:
      batches_per_epoch: every document is in exactly one row of each run of that many batches.
      rows: packed rows in use; the last ``batches_per_epoch * batch_size - rows`` are padding.
      fill: share of the positions of an epoch that hold tokens.
    """

    def __init__(
        self,
        documents: Sequence[Sequence[int]],
        batch_size: int,
        length: int,
        seed: int,
        epochs: int | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """See :func:`day_stream`."""
        _check_documents(documents, length)
        _check_sizes(batch_size, epochs, process_index, process_count)
        self._documents = [np.asarray(document, np.int32) for document in documents]
        lengths = [len(document) for document in documents]
        self._layout = _pack(lengths, length)
        self._same_length = _groups(lengths)
        self._batch_size, self._length, self._seed = batch_size, length, seed
        self._process = slice(process_index, None, process_count)
        self._dealt: tuple[int, list[np.ndarray], np.ndarray] | None = None
        self.rows = len(self._layout)
        self.batches_per_epoch = -(-self.rows // batch_size)
        self.fill = sum(lengths) / (self.batches_per_epoch * batch_size * length)
        most = sys.maxsize // self.batches_per_epoch
        self._len = (most if epochs is None else epochs) * self.batches_per_epoch

    def __len__(self) -> int:
        return self._len

    def __repr__(self) -> str:  # Grain names a source by its repr
        return f"PackedDay({len(self._documents)} documents, {self.batches_per_epoch} batches)"

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        return self.batch_at(step)

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        """Batch number ``step`` >= 0: int32 tokens, segments and positions [B, L]."""
        epoch, batch = divmod(int(step), self.batches_per_epoch)
        rows, order = self._deal(epoch)
        chosen = order[batch * self._batch_size : (batch + 1) * self._batch_size][self._process]
        shape = (len(chosen), self._length)
        names = ("tokens", "segments", "positions")
        arrays = {name: np.zeros(shape, np.int32) for name in names}
        for target, row in enumerate(chosen):
            start = 0
            for segment, document in enumerate(rows[row] if row < self.rows else (), start=1):
                tokens = self._documents[document]
                place = np.s_[target, start : start + len(tokens)]
                arrays["tokens"][place] = tokens
                arrays["segments"][place] = segment
                arrays["positions"][place] = np.arange(len(tokens))
                start += len(tokens)
        return arrays

    def _deal(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        """This epoch's documents of each row, and the order of the rows (padding included)."""
        dealt = self._dealt
        if dealt is None or dealt[0] != epoch:
            rng = np.random.default_rng([self._seed, epoch])
            document_at = np.arange(len(self._documents))
            for places in self._same_length:
                document_at[places] = rng.permutation(places)
            rows = [rng.permutation(document_at[row]) for row in self._layout]
            order = rng.permutation(self.batches_per_epoch * self._batch_size)
            self._dealt = dealt = (epoch, rows, order)
        return dealt[1], dealt[2]


def day_stream(
    documents: Sequence[Sequence[int]],
    batch_size: int,
    length: int,
    seed: int,
    epochs: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """Packed batches of a day's documents, as a Grain dataset.

    Its iterator yields ``{"tokens", "segments", "positions"}``, int32 [B / process_count, L]:
    segments count the documents of a row from 1 and are 0 on padding; positions restart with
    each document. ``iter(stream)`` has ``get_state``/``set_state`` (one integer) and is saved
    by Orbax as it is.

    Args:
      documents: tokens of each document, special tokens included.
      batch_size: rows of a global batch (B); a multiple of ``process_count``.
      length: positions of a row (L).
      seed: chooses the order of each epoch; the same for all processes.
      epochs: None repeats for ever.

    Raises:
      ConfigError: no documents, an empty one, one longer than ``length``, or sizes that do not
        divide.
    """
    source = PackedDay(documents, batch_size, length, seed, epochs, process_index, process_count)
    # One batch costs microseconds: worker threads would only fight with the device's.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return grain.MapDataset.source(source).to_iter_dataset(options)


def batches_per_epoch(documents: Sequence[Sequence[int]], batch_size: int, length: int) -> int:
    """How many batches :func:`day_stream` takes to show every document once."""
    return PackedDay(documents, batch_size, length, seed=0).batches_per_epoch


def _pack(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Best fit, longest first: rows of document indices whose lengths sum to <= ``length``."""
    rows: list[list[int]] = []
    rows_with_room: dict[int, list[int]] = defaultdict(list)
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        need = lengths[index]
        room = next((r for r in range(need, length + 1) if rows_with_room[r]), None)
        if room is None:
            row, room = len(rows), length
            rows.append([])
        else:
            row = rows_with_room[room].pop()
        rows[row].append(index)
        rows_with_room[room - need].append(row)
    return rows


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of equal length, group by group."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, value in enumerate(lengths):
        groups[value].append(index)
    return list(groups.values())


def _check_documents(documents: Sequence[Sequence[int]], length: int) -> None:
    if not len(documents):
        raise ConfigError("stream.documents", 0, "give at least one document")
    for index, document in enumerate(documents):
        if not len(document):
            raise ConfigError(f"stream.documents[{index}]", [], "drop empty documents")
    longest = max(range(len(documents)), key=lambda i: len(documents[i]))
    if len(documents[longest]) > length:
        remedy = f"document {longest} has {len(documents[longest])} tokens: raise the length"
        raise ConfigError("stream.length", length, remedy)


def _check_sizes(batch_size: int, epochs: int | None, index: int, count: int) -> None:
    if batch_size < 1 or count < 1 or batch_size % count:
        remedy = f"needs a positive multiple of process_count = {count}"
        raise ConfigError("stream.batch_size", batch_size, remedy)
    if not 0 <= index < count:
        raise ConfigError("stream.process_index", index, f"needs 0 <= index < {count}")
    if epochs is not None and epochs < 1:
        raise ConfigError("stream.epochs", epochs, "needs at least 1, or None for ever")
