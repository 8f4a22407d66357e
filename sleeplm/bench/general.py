"""General ability: how well a model still reads text that no life is about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sleeplm.core import checks
from sleeplm.core.losses import chunked_token_logp
from sleeplm.core.types import Array, Variables
from sleeplm.data.plain import read_text
from sleeplm.models.transformer import Model

CHUNK = 16  # positions whose logits stand in memory at once
ROWS = 16  # rows read at once


def general_rows(config: Any, tokenizer: Any) -> np.ndarray:
    """The first ``config.general_tokens`` tokens of the file ``config.general``, in rows.

    Returns:
      int32 [R, L]: ``<bos>`` and L - 1 tokens of running text each, L = ``config.day.length``.

    Raises:
      ConfigError: the file cannot be read, or holds less than a row.
    """
    width = config.day.length - 1
    tokens = tokenizer.encode(read_text(config.general, "general"))
    rows = min(len(tokens), config.general_tokens) // width
    remedy = f"has {len(tokens)} tokens: a row needs {width}, and general_tokens at least as many"
    checks.require(rows > 0, "general", config.general, remedy)
    text = np.asarray(tokens[: rows * width], np.int32).reshape(rows, width)
    return np.pad(text, ((0, 0), (1, 0)), constant_values=tokenizer.bos)


def general_of(config: Any, materials: Sequence[Any]) -> np.ndarray | None:
    """The rows of every learner, each with its own tokens: int32 [E, R, L]; None: not asked for."""
    if not config.general:
        return None
    each = [general_rows(config, material.tokenizer) for material in materials]
    rows = min(len(one) for one in each)
    return np.stack([one[:rows] for one in each])


def general_loss(
    model: Model, view: Callable[[Variables], Variables] = lambda variables: variables
) -> Callable[[Variables, Array], Array]:
    """``(variables, rows int32 [R, L]) -> loss``: nats a token, of all but the first of each row.

    Args:
      view: applied to the variables first, for adapters that live beside the parameters.
    """

    def run(variables: Variables, rows: Array) -> Array:
        variables = view(variables)
        unembed = model.unembed(variables["params"])

        def one(tokens: Array) -> Array:
            hidden = model.hidden(variables, tokens[None])[:, :-1]
            return chunked_token_logp(hidden, unembed, tokens[None, 1:], CHUNK).mean()

        return -jax.lax.map(one, jnp.asarray(rows), batch_size=ROWS).mean()

    return run
