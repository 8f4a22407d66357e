"""Panels of the picture of retention experiments; every one draws into given axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

DPI = 150
#: Width and height of a panel; three in a row are 1400 pixels wide. Smaller ones have smaller
#: letters.
PANEL_INCHES = 1400 / DPI / 3
# Readable with every common colour blindness: one hue scale that also rises in lightness, and
# line colours of Okabe and Ito told apart by marker and dash as well.
SCALE = "cividis"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^DvPX"
DASHES = ("-", "--", "-.", ":")
#: Ticks of a decade of compute, by how many times more the dearest arm costs than the cheapest.
TICKS = {
    3: (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9),
    8: (1, 2, 3, 5, 7),
    200: (1, 2, 5),
    float("inf"): (1,),
}
#: Smallest letters that are still drawn into a cell, points.
SMALLEST = 4.5


def costs_of(arms: Mapping[str, Any]) -> dict[str, float]:
    """FLOPs of the arms that say them."""
    spreads = {name: arm.get("figures", {}).get("flops") for name, arm in arms.items()}
    return {name: spread["mean"] for name, spread in spreads.items() if spread and spread["mean"]}


def heat_map(axis: Axes, name: str, arm: Mapping[str, Any], inches: float) -> Any:
    """Recall after every night of every day, for one arm of ``inches``; returns the image."""
    matrix = np.array(arm["matrix"], float)
    image = axis.imshow(100 * matrix, cmap=SCALE, vmin=0, vmax=100)
    end = 100 * arm["mean_recall_last"]["mean"]
    small = inches < PANEL_INCHES
    label = f"{end:.0f}%" if small else f"{end:.0f}% at the end"
    axis.set_title(f"{_title(name, 22 if small else 40)}: {label}", fontsize=8 if small else 9)
    _days(axis, len(matrix), inches, ("facts of day", "after night"), arm.get("nights") or ())
    _numbers(axis, matrix, min(9.0, 18 * inches / len(matrix)))
    return image


def _numbers(axis: Axes, matrix: np.ndarray, size: float) -> None:
    """Shares in percent, written into the cells if they can be read there."""
    if size < SMALLEST:
        return
    for (row, column), share in np.ndenumerate(matrix):
        if np.isfinite(share):
            colour = "black" if share > 0.55 else "white"
            text = f"{100 * share:.0f}"
            axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)


def recall_by_age(axis: Axes, arms: Mapping[str, Any], names: Sequence[str]) -> None:
    """Lines of the arms ``names``, with bands where they have intervals."""
    numbers = {name: number for number, name in enumerate(arms)}
    for name in names:
        recall = 100 * np.asarray(arms[name]["age"], float)
        style = _style(numbers[name])
        every = max(1, len(recall) // 12)
        axis.plot(recall, **style, markersize=5, markevery=every, label=_title(name, 30))
        band = arms[name].get("curves", {}).get("age") or {}
        if band.get("low") is not None:
            low, high = (100 * np.asarray(band[side], float) for side in ("low", "high"))
            axis.fill_between(
                range(len(recall)), low, high, color=style["color"], alpha=0.18, linewidth=0
            )
    axis.set_ylim(-3, 103)
    nights = max(len(arms[name]["age"]) for name in names)
    axis.set_xlim(-0.3, nights - 0.7)
    axis.set_title("recall (%) against age", fontsize=9)
    axis.set_xlabel("nights since the day", fontsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _plain(axis)


def score_by_compute(axis: Axes, arms: Mapping[str, Any]) -> None:
    """Recall at the end against FLOPs."""
    costs = costs_of(arms)
    for number, name in enumerate(arms):
        if name in costs:
            score = arms[name]["mean_recall_last"]
            mean, low, high = (score.get(part) for part in ("mean", "low", "high"))
            style = {**_style(number), "linestyle": "none"}
            bar = None if low is None else [[100 * (mean - low)], [100 * (high - mean)]]
            axis.errorbar(
                costs[name], 100 * mean, yerr=bar, **style, markersize=6, elinewidth=1, capsize=2
            )
    least, most = min(costs.values()), max(costs.values())
    margin = max(1.25, (most / least) ** 0.08)
    axis.set_xscale("log")
    axis.set_xlim(least / margin, most * margin)
    axis.set_ylim(-3, 103)
    axis.set_title("recall at the end (%) against FLOPs", fontsize=9)
    axis.set_xlabel("FLOPs of a life, sampling included", fontsize=8)
    subs = next(ticks for factor, ticks in TICKS.items() if most / least < factor)
    axis.xaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda flops, _: _power(flops)))
    _plain(axis)


def _power(value: float) -> str:
    """``3e14``, ``1.5e9``."""
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


def names_beside(axis: Axes, ends: Mapping[str, float], places: Mapping[str, float]) -> None:
    """Names of points inside the panel, on the side where there is more room."""
    middle = float(np.sqrt(np.prod(axis.get_xlim())))
    for right in (True, False):
        names = sorted((n for n in ends if (places[n] <= middle) == right), key=ends.__getitem__)
        heights = _apart([ends[name] for name in names], 5.0)
        for name, height in zip(names, heights, strict=True):
            axis.annotate(
                _title(name, 30),
                xy=(places[name], height),
                xytext=(8 if right else -8, 0),
                textcoords="offset points",
                ha="left" if right else "right",
                va="center",
                fontsize=8,
            )


def names_right(
    axis: Axes,
    ends: Mapping[str, float],
    places: Mapping[str, float],
    arms: Mapping[str, Any],
    width: int = 1,
) -> None:
    """Names right of the panel in the order of their values, each tied to its point.

    Args:
      ends, places: height and abscissa of the points, in data.
      width: places in the grid that the panel takes.
    """
    styles = {name: _style(number) for number, name in enumerate(arms)}
    names = sorted(ends, key=ends.__getitem__)
    for name, place in zip(names, _apart([ends[n] for n in names], 5.5), strict=True):
        height, style = (place + 3) / 106, styles[name]
        handle = 1 + np.array([0.07, 0.11, 0.15]) / width
        key: dict[str, Any] = {
            "transform": axis.transAxes,
            "clip_on": False,
            "linewidth": 1.2,
        }
        axis.plot(handle, [height] * 3, **style, **key, markersize=4, markevery=[1])
        axis.annotate(
            "",
            xy=(places[name], ends[name]),
            xytext=(handle[0], height),
            textcoords="axes fraction",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": style["color"],
                "alpha": 0.6,
                "linewidth": 0.7,
                "shrinkA": 0,
                "shrinkB": 3,
            },
        )
        axis.text(
            handle[-1] + 0.02 / width,
            height,
            _title(name, 22),
            transform=axis.transAxes,
            va="center",
            fontsize=7.5,
        )


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Rising ``places`` moved as little as keeps them ``gap`` apart, between 0 and 100."""
    gap = min(gap, 100 / max(1, len(places) - 1))
    clusters: list[list[float]] = []  # those that touch each other move to their mean
    for number, place in enumerate(places):
        clusters.append([place - number * gap])
        while len(clusters) > 1 and np.mean(clusters[-2]) >= np.mean(clusters[-1]):
            last = clusters.pop()
            clusters[-1] += last
    most = 100 - gap * (len(places) - 1)
    means = [float(np.clip(np.mean(cluster), 0, most)) for cluster in clusters for _ in cluster]
    return [mean + number * gap for number, mean in enumerate(means)]


def routing(axis: Axes, name: str, arm: Mapping[str, Any], inches: float) -> None:
    """Of the gate weight on a day's questions, the percentage that each night's expert gets."""
    traffic = np.array(arm["traffic"], float)
    given = traffic.sum(axis=1, keepdims=True)
    share = np.divide(traffic, given, out=np.zeros_like(traffic), where=given > 0)
    axis.imshow(100 * share, cmap=SCALE, vmin=0, vmax=100)
    small = inches < PANEL_INCHES
    axis.set_title(f"{_title(name, 18)}: gate weight (%)", fontsize=8 if small else 9)
    _days(axis, len(share), inches, ("expert of night", "facts of day"))
    _numbers(axis, share, min(9.0, 18 * inches / len(share)))


def _days(
    axis: Axes, days: int, inches: float, labels: tuple[str, str], names: Sequence[str] = ()
) -> None:
    """Days or nights on both axes; ``names`` are those of the rows."""
    small = inches < PANEL_INCHES
    numbers = [str(day + 1) for day in range(days)]
    ticks = range(0, days, -(-days // (5 if small else 10)))
    axis.set_xlabel(labels[0], fontsize=7 if small else 8)
    axis.set_ylabel(labels[1], fontsize=7 if small else 8)
    for put, texts in ((axis.set_xticks, numbers), (axis.set_yticks, names or numbers)):
        put(ticks, [texts[tick] for tick in ticks], fontsize=6 if small else 7)
    axis.spines[:].set_visible(False)


def _plain(axis: Axes) -> None:
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _style(number: int) -> dict[str, Any]:
    """Colour, marker and dash of an arm; no two of 49 arms have all the same."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
        "linestyle": DASHES[number % len(DASHES)],
    }


def _title(name: str, longest: int) -> str:
    name = name.replace("_", " ")
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
