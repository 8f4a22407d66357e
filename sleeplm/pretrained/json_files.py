"""JSON that others have written: read as UTF-8 whatever the locale, or refused in one line."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError


def read_json(path: pathlib.Path, field: str, hint: str = "") -> Any:
    """What a JSON file holds.

    Args:
      field: what the file is, for messages. hint: what would be right, where that is known.

    Raises:
      ConfigError: it cannot be read, or is no JSON in UTF-8.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        remedy = f"cannot be read as JSON ({reason})" + (f": {hint}" if hint else "")
        raise ConfigError(field, str(path), remedy) from None


def read_object(path: pathlib.Path, field: str, hint: str = "") -> dict[str, Any]:
    """What a JSON file holds, which must be an object: names and their values.

    Args:
      field, hint: see :func:`read_json`.

    Raises:
      ConfigError: as there, or it holds something else.
    """
    content = read_json(path, field, hint)
    found = type(content).__name__
    remedy = f"must hold a JSON object, not {found}" + (f": {hint}" if hint else "")
    checks.require(isinstance(content, dict), field, str(path), remedy)
    return content
