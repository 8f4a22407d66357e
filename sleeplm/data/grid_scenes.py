"""Rules of generated grid tasks about what lies in a grid: objects, outlines, lines, counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sleeplm.data.grid_rules import Random, Rule, colours, noise, sizes_of


def crop(rng: Random) -> Rule:
    """The only object, cut out."""
    sizes, palette = sizes_of(rng, 4, 6), colours(rng, 3)

    def rule(rng: Random) -> tuple[np.ndarray, np.ndarray]:
        size = sizes(rng)
        high, wide = (int(rng.integers(1, side)) for side in size)
        thing = rng.choice(palette, (high, wide))
        top, left = int(rng.integers(size[0] - high + 1)), int(rng.integers(size[1] - wide + 1))
        grid = np.zeros(size, int)
        grid[top : top + high, left : left + wide] = thing
        return grid, thing

    return rule


def halves(rng: Random) -> Rule:
    """Two halves beside a line, joined cell by cell: and, or, exclusive or, neither."""
    one, two, line, out = colours(rng, 4)
    joins: list[Callable[[np.ndarray, np.ndarray], np.ndarray]] = [
        np.logical_and, np.logical_or, np.logical_xor, lambda a, b: ~(a | b),
    ]  # fmt: skip
    join, size = joins[int(rng.integers(4))], (int(rng.integers(2, 5)), int(rng.integers(2, 4)))
    upright, same = rng.random() < 0.5, rng.random() < 0.5

    def rule(rng: Random) -> tuple[np.ndarray, np.ndarray]:
        a, b = (rng.random(size) < 0.5 for _ in range(2))
        middle = np.full((size[0], 1), line)
        grid = np.hstack([np.where(a, one, 0), middle, np.where(b, one if same else two, 0)])
        made = np.where(join(a, b), out, 0)
        return (grid, made) if upright else (grid.T, made.T)

    return rule


def gravity(rng: Random) -> Rule:
    """All cells fall to one side."""
    number, sizes, palette = int(rng.integers(4)), sizes_of(rng), colours(rng, 2)

    def fall(grid: np.ndarray) -> np.ndarray:
        columns = [np.concatenate([c[c == 0], c[c != 0]]) for c in np.rot90(grid, number).T]
        return np.rot90(np.array(columns).T, -number)

    def rule(rng: Random) -> tuple[np.ndarray, np.ndarray]:
        grid = noise(rng, sizes(rng), palette, 0.4)
        return grid, fall(grid)

    return rule


def _rectangle(rng: Random, size: tuple[int, int], smallest: int = 3) -> tuple[slice, slice]:
    """Where a rectangle lies; it has ``smallest`` rows and columns at least."""
    spans = []
    for side in size:
        length = int(rng.integers(smallest, side + 1))
        start = int(rng.integers(side - length + 1))
        spans.append(slice(start, start + length))
    return spans[0], spans[1]


def _inside(place: tuple[slice, slice]) -> tuple[slice, slice]:
    rows, columns = place
    return slice(rows.start + 1, rows.stop - 1), slice(columns.start + 1, columns.stop - 1)


def fill(rng: Random) -> Rule:
    """The inside of an outline is filled."""
    sizes, (colour, filling) = sizes_of(rng, 4, 6), colours(rng, 2)

    def rule(rng: Random) -> tuple[np.ndarray, np.ndarray]:
        size = sizes(rng)
        place, grid = _rectangle(rng, size), np.zeros(size, int)
        grid[place] = colour
        grid[_inside(place)] = 0
        made = grid.copy()
        made[_inside(place)] = filling
        return grid, made

    return rule


def hollow(rng: Random) -> Rule:
    """Of a full rectangle the outline stays."""
    sizes, colour = sizes_of(rng, 4, 6), colours(rng, 1)[0]

    def rule(rng: Random) -> tuple[np.ndarray, np.ndarray]:
        size = sizes(rng)
        place, grid = _rectangle(rng, size), np.zeros(size, int)
        grid[place] = colour
        made = grid.copy()
        made[_inside(place)] = 0
        return grid, made

    return rule


def most(rng: Random) -> Rule:
    """The most frequent colour: alone, or all over the grid."""
    sizes, palette, whole = sizes_of(rng), colours(rng, 3), rng.random() < 0.5

    def rule(rng: Random) -> tuple[np.ndarray, np.ndarray]:
        size = sizes(rng)
        grid, counts = np.zeros(size, int), np.zeros(10, int)
        while (counts == counts.max()).sum() > 1:  # two as frequent would leave the answer open
            grid = rng.choice(palette, size, p=rng.permutation([0.6, 0.3, 0.1]))
            counts = np.bincount(grid.ravel(), minlength=10)
        return grid, np.full(size if whole else (1, 1), counts.argmax())

    return rule


def odd(rng: Random) -> Rule:
    """The colour of the one cell that differs."""
    sizes, palette, whole = sizes_of(rng), colours(rng, 4), rng.random() < 0.5

    def rule(rng: Random) -> tuple[np.ndarray, np.ndarray]:
        size, (common, single) = sizes(rng), rng.choice(palette, 2, replace=False)
        grid = np.full(size, common)
        grid[rng.integers(size[0]), rng.integers(size[1])] = single
        return grid, np.full(size if whole else (1, 1), single)

    return rule


def extend(rng: Random) -> Rule:
    """A pattern of stripes goes on to the end."""
    palette, upright, high = colours(rng, 4), rng.random() < 0.5, int(rng.integers(1, 4))

    def rule(rng: Random) -> tuple[np.ndarray, np.ndarray]:
        period, wide = int(rng.integers(2, 4)), int(rng.integers(6, 9))
        pattern = rng.choice(palette, period, replace=False)
        made = np.tile(np.resize(pattern, wide), (high, 1))
        grid = made.copy()
        grid[:, int(rng.integers(period + 1, wide)) :] = 0
        return (grid, made) if upright else (grid.T, made.T)

    return rule


def lines(rng: Random) -> Rule:
    """Every cell draws a line through its row or its column."""
    sizes, palette, upright = sizes_of(rng, 3, 6), colours(rng, 3), rng.random() < 0.5

    def rule(rng: Random) -> tuple[np.ndarray, np.ndarray]:
        high, wide = sizes(rng)
        grid = np.zeros((high, wide), int)
        for row in rng.choice(high, int(rng.integers(1, 3)), replace=False):
            grid[row, rng.integers(wide)] = rng.choice(palette)
        made = np.repeat(grid.max(1, keepdims=True), wide, 1)
        return (grid, made) if upright else (grid.T, made.T)

    return rule


def count(rng: Random) -> Rule:
    """As many cells in a row as there are in the grid."""
    sizes, colour = sizes_of(rng), colours(rng, 1)[0]

    def rule(rng: Random) -> tuple[np.ndarray, np.ndarray]:
        high, wide = sizes(rng)
        number = int(rng.integers(1, 6))
        grid = np.zeros(high * wide, int)
        grid[rng.choice(high * wide, number, replace=False)] = colour
        return grid.reshape(high, wide), np.full((1, number), colour)

    return rule


def connect(rng: Random) -> Rule:
    """Two cells in one row, or column, are joined."""
    sizes, palette, upright = sizes_of(rng, 4, 6), colours(rng, 2), rng.random() < 0.5

    def rule(rng: Random) -> tuple[np.ndarray, np.ndarray]:
        high, wide = sizes(rng)
        wide = max(wide, 4)
        grid = np.zeros((high, wide), int)
        row, ends = rng.integers(high), np.sort(rng.choice(wide, 2, replace=False))
        colour = rng.choice(palette)
        grid[row, ends] = colour
        made = grid.copy()
        made[row, ends[0] : ends[1]] = colour
        return (grid, made) if upright else (grid.T, made.T)

    return rule
