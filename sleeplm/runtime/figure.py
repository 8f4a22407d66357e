"""The picture of a retention experiment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

DPI = 150
COLUMNS = 3
# Three panels in a row are 1400 pixels wide.
PANEL_INCHES = 1400 / DPI / COLUMNS
# Readable with every common colour blindness: one hue scale that also rises in lightness, and
# line colours of Okabe and Ito told apart by marker and dash as well.
SCALE = "cividis"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^DvPX"
DASHES = ("-", "--", "-.", ":")


def draw_retention(arms: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draws one heat map an arm and recall against age.

    Args:
      arms: ``{name: {"matrix": [nights][days] with None above the diagonal, "age": [nights],
        "mean_recall_last": {"mean"}}}``.
      path: the PNG to write.
    """
    panels = len(arms) + 1
    columns = 2 if panels == 4 else min(panels, COLUMNS)
    rows = -(-panels // columns)
    size = (columns * PANEL_INCHES, rows * 1.08 * PANEL_INCHES + 0.6)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    image: Any = None
    for axis, (name, arm) in zip(axes, arms.items(), strict=False):
        image = _heat_map(axis, name, arm)
    _recall_by_age(axes[len(arms)], arms)
    for axis in axes[panels:]:
        axis.set_visible(False)
    bar = figure.colorbar(image, ax=list(axes), location="bottom", shrink=0.5, aspect=50, pad=0.02)
    bar.set_label("recall (%)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.savefig(path)


def _heat_map(axis: Axes, name: str, arm: Mapping[str, Any]) -> Any:
    matrix = np.array([[np.nan if r is None else r for r in row] for row in arm["matrix"]], float)
    days = len(matrix)
    image = axis.imshow(100 * matrix, cmap=SCALE, vmin=0, vmax=100)
    end = 100 * arm["mean_recall_last"]["mean"]
    axis.set_title(f"{_title(name)}: {end:.0f}% at the end", fontsize=9)
    axis.set_xlabel("facts of day", fontsize=8)
    axis.set_ylabel("after night", fontsize=8)
    ticks = range(0, days, max(1, days // 10))
    axis.set_xticks(ticks, [str(t + 1) for t in ticks], fontsize=7)
    axis.set_yticks(ticks, [str(t + 1) for t in ticks], fontsize=7)
    axis.spines[:].set_visible(False)
    if days <= 16:
        for night in range(days):
            for day in range(night + 1):
                recall = matrix[night, day]
                colour = "black" if recall > 0.55 else "white"
                text = f"{100 * recall:.0f}"
                size = min(9, 56 / days)
                axis.text(day, night, text, ha="center", va="center", color=colour, fontsize=size)
    return image


def _recall_by_age(axis: Axes, arms: Mapping[str, Any]) -> None:
    for number, (name, arm) in enumerate(arms.items()):
        axis.plot(
            100 * np.asarray(arm["age"]),
            linestyle=DASHES[number % len(DASHES)],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            label=_title(name),
        )
    axis.set_ylim(-3, 103)
    nights = max(len(arm["age"]) for arm in arms.values())
    axis.set_xlim(-0.3, nights - 0.7)
    axis.set_title("recall (%) against age", fontsize=9)
    axis.set_xlabel("nights since the day", fontsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, framealpha=0.85, edgecolor="none")
    axis.set_box_aspect(1)


def _title(name: str) -> str:
    return name.replace("_", " ")
