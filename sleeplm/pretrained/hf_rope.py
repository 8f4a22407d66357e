"""Rotary settings of a ``config.json``: how fast positions turn, and how that is stretched.

They stand in ``rope_parameters``, or in the older ``rope_theta`` and ``rope_scaling``. A setting
that was not understood would not show in any shape, so nothing here is guessed or passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sleeplm.core import checks
from sleeplm.core.errors import ConfigError
from sleeplm.models.rope import RopeScaling

#: What ``transformers`` takes where no theta is given.
DEFAULT_THETA = 10_000.0
ORIGINAL = "original_max_position_embeddings"
#: The numbers that each kind of scaling needs.
NUMBERS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL),
}
#: What is called otherwise in :class:`~sleeplm.models.rope.RopeScaling`.
OURS = {"default": "none", ORIGINAL: "original_len"}
THETA, KIND, OLD_KIND = "rope_theta", "rope_type", "type"
OBJECTS = ("rope_parameters", "rope_scaling")


def read_rope(raw: Mapping[str, Any], file: str) -> tuple[float, RopeScaling]:
    """theta and scaling that a parsed ``config.json`` asks for.

    Args:
      file: what messages call it.

    Raises:
      ConfigError: a value cannot work, a key is missing or not known, or two contradict each other.
    """
    given = {f"{file}: {key}": raw[key] for key in OBJECTS if raw.get(key) not in (None, {})}
    scalings = {field: _scaling(field, value) for field, value in given.items()}
    thetas = {f"{field}.{THETA}": value[THETA] for field, value in given.items() if THETA in value}
    if THETA in raw:
        thetas[f"{file}: {THETA}"] = raw[THETA]
    for field, value in thetas.items():
        checks.positive(field, value)
    theta, scaling = _agreed(thetas, DEFAULT_THETA), _agreed(scalings, RopeScaling())
    return float(theta), scaling


def _agreed(found: Mapping[str, Any], default: Any) -> Any:
    """The value that every field has; the default without any."""
    fields = list(found)
    for field in fields[1:]:
        remedy = f"contradicts {fields[0]} = {found[fields[0]]!r}: leave one of them out"
        checks.require(found[field] == found[fields[0]], field, found[field], remedy)
    return found[fields[0]] if fields else default


def _scaling(field: str, given: Any) -> RopeScaling:
    """What one object asks for; ``field`` is where it stands."""
    checks.require(isinstance(given, Mapping), field, given, "must be an object, or null")
    nested = next((name for name, value in given.items() if isinstance(value, Mapping)), None)
    if nested is not None:
        remedy = "is not supported: the same rotary settings must hold for all layers"
        raise ConfigError(f"{field}.{nested}", given[nested], remedy)
    kinds = {f"{field}.{key}": given[key] for key in (KIND, OLD_KIND) if key in given}
    for name, kind in kinds.items():
        checks.one_of(name, kind, NUMBERS)
    kind = _agreed(kinds, "default")
    known = {THETA, KIND, OLD_KIND, *NUMBERS[kind]}
    for name, value in given.items():
        if name not in known and value is not None:
            remedy = f"is not supported: rotary settings of type {kind!r} have no such key"
            raise ConfigError(f"{field}.{name}", value, remedy)
    numbers: dict[str, Any] = {}
    for name in NUMBERS[kind]:
        checks.require(name in given, f"{field}.{name}", None, f"is missing: {kind!r} needs it")
        check = checks.positive_integer if name == ORIGINAL else checks.positive
        check(f"{field}.{name}", given[name])
        numbers[OURS.get(name, name)] = given[name] if name == ORIGINAL else float(given[name])
    scaling = RopeScaling(OURS.get(kind, kind), **numbers)
    scaling.check(field)
    return scaling
