"""The picture of retention experiments."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure, SubFigure

from sleeplm.bench.panels import (
    DPI,
    PANEL_INCHES,
    costs_of,
    heat_map,
    names_beside,
    names_right,
    recall_by_age,
    routing,
    score_by_compute,
)

#: Columns of panels, with few arms; of heat maps and of lines, with many.
COLUMNS, MANY_COLUMNS, MANY_PLACES = 3, 6, 3
#: More arms than this are drawn small, and their lines in several panels.
FEW = 5
#: Lines in one panel, one of them the reference, when there are many arms.
LINES = 6
#: Most pools whose routing is shown.
POOLS = 3
#: Width of a picture with many arms, inches.
WIDTH = 13.2


def draw_retention(arms: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draws one heat map an arm, recall against age, score against compute, and routing.

    Args:
      arms: ``{name: {"matrix": [nights][days] with None above the diagonal, "age": [nights],
        "mean_recall_last": {"mean"}}}``; optionally ``curves.age`` with ``low`` and ``high``
        (the band), ``figures.flops`` (compute), ``traffic`` [days][nights] (routing), and
        ``nights``, the names of nights.
      path: the PNG to write.
    """
    draw = _few if len(arms) <= FEW else _many
    draw(arms).savefig(path)


def _few(arms: Mapping[str, Any]) -> Figure:
    """All panels of one size, in one grid."""
    pools, costs = _pools(arms), costs_of(arms)
    panels = len(arms) + 1 + bool(costs)
    pools = pools[: min(POOLS, max(1, -panels % COLUMNS))]
    panels += len(pools)
    columns = 2 if panels == 4 else min(panels, COLUMNS)
    rows = -(-panels // columns)
    size = (columns * PANEL_INCHES, rows * 1.08 * PANEL_INCHES + 0.6)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    image: Any = None
    for axis, (name, arm) in zip(axes, arms.items(), strict=False):
        image = heat_map(axis, name, arm, PANEL_INCHES)
    rest = iter(axes[len(arms) :])
    axis = next(rest)
    recall_by_age(axis, arms, list(arms))
    axis.legend(fontsize=8, framealpha=0.85 if len(arms) < 4 else 0.5, edgecolor="none")
    if costs:
        axis = next(rest)
        score_by_compute(axis, arms)
        names_beside(axis, _ends(arms, costs), costs)
    for name in pools:
        routing(next(rest), name, arms[name], PANEL_INCHES)
    for axis in axes[len(arms) : panels]:
        axis.set_box_aspect(1)
    _hide(axes[panels:])
    _colour_bar(figure, image, axes)
    return figure


def _many(arms: Mapping[str, Any]) -> Figure:
    """Small heat maps above; below them lines in several panels, and compute."""
    rows = -(-len(arms) // MANY_COLUMNS)
    columns = -(-len(arms) // rows)
    inches = WIDTH / columns
    below = -(-(len(_shares(arms)) + bool(costs_of(arms))) // MANY_PLACES)
    heights = [rows * 1.12 * inches + 0.5, below * 3.85]
    figure = Figure(figsize=(WIDTH, sum(heights)), dpi=DPI)
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
    upper, lower = figure.subfigures(2, 1, height_ratios=heights, squeeze=False).ravel()
    shown = _maps(upper, arms, rows, columns, inches)
    _lines(lower, arms, below, [] if shown else _pools(arms))
    return figure


def _maps(
    figure: SubFigure, arms: Mapping[str, Any], rows: int, columns: int, inches: float
) -> list[str]:
    """Heat maps, and routing where a place is left; returns the pools that are shown."""
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    image: Any = None
    for axis, (name, arm) in zip(axes, arms.items(), strict=False):
        image = heat_map(axis, name, arm, inches)
    shown = _pools(arms)[: min(len(axes) - len(arms), POOLS)]
    for axis, name in zip(axes[len(arms) :], shown, strict=False):
        routing(axis, name, arms[name], inches)
    _hide(axes[len(arms) + len(shown) :])
    _colour_bar(figure, image, axes)
    return shown


def _lines(figure: SubFigure, arms: Mapping[str, Any], rows: int, pools: Sequence[str]) -> None:
    """Recall against age in several panels, compute, and the first pool if a place is left."""
    grid = figure.add_gridspec(rows, MANY_PLACES)
    shared, costs = _shares(arms), costs_of(arms)
    for place, names in enumerate(shared):
        axis = figure.add_subplot(grid[divmod(place, MANY_PLACES)])
        recall_by_age(axis, arms, names)
        ages = {name: arms[name]["age"] for name in names}
        ends = {name: 100 * age[-1] for name, age in ages.items()}
        names_right(axis, ends, {name: len(age) - 1 for name, age in ages.items()}, arms)
    spare = rows * MANY_PLACES - len(shared) - bool(costs)
    routed = bool(pools) and spare > 0
    if costs:
        row, column = divmod(len(shared), MANY_PLACES)
        axis = figure.add_subplot(grid[row, column : MANY_PLACES - routed])
        score_by_compute(axis, arms)
        names_right(axis, _ends(arms, costs), costs, arms, MANY_PLACES - routed - column)
    if routed:
        routing(figure.add_subplot(grid[-1, -1]), pools[0], arms[pools[0]], PANEL_INCHES)


def _hide(axes: Iterable[Any]) -> None:
    for axis in axes:
        axis.set_visible(False)


def _ends(arms: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
    return {name: 100 * arms[name]["mean_recall_last"]["mean"] for name in names}


def _shares(arms: Mapping[str, Any]) -> list[list[str]]:
    """Arms by recall at the end, in panels of ``LINES``; the reference is in every one."""
    ranked = sorted(arms, key=lambda name: -arms[name]["mean_recall_last"]["mean"])
    reference = _reference(arms)
    others = [name for name in ranked if name != reference]
    count = -(-len(others) // (LINES - 1))
    return [[reference, *part.tolist()] for part in np.array_split(np.array(others), count)]


def _reference(arms: Mapping[str, Any]) -> str:
    return "sleep" if "sleep" in arms else next(iter(arms))


def _pools(arms: Mapping[str, Any]) -> list[str]:
    """The arms whose routing is shown, the reference first."""
    known = [name for name, arm in arms.items() if arm.get("traffic")]
    return sorted(known, key=lambda name: name != _reference(arms))


def _colour_bar(figure: Figure | SubFigure, image: Any, axes: Iterable[Any]) -> None:
    bar = figure.colorbar(image, ax=list(axes), location="bottom", shrink=0.5, aspect=50, pad=0.02)
    bar.set_label("recall (%)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
