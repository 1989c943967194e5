"""Text beside points that hides neither the points nor other text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

ANGLES = np.deg2rad(
    [35, -35, 145, 215, 90, 270, 0, 180, 60, -60, 120, 240]
)  # in order of preference: right, left, above …
DISTANCES = (9, 14, 21, 32, 46)  # points
CANDIDATES = [(angle, distance) for distance in DISTANCES for angle in ANGLES]
LABEL_WEIGHT = 3.0  # of covering another label, as much as covering a marker
LEADER: dict[str, Any] = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 3}


def place_labels(
    ax: Axes, points: NDArray, texts: Sequence[str], colors: Sequence[Any], obstacles: NDArray, weights: NDArray
) -> None:
    """Write texts[i] beside points[i], one after the other, each where it covers least; far ones get a thin line.

    points: (N, 2), in data coordinates.  obstacles: boxes better left free, (M, 4) as x0, y0, x1, y1 in pixels, with
    their weights, (M,).  All else that changes the layout of the figure (axis labels, legend) must be there already.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    inside, renderer = ax.get_window_extent(), FigureCanvasAgg(figure).get_renderer()
    for point, anchor, text, color in zip(points, ax.transData.transform(points), texts, colors, strict=True):
        label = ax.annotate(text, tuple(point), xytext=(0, 0), textcoords="offset points", color=color, zorder=2.5)
        label.set_fontsize(8)
        size = label.get_window_extent(renderer)
        boxes = [_box(anchor, angle, distance * figure.dpi / 72, size) for angle, distance in CANDIDATES]
        costs = [
            _covered(box, obstacles, weights) + _outside(box, inside) + distance + rank / 10
            for rank, (box, (_, distance)) in enumerate(zip(boxes, CANDIDATES, strict=True))
        ]
        best = int(np.argmin(costs))
        box = boxes[best]
        label.set_position(tuple((box[:2] - anchor) * 72 / figure.dpi))
        label.set_bbox({"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5})
        label.set_in_layout(False)
        if CANDIDATES[best][1] > DISTANCES[1]:
            near = tuple(np.clip(anchor, box[:2], box[2:]))
            line = ax.annotate("", tuple(point), xytext=near, textcoords="figure pixels", arrowprops=LEADER)
            line.set_in_layout(False)
        obstacles, weights = np.vstack([obstacles, box]), np.append(weights, LABEL_WEIGHT)


def _box(anchor: NDArray, angle: float, distance: float, size: Bbox) -> NDArray:
    """Where the text's box, (4,) in pixels, lies when it stands that far from the anchor in that direction."""
    direction = np.array([np.cos(angle), np.sin(angle)]).round(6)
    lower_left = anchor + direction * distance
    lower_left -= np.array([size.width * (1 - np.sign(direction[0])) / 2, size.height * (1 - direction[1]) / 2])
    return np.append(lower_left, lower_left + np.array([size.width, size.height]))


def _covered(box: NDArray, boxes: NDArray, weights: NDArray) -> float:
    """Weighted area, in pixels, that the box shares with the others."""
    overlap = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    return float(weights @ np.prod(np.maximum(overlap, 0), axis=1))


def _outside(box: NDArray, inside: Bbox) -> float:
    """More than any overlap costs, for every pixel by which the box leaves the axes."""
    return 1000 * float(np.maximum([*(inside.min - box[:2]), *(box[2:] - inside.max)], 0).sum())
