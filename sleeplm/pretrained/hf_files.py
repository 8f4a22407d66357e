"""Which files of a Hugging Face folder hold its weights, and the tensors in them."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import safetensors

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError
from sleeplm.pretrained.json_files import read_object

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
SHARDS = "model-*.safetensors"
FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors calls them


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file, which is mapped anew for every read.

    A mapped page that was read is resident memory until the mapping goes: of a file that stayed
    mapped, all of it would be by the end of an import.
    """

    path: pathlib.Path
    name: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors calls it, "BF16"

    def get_shape(self) -> tuple[int, ...]:
        return self.shape

    def __getitem__(self, index: slice | tuple[slice, ...]) -> np.ndarray:
        with safetensors.safe_open(self.path, framework="np") as file:
            return file.get_slice(self.name)[index]


@contextlib.contextmanager
def open_folder(folder: str | pathlib.Path) -> Iterator[Mapping[str, StoredTensor]]:
    """Every tensor of a folder's safetensors by name, as a slice that is read when indexed.

    Raises:
      ConfigError: no such files, or one that is cut off or no safetensors.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in weight_files(pathlib.Path(folder).expanduser()):
        try:
            with safetensors.safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118
                    found = file.get_slice(name)
                    shape = tuple(found.get_shape())
                    tensors[name] = StoredTensor(path, name, shape, found.get_dtype())
        except (OSError, safetensors.SafetensorError) as error:
            raise ConfigError(str(path), path.name, f"cannot be read: {error}") from None
    yield tensors


def require_float(tensor: StoredTensor) -> None:
    """Refuses a tensor of another type than floats, as of quantised weights.

    It is for what a model is made of: buffers that are not read may have any type.

    Raises:
      ConfigError: it names the tensor and its type.
    """
    remedy = f"must be one of {', '.join(FLOATS)}"
    checks.require(tensor.dtype in FLOATS, f"type of {tensor.name}", tensor.dtype, remedy)


def weight_files(root: pathlib.Path) -> list[pathlib.Path]:
    """The safetensors of a folder: the one file, else what its index names.

    Of a folder that has both, the one file counts, as for ``transformers``.

    Raises:
      ConfigError: there is neither, or the index is none.
    """
    if (root / SINGLE).is_file():
        return [root / SINGLE]
    index = root / INDEX
    if not index.is_file():
        remedy = f"has no {SINGLE}, nor shards with their {INDEX}: name a folder with weights"
        if shards := sorted(path.name for path in root.glob(SHARDS)):
            rest = f" and {len(shards) - 1} more" if len(shards) > 1 else ""
            remedy = f"has {shards[0]}{rest}, but {INDEX} is missing: it says what is where"
        raise ConfigError("weights", str(root), remedy)
    return [root / file for file in indexed_files(index)]


def indexed_files(index: pathlib.Path) -> list[str]:
    """Names of the files that an index leads to.

    Raises:
      ConfigError: it cannot be read, or is none.
    """
    places = read_object(index, "weights").get("weight_map")
    remedy = "is no index of safetensors: weight_map must say the file of every tensor"
    checks.require(isinstance(places, dict), "weights", str(index), remedy)
    assert isinstance(places, dict)
    for name, file in places.items():
        # Beside the index: what somebody sends is no reason to read elsewhere.
        beside = isinstance(file, str) and pathlib.PurePath(file).name == file
        checks.require(beside, f"{INDEX}: {name}", file, "must name a file of the folder")
    return sorted(set(places.values()))
