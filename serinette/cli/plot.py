"""A plot of blocks, for a terminal and for a file alike."""

from __future__ import annotations

from collections.abc import Sequence

_BLOCKS = " ▁▂▃▄▅▆▇█"
_EIGHTHS = 8


def blocks(points: Sequence[tuple[float, float]], width: int, height: int) -> list[str]:
    """Lines of a step function of (seconds, value >= 0): the highest value of each column, and an axis in hours."""
    if not points:
        return []
    start_s, end_s = points[0][0], max(points[-1][0], points[0][0] + 1)
    columns = columns_of(points, width)
    top = max(*columns, 1.0) if len(columns) > 1 else max(columns[0], 1.0)
    lines = []
    for row in range(height - 1, -1, -1):
        label = f"{top:>7.0f} ┤" if row == height - 1 else f"{0:>7} ┤" if row == 0 else " " * 8 + "│"
        fills = (round(value / top * height * _EIGHTHS) - row * _EIGHTHS for value in columns)
        lines.append(label + "".join(_BLOCKS[max(0, min(_EIGHTHS, fill))] for fill in fills))
    right = f"{(end_s - start_s) / 3600:.1f} h"
    lines.append(" " * 9 + "0 h" + right.rjust(width - 3))
    return lines


def columns_of(points: Sequence[tuple[float, float]], width: int) -> list[float]:
    """The highest value within each of `width` equal spans of time; a value holds until the next point."""
    start_s, end_s = points[0][0], max(points[-1][0], points[0][0] + 1)
    columns = [0.0] * width
    for (at_s, value), (until_s, _) in zip(points, [*points[1:], (end_s, 0.0)], strict=True):
        first = min(width - 1, int((at_s - start_s) / (end_s - start_s) * width))
        last = min(width - 1, int((until_s - start_s) / (end_s - start_s) * width))
        for column in range(first, last + 1):
            columns[column] = max(columns[column], value)
    return columns
