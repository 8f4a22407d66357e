"""Rules of generated grid tasks: ``family(rng)`` draws a rule, which draws pairs of arrays.

Grids are int arrays [h, w] of colours; 0 is the background. Sizes are small, since a small model
has to read several pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Random = np.random.Generator
Rule = Callable[[Random], tuple[np.ndarray, np.ndarray]]
Family = Callable[[Random], Rule]
Map = Callable[[np.ndarray], np.ndarray]


def dihedral(grid: np.ndarray, number: int) -> np.ndarray:
    """A symmetry of the square, 0 to 7: turned ``number % 4`` times; from 4 on, mirrored."""
    turned = np.rot90(grid, number % 4)
    return np.fliplr(turned) if number >= 4 else turned


def colours(rng: Random, count: int) -> np.ndarray:
    """Different colours, none of them the background."""
    return rng.choice(np.arange(1, 10), count, replace=False)


def size_of(rng: Random, low: int = 3, high: int = 5) -> tuple[int, int]:
    """Often three by three, as in many of ARC's smallest tasks."""
    if low <= 3 and rng.random() < 0.5:
        return 3, 3
    return int(rng.integers(low, high + 1)), int(rng.integers(low, high + 1))


def sizes_of(rng: Random, low: int = 3, high: int = 5) -> Callable[[Random], tuple[int, int]]:
    """One size for all pairs of a task, mostly; else one for each."""
    fixed = size_of(rng, low, high)
    return (lambda _: fixed) if rng.random() < 0.7 else (lambda r: size_of(r, low, high))


def noise(rng: Random, size: tuple[int, int], palette: np.ndarray, density: float) -> np.ndarray:
    """Cells of random colours of the palette on the background, one at least."""
    grid = np.where(rng.random(size) < density, rng.choice(palette, size), 0)
    grid[rng.integers(size[0]), rng.integers(size[1])] = rng.choice(palette)
    return grid


def mapped(rng: Random, change: Map, low: int = 3, high: int = 5) -> Rule:
    """A rule that is one function of the whole input, a grid of noise."""
    sizes, density = sizes_of(rng, low, high), rng.uniform(0.4, 1.0)
    palette = colours(rng, int(rng.integers(2, 6)))

    def rule(rng: Random) -> tuple[np.ndarray, np.ndarray]:
        grid = noise(rng, sizes(rng), palette, density)
        return grid, change(grid)

    return rule


def turn_map(rng: Random) -> Map:
    """One of the symmetries of the square, but for none at all."""
    number = int(rng.integers(1, 8))
    return lambda grid: dihedral(grid, number)


def recolour_map(rng: Random) -> Map:
    """Every colour becomes another one; the background stays."""
    table = np.concatenate([[0], rng.permutation(np.arange(1, 10))])
    return lambda grid: table[grid]


def turn(rng: Random) -> Rule:
    """Turned or mirrored."""
    return mapped(rng, turn_map(rng))


def recolour(rng: Random) -> Rule:
    """Every colour becomes another one."""
    return mapped(rng, recolour_map(rng))


def replace(rng: Random) -> Rule:
    """One colour becomes another one."""
    sizes, density = sizes_of(rng), rng.uniform(0.5, 1.0)
    palette = colours(rng, 4)

    def rule(rng: Random) -> tuple[np.ndarray, np.ndarray]:
        grid = noise(rng, sizes(rng), palette[:3], density)
        return grid, np.where(grid == palette[0], palette[3], grid)

    return rule


def keep(rng: Random) -> Rule:
    """One colour stays, or one goes."""
    sizes, palette, stays = sizes_of(rng), colours(rng, 3), rng.random() < 0.5

    def rule(rng: Random) -> tuple[np.ndarray, np.ndarray]:
        grid = noise(rng, sizes(rng), palette, 0.7)
        return grid, np.where((grid == palette[0]) == stays, grid, 0)

    return rule


def tile(rng: Random) -> Rule:
    """Copies side by side and below each other."""
    times = _times(rng)
    return mapped(rng, lambda grid: np.tile(grid, times), 2, 3)


def mirror(rng: Random) -> Rule:
    """Copies side by side and below each other, each of them mirrored in its own way."""
    high, wide = _times(rng)
    flips = rng.integers(4, size=(high, wide))

    def copy(grid: np.ndarray, flip: int) -> np.ndarray:
        grid = grid[::-1] if flip & 1 else grid
        return grid[:, ::-1] if flip & 2 else grid

    def change(grid: np.ndarray) -> np.ndarray:
        return np.block([[copy(grid, flip) for flip in row] for row in flips])

    return mapped(rng, change, 2, 3)


def _times(rng: Random) -> tuple[int, int]:
    choices = [(1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (3, 2), (2, 3)]
    return choices[int(rng.integers(len(choices)))]


def scale(rng: Random) -> Rule:
    """Every cell becomes a block."""
    high, wide = [(2, 2), (1, 2), (2, 1), (3, 3)][int(rng.integers(4))]
    return mapped(rng, lambda grid: np.kron(grid, np.ones((high, wide), int)), 2, 3)


def part(rng: Random) -> Rule:
    """A half, a quarter, a row or a column at a fixed place."""
    kinds: list[Map] = [
        lambda g: g[: len(g) // 2], lambda g: g[-(len(g) // 2) :],
        lambda g: g[:, : g.shape[1] // 2], lambda g: g[:, -(g.shape[1] // 2) :],
        lambda g: g[: len(g) // 2, : g.shape[1] // 2], lambda g: g[:1], lambda g: g[-1:],
        lambda g: g[:, :1], lambda g: g[:, -1:],
    ]  # fmt: skip
    return mapped(rng, kinds[int(rng.integers(len(kinds)))], 2, 6)


def frame(rng: Random) -> Rule:
    """A frame, over the border or around it."""
    colour, around = int(colours(rng, 1)[0]), rng.random() < 0.4

    def change(grid: np.ndarray) -> np.ndarray:
        if around:
            return np.pad(grid, 1, constant_values=colour)
        return np.pad(grid[1:-1, 1:-1], 1, constant_values=colour)

    return mapped(rng, change, 3, 4 if around else 6)


def shift(rng: Random) -> Rule:
    """Moved round by some rows or columns."""
    step, axis = int(rng.integers(1, 3)), int(rng.integers(2))
    return mapped(rng, lambda grid: np.roll(grid, step, axis))


def invert(rng: Random) -> Rule:
    """Background and colour change places."""
    sizes, colour = sizes_of(rng), colours(rng, 1)[0]

    def rule(rng: Random) -> tuple[np.ndarray, np.ndarray]:
        grid = noise(rng, sizes(rng), np.array([colour]), 0.5)
        return grid, np.where(grid == 0, colour, 0)

    return rule
