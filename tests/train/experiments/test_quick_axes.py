"""Axes of small figures: limits, ticks and the place of a legend."""

from __future__ import annotations

import numpy as np
import pytest

from train.experiments.quick_axes import data_limits, fixed_figure, tick_labels


@pytest.mark.parametrize(
    ("low", "high", "integer", "labels"),
    [
        (0.0, 1.0, False, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.06, 0.0704, False, ["0.060", "0.0625", "0.065", "0.0675", "0.070"]),
        (-0.4, 19.4, True, ["0", "5", "10", "15"]),
        (0.0, 0.0, True, ["0"]),
        (1e7, 2e7, False, ["1e+07", "1.2e+07", "1.4e+07", "1.6e+07", "1.8e+07", "2e+07"]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, integer: bool, labels: list[str]) -> None:
    found = tick_labels(low, high, 5, integer)
    assert [float(label) for _, label in found] == [float(label) for label in labels]
    assert [value for value, _ in found] == pytest.approx([float(label) for label in labels])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 10.0], (-0.5, 10.5)),
        ([np.nan, 0.0, np.inf, 10.0], (-0.5, 10.5)),
        ([np.nan], (0.0, 1.0)),
        ([2.0, 2.0], (1.89, 2.11)),
    ],
)
def test_limits_leave_room_around_finite_values(values: list[float], expected: tuple[float, float]) -> None:
    assert data_limits(values) == pytest.approx(expected)


@pytest.mark.parametrize("falling", [True, False])
def test_a_legend_lies_where_the_lines_are_not(falling: bool) -> None:
    _, ((ax,),) = fixed_figure(1, 1, (4.0, 3.0), (0.6, 0.15, 0.3, 0.5))
    ax.line([0, 1], [1, 0] if falling else [0, 1], label="a line")
    ax.legend()
    ((left, bottom),) = [text.get_position() for text in ax.texts]
    assert (left > (ax.box.x0 + ax.box.x1) / 2) == falling
    assert bottom > (ax.box.y0 + ax.box.y1) / 2
