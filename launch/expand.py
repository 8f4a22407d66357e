"""From an experiment file and names of its sweeps to trials, each checked before anything runs."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections.config_flags import config_path

from launch.axes import Axis, Settings, product
from launch.trials import Trial, trial_id
from sleeplm.core.errors import ConfigError, SleepError
from sleeplm.runtime import config as configs
from sleeplm.runtime.workdir import lasting

MAKER = "sweep_"


def expand(
    experiment: str, sweeps: Sequence[str], common: Settings | None = None, quick: bool = False
) -> list[Trial]:
    """The trials of named sweeps, crossed; the last name varies fastest.

    Args:
      experiment: ``FILE`` or ``FILE:ARGUMENT``, as ``sleeplm run`` takes it.
      sweeps: names; ``lr`` is the function ``sweep_lr`` of the file. None: one trial.
      common: settings of every trial, beside those of the sweeps.
      quick: the file's short version.

    Returns:
      Trials, each once however often the sweeps name it, in the order of the sweeps.

    Raises:
      ConfigError: a sweep is not there, or a setting of any trial cannot work.
    """
    module = configs.read_module(experiment)
    axes: list[Axis] = [_axis(module, experiment, name) for name in sweeps]
    trials: dict[str, Trial] = {}
    for settings in product([common or {}], *axes):
        trial = Trial(trial_id(experiment, quick, settings), experiment, quick, settings, "")
        if trial.id not in trials:
            trials[trial.id] = Trial(**{**vars(trial), "digest": digest_of(load(trial))})
    return list(trials.values())


def load(trial: Trial) -> Any:
    """The configuration of a trial, checked.

    Raises:
      ConfigError: a setting cannot work.
    """
    config = configs.load_config(trial.experiment, overrides(trial.settings), trial.quick)
    for field, value in trial.settings.items():
        _arrived(config, field, value)
    if not callable(getattr(config, "run", None)):
        remedy = "get_config() must return a job: it has no run()"
        raise ConfigError("experiment", trial.experiment, remedy)
    configs.check(config)
    return config


def digest_of(config: Any) -> str:
    """The digest by which a run directory knows its configuration."""
    return configs.digest_of(lasting(configs.to_dict(config)))


def overrides(settings: Mapping[str, Any]) -> list[str]:
    """Settings as arguments of ``sleeplm run``, none of them through a shell."""
    return [f"{configs.PREFIX}{field}={_text(value)}" for field, value in settings.items()]


def _axis(module: Any, experiment: str, name: str) -> list[Settings]:
    make = getattr(module, MAKER + name, None)
    if not callable(make):
        there = [known.removeprefix(MAKER) for known in vars(module) if known.startswith(MAKER)]
        remedy = f"no {MAKER}{name}() in {experiment}; there are: {', '.join(there) or 'none'}"
        raise ConfigError("sweep", name, remedy)
    try:
        made = make()
        entries = list(made) if isinstance(made, Iterable) or inspect.isgenerator(made) else None
    except SleepError:
        raise
    except Exception as error:
        remedy = f"{MAKER}{name}() failed: {type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError("sweep", name, remedy) from error
    if not entries:
        raise ConfigError("sweep", name, f"{MAKER}{name}() must give at least one settings")
    for entry in entries:
        _check_settings(name, entry)
    return entries


def _check_settings(name: str, entry: Any) -> None:
    if not isinstance(entry, Mapping) or not all(isinstance(field, str) for field in entry):
        remedy = f"{MAKER}{name}() must give settings such as {{'sleep.learning_rate': 1e-3}}"
        raise ConfigError("sweep", entry, remedy)
    for field, value in entry.items():
        if not _plain(value):
            remedy = "must be a finite number, text, true or false, none, or lists of these"
            raise ConfigError(field, value, remedy)


def _plain(value: Any) -> bool:
    """Whether JSON can hold the value and give it back the same."""
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(isinstance(name, str) and _plain(part) for name, part in value.items())
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, int | str)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return repr(value)


def _arrived(config: Any, field: str, value: Any) -> None:
    """An override is text that is parsed: what comes out must be what the sweep says."""
    got = config_path.get_value(field, config)
    if json.dumps(got, default=str) != json.dumps(value) and got != value:
        raise ConfigError(field, value, f"cannot be set by a sweep: it is read as {got!r}")
