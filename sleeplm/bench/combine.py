"""Several runs in one report: which of their seeds belong to one arm, and which are other arms."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from sleeplm.bench.results import RESULTS, read_arms
from sleeplm.core.errors import ConfigError

#: Settings that may differ between runs whose seeds are put together into one arm.
_FREE = (
    *("seed", "seeds", "world_seed", "arms"),
    *("cache", "save_seconds", "keep", "mesh", "data_dir", "manual_dir"),
)


def combine(
    results: Sequence[Mapping[str, Any]],
    names: Sequence[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    labels: Sequence[str] | None = None,
) -> dict[str, Any]:
    """One results of several runs.

    Arms of the same name become one arm with more seeds, if the runs have the same world and the
    same settings (other than seeds, the arms, and where things are kept) and no seed in common.
    A setting that one run does not know yet counts as alike where the other has its default, and a
    section that it does not know (of a phase that came later) whatever the other has there.
    If they are not, or if there are several worlds, arms are named ``ARM@RUN``, or by a label that
    all of their runs have and no other arm of that name has. A run has another
    world if its world's name, questions or number of days differ; its seeds are never paired with
    the other's. Neither are seeds whose days' texts differ (``world.digests``, one a seed).

    Args:
      results: as :func:`read_results` gives them.
      names: of the runs, all different; ``run1``, ``run2``, ... by default.
      defaults: of the settings, as a run's ``config`` has them.
      labels: of each run, what tells it from runs with other settings; empty for none.

    Raises:
      ConfigError: a results is garbled, or names are not distinct.
    """
    names = list(names or (f"run{number + 1}" for number in range(len(results))))
    if len(set(names)) < len(results) or len(names) != len(results):
        raise ConfigError("runs", names, "must have a name each, all different")
    if len(results) == 1:
        return dict(results[0])
    for name, one in zip(names, results, strict=True):
        read_arms(one, f"{name}/{RESULTS}")
    worlds = [_world(one) for one in results]
    several = len(set(worlds)) > 1
    groups: dict[str, list[_Group]] = {}
    for name, one, world in zip(names, results, worlds, strict=True):
        origin = names[worlds.index(world)] if several else None
        for arm, entry in one["arms"].items():
            part = _Group([name], _named(entry, one, name, origin), world, _settings(one))
            _gather(groups.setdefault(arm, []), part, defaults)
    told = dict(zip(names, labels or [""] * len(names), strict=True))
    arms: dict[str, list[dict[str, Any]]] = {}
    for arm, found in groups.items():
        # A bare name beside ARM@SETTING, of a sweep in one run, would pass for all settings' arm.
        alone = len(found) == 1 and not several and not any(n.startswith(f"{arm}@") for n in groups)
        for title, group in zip(_titles(found, told), found, strict=True):
            name = arm if alone else f"{arm}@{title}"
            if name in arms or (name != arm and name in groups):
                name = f"{arm}@{'+'.join(group.names)}"
            arms[name] = group.seeds
    by_run = {
        entry: dict(zip(names, (one.get(entry) for one in results), strict=True))
        for entry in ("config", "digest", "world")
    }
    if not several:
        by_run["world"] = results[0].get("world") or {}
    experiments = dict.fromkeys(str(one.get("experiment") or "") for one in results)
    seconds = [s for one in results if isinstance(s := one.get("seconds"), int | float)]
    return by_run | {
        "experiment": ", ".join(filter(None, experiments)) or None,
        "runs": names,
        "arms": arms,
        "seconds": sum(seconds) if len(seconds) == len(results) else None,
    }


def run_names(directories: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Short distinct names of run directories: the last parts of their paths.

    Raises:
      ConfigError: a directory is named twice.
    """
    paths = [pathlib.Path(directory).expanduser().resolve() for directory in directories]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise ConfigError("run", str(directories[number]), "is named twice")
    deepest = max((len(path.parts) for path in paths), default=1)
    for depth in range(1, deepest + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


@dataclasses.dataclass
class _Group:
    """Seeds of one arm that belong together, from the runs ``names``."""

    names: list[str]
    seeds: list[dict[str, Any]]
    world: tuple[Any, ...]
    settings: Any


def _gather(groups: list[_Group], part: _Group, defaults: Mapping[str, Any] | None) -> None:
    """Puts ``part`` into the first group that it fits, or makes it a new one."""
    for group in groups:
        seeds = [(seed.get("world_seed"), seed.get("seed")) for seed in group.seeds + part.seeds]
        known = all(seed is not None for _, seed in seeds)
        alike = group.world == part.world and _alike(group.settings, part.settings, defaults)
        if known and alike and len(set(seeds)) == len(seeds):
            group.names += part.names
            group.seeds += part.seeds
            return
    groups.append(part)


def _titles(groups: Sequence[_Group], labels: Mapping[str, str]) -> list[str]:
    """What tells groups of an arm apart: their one label, if no other has it, or their runs."""
    own = [{labels[name] for name in group.names} for group in groups]
    return [
        next(iter(mine))
        if len(mine) == 1 and mine != {""} and sum(bool(mine & other) for other in own) == 1
        else "+".join(group.names)
        for mine, group in zip(own, groups, strict=True)
    ]


def _named(
    entry: Any, results: Mapping[str, Any], name: str, origin: str | None
) -> list[dict[str, Any]]:
    """The seeds of an arm, marked with where they come from."""
    seeds = entry if isinstance(entry, list) else [entry]
    config = results.get("config")
    if len(seeds) == 1 and seeds[0].get("seed") is None and isinstance(config, Mapping):
        known = {key: config[key] for key in ("seed", "world_seed") if _whole(config.get(key))}
        seeds = [dict(seeds[0]) | known]
    world = results.get("world")
    digests = world.get("digests") if isinstance(world, Mapping) else None
    if not isinstance(digests, list) or len(digests) != len(seeds):
        digests = [origin] * len(seeds)
    # A seed without a number can be paired inside its own run only.
    return [
        dict(seed) | {"run": name, "origin": digest if seed.get("seed") is not None else name}
        for seed, digest in zip(seeds, digests, strict=True)
    ]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _world(results: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes runs comparable: the name and the size of the world, and the days lived.

    The size is what was asked for. How many questions a day then has may differ from seed to seed.
    """
    world, config = results.get("world"), results.get("config")
    world = world if isinstance(world, Mapping) else {}
    first = next(iter(results["arms"].values()))
    days = len((first[0] if isinstance(first, list) else first)["matrix"])
    if isinstance(config, Mapping) and "facts_per_day" in config:
        sizes = {"facts_per_day": 0, "day_sizes": [], "exam_per_day": 0, "exam_facts": 1}
        size: Any = [config.get(name) or usual for name, usual in sizes.items()]
    else:
        counts = world.get("questions_per_day", world.get("passages_per_day"))
        size = sorted(counts) if isinstance(counts, list) else world.get("facts_per_day")
    return str(world.get("name")), str(size), days


def _alike(a: Any, b: Any, default: Any) -> bool:
    """Whether two settings mean the same, though one may be of before a field existed."""
    if not (isinstance(a, Mapping) and isinstance(b, Mapping)):
        return a == b
    known = default if isinstance(default, Mapping) else {}
    for name in {*a, *b}:
        if name in a and name in b:
            if not _alike(a[name], b[name], known.get(name)):
                return False
            continue
        value = a.get(name, b.get(name))
        came_later = name in known and (isinstance(value, Mapping) or value == known[name])
        if not came_later:
            return False
    return True


def _settings(results: Mapping[str, Any]) -> Any:
    config = results.get("config")
    if not isinstance(config, Mapping):
        return None
    return {key: value for key, value in config.items() if key not in _FREE}
