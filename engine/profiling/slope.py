"""Does memory grow with the steps? The slope of a least-squares line, and how sure it is."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student

_STRETCHES = 20  # means over stretches are nearly independent, where samples after each other are not


def slope_of(steps: Sequence[float], values: Sequence[float]) -> tuple[float, float] | None:
    """(slope a step, half of its 95 % interval), in the unit of `values`; None where there are too few.

    The values are put together to means over `_STRETCHES` equal stretches of steps first.
    """
    x_n, y_n = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    if len(x_n) < _STRETCHES or x_n.min() == x_n.max():
        return None
    stretch_n = np.minimum(((x_n - x_n.min()) / (x_n.max() - x_n.min()) * _STRETCHES).astype(int), _STRETCHES - 1)
    inside = [stretch_n == number for number in range(_STRETCHES)]
    x_n, y_n = (np.array([values_n[one].mean() for one in inside if one.any()]) for values_n in (x_n, y_n))
    if len(x_n) < _STRETCHES // 2:
        return None
    x_n, y_n = x_n - x_n.mean(), y_n - y_n.mean()
    slope = float(x_n @ y_n / (x_n @ x_n))
    freedom = len(x_n) - 2
    error = math.sqrt(((y_n - slope * x_n) ** 2).sum() / freedom / (x_n @ x_n))
    return slope, float(student.ppf(0.975, freedom)) * error
