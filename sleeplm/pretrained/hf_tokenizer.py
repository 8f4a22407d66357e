"""From the files of a Hugging Face folder to an :class:`ImportedTokenizer`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable
from typing import Any

import tokenizers

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError
from sleeplm.pretrained.json_files import read_object
from sleeplm.pretrained.tokenizer import ImportedTokenizer

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
NAMED = ("bos", "eos", "pad")
#: Where ids may stand if the tokenizer's settings name no token, the first that says it counts.
IDS = ("generation_config.json", "config.json")


def read_tokenizer(folder: str | pathlib.Path) -> ImportedTokenizer:
    """The tokenizer of a local folder.

    Ids come from ``tokenizer_config.json``, else from ``generation_config.json`` or
    ``config.json``. A model without a padding token pads with ``eos``, one that begins texts with
    nothing has ``eos`` for ``bos`` too: what ends a text may stand before the next one. Tokens that
    ``tokenizer_config.json`` names for these are special, whatever ``tokenizer.json`` says.

    Args:
      folder: with ``tokenizer.json``.

    Raises:
      ConfigError: a file cannot be read, the tokenizer is no BPE, or nothing names what ends a
        text.
    """
    root = pathlib.Path(folder).expanduser()
    content = read_object(root / TOKENIZER, "tokenizer")
    model = content.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    checks.one_of(f"{TOKENIZER}: model.type", kind, ("BPE",))
    try:
        bpe = tokenizers.Tokenizer.from_file(str(root / TOKENIZER))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ConfigError(str(root / TOKENIZER), TOKENIZER, f"cannot be read: {error}") from None
    _check_parts(content)
    settings = _if_there(root / SETTINGS)
    template = _template(root, settings)
    others = [(name, _if_there(root / name)) for name in IDS]

    def ids(name: str) -> list[int]:
        named = _named(settings, name, bpe)
        given = (_ids(file, f"{name}_token_id", content) for file, content in others)
        several: list[int] = next((found for found in given if found is not None), [])
        return several if named is None else [named, *several]

    ends = ids("eos")
    checks.require(bool(ends), f"{SETTINGS}: eos_token", None, "must name what ends a text")
    pad, bos = (next(iter(ids(name)), ends[0]) for name in ("pad", "bos"))
    _make_special(bpe, [_named(settings, name, bpe) for name in NAMED])
    return ImportedTokenizer(bpe, pad, bos, ends[0], tuple(ends), template)


def _named(settings: dict[str, Any], name: str, bpe: tokenizers.Tokenizer) -> int | None:
    """Id of the token that the settings name for ``bos``, ``eos`` or ``pad``; None: they do not."""
    field = f"{SETTINGS}: {name}_token"
    token = settings.get(f"{name}_token")
    token = token.get("content") if isinstance(token, dict) else token
    checks.require(isinstance(token, str | None), field, token, "must be a token's text")
    index = bpe.token_to_id(token) if token else None
    remedy = "the vocabulary has no such token"
    checks.require(not token or index is not None, field, token, remedy)
    return index


def _make_special(bpe: tokenizers.Tokenizer, indices: Iterable[int | None]) -> None:
    """Makes tokens special, also those that ``tokenizer.json`` has among its words.

    Those of it that texts encode to are left alone: some models fill rows with a "!".
    """
    bpe.no_padding()  # which would fill up what is encoded below
    bpe.no_truncation()
    added = bpe.get_added_tokens_decoder()
    for index in {index for index in indices if index is not None}:
        token = bpe.id_to_token(index)
        assert token is not None
        if index in added:
            stays = added[index].special
        else:  # at the start of a text or behind a word
            both = bpe.encode_batch([token, f"a{token}"], add_special_tokens=False)
            stays = any(index in item.ids for item in both)
        if not stays:
            bpe.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False)])


def tokenizer_files(tokenizer: ImportedTokenizer, max_len: int) -> dict[str, dict[str, Any]]:
    """The files that :func:`read_tokenizer` reads the same tokenizer from, by name.

    For backbones that come from no folder: of one that does, its own files are the better copy.

    Args:
      max_len: longest sequence that the model is made for.
    """
    named = {f"{n}_token": tokenizer.bpe.id_to_token(getattr(tokenizer, n)) for n in NAMED}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "chat_template": tokenizer.chat_template,
        "model_max_length": max_len,
        "clean_up_tokenization_spaces": False,
    }
    return {TOKENIZER: json.loads(tokenizer.bpe.to_str()), SETTINGS: settings}


def special_ids(tokenizer: ImportedTokenizer) -> dict[str, Any]:
    """What ``config.json`` says of its special tokens: generation ends at any ``eos_token_id``."""
    ends: Any = list(tokenizer.stops)
    return {
        "pad_token_id": tokenizer.pad,
        "bos_token_id": tokenizer.bos,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
    }


def _ids(file: str, key: str, content: dict[str, Any]) -> list[int] | None:
    """Ids under a key, one or several, or None, which -1 stands for too (old Llamas)."""
    found = content.get(key)
    listed: list[Any] = found if isinstance(found, list) else [found]
    if found is None or listed == [-1]:
        return None
    ok = all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in listed)
    checks.require(ok, f"{file}: {key}", found, "must be the id of a token, or a list of such")
    return listed


def _template(root: pathlib.Path, settings: dict[str, Any]) -> str | None:
    path, found, field = (
        root / TEMPLATE,
        settings.get("chat_template"),
        f"{SETTINGS}: chat_template",
    )
    if path.exists():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(TEMPLATE, str(path), f"cannot be read: {error}") from None
    if isinstance(found, list):  # several by name
        named = all(isinstance(one, dict) and {"name", "template"} <= one.keys() for one in found)
        checks.require(named, field, found, "must be templates, each with its name")
        found = {one["name"]: one["template"] for one in found}.get("default")
    checks.require(isinstance(found, str | None), field, found, "must be a Jinja template")
    return found


def _check_parts(content: dict[str, Any]) -> None:
    """Texts are encoded in parts, with special tokens between them: each part begins no text."""
    top = content.get("pre_tokenizer") or {}
    for part in (top, *(top.get("pretokenizers") or [])):
        scheme = part.get("prepend_scheme")
        remedy = "is not supported: use always or never"
        checks.require(scheme != "first", f"{TOKENIZER}: prepend_scheme", scheme, remedy)


def _if_there(path: pathlib.Path) -> dict[str, Any]:
    return read_object(path, "tokenizer") if path.exists() else {}
