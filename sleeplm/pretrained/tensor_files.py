"""Writing safetensors and folders: streamed, and either whole or not there at all.

A file is a header in JSON and raw bytes. It is written here tensor by tensor, since the library's
own writer wants all of a file in memory at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError

#: What safetensors calls the types that models are made of.
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int32": "I32", "bool": "BOOL"}
ALIGNMENT = 8  # bytes: where the numbers begin, so that files can be mapped into memory


class Tensor(NamedTuple):
    """A tensor that is read when it is written.

    Attributes:
      name: in the file. dtype, shape: of what ``read`` returns.
      read: the numbers; called once a use, so that no two tensors need to stand in memory.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def line(self) -> bytes:
        """Name, type and shape: what a digest counts beside the numbers."""
        return f"{self.name} {self.dtype.name} {list(self.shape)}\n".encode()

    def bytes(self) -> np.ndarray:
        """The numbers, row by row, as uint8."""
        return np.ascontiguousarray(self.read()).reshape(-1).view(np.uint8)


def write_tensors(
    path: pathlib.Path, tensors: Iterable[Tensor], metadata: Mapping[str, str]
) -> str:
    """Writes one safetensors file and returns the sha256 (hex) of its bytes.

    Args:
      metadata: of the file; ``transformers`` looks for ``{"format": "pt"}``.
    """
    # Wide numbers first, so that every tensor is aligned to its own.
    ordered = sorted(tensors, key=lambda t: (-t.dtype.itemsize, t.name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": DTYPES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            file.write(part)
            digest.update(part)
        for tensor in ordered:
            numbers = tensor.bytes()
            file.write(numbers.data)
            digest.update(numbers.data)
        _to_disk(file.fileno())
    return digest.hexdigest()


def digest_of(tensors: Iterable[Tensor]) -> str:
    """sha256 (hex) over names, types, shapes and numbers, in the order of the names."""
    digest = hashlib.sha256()
    for tensor in sorted(tensors, key=lambda t: t.name):
        digest.update(tensor.line)
        digest.update(tensor.bytes().data)
    return digest.hexdigest()


def digest_of_file(path: pathlib.Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file beside its place and renames it: it has the old content or all of the new."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        _to_disk(file.fileno())
    os.replace(partial, path)


def copy_file(source: pathlib.Path, path: pathlib.Path) -> None:
    """Copies the bytes of a file; they are on the disk when it returns."""
    with source.open("rb") as old, path.open("wb") as new:
        shutil.copyfileobj(old, new)
        new.flush()
        _to_disk(new.fileno())


@contextlib.contextmanager
def new_folder(
    path: pathlib.Path, *, force: bool = False, replaceable: Callable[[pathlib.Path], bool]
) -> Iterator[pathlib.Path]:
    """A folder to fill, which gets its name when the block is left without an error.

    Args:
      force: take the place of a folder for which ``replaceable`` is true.

    Raises:
      ConfigError: there is something at ``path`` already, or this process stands in it.
    """
    path = path.resolve()  # what a link leads to, which has a name even where it was called "."
    here = pathlib.Path.cwd().resolve()
    remedy = "is where this was started, and a new folder would take its place: name one inside it"
    checks.require(path not in (here, *here.parents), "out", str(path), remedy)
    taken = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if taken and not force:
        raise ConfigError("out", str(path), "is not empty: name another, or add --force")
    if taken and not replaceable(path):
        raise ConfigError("out", str(path), "holds something else, which stays: name another")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (path.with_name(f".{path.name}.{what}") for what in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if taken:
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    partial.rename(path)  # onto nothing, or onto an empty folder
    shutil.rmtree(old, ignore_errors=True)


def _to_disk(file: int) -> None:
    os.fsync(file)
