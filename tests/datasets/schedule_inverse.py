"""From instances back to positions: the rounds of the order, taken back one by one. The program itself never asks for that."""

import numpy as np

from datasets.schedule import _ROUNDS, Feistel, Schedule


def inverse(order: Feistel, y_B: np.ndarray) -> np.ndarray:
    """The argument whose `forward` is y_B, int64 [B]."""
    x_B = _rounds_back(order, np.asarray(y_B, dtype=np.int64))
    while (outside_B := x_B >= order.size).any():
        x_B[outside_B] = _rounds_back(order, x_B[outside_B])
    return x_B


def _rounds_back(order: Feistel, y_B: np.ndarray) -> np.ndarray:
    side = order._side
    left_B, right_B = y_B // side, y_B % side
    for number in reversed(range(_ROUNDS)):
        left_B, right_B = (right_B - order._round_function(number, left_B)) % side, left_B
    return left_B * side + right_B


def positions_of(schedule: Schedule, ids_B: np.ndarray) -> np.ndarray:
    """Instances -> positions, int64 [B]: the inverse of `schedule.instances`."""
    ids_B = np.asarray(ids_B, dtype=np.int64)
    positions_B = np.empty_like(ids_B)
    segment_B = np.searchsorted(schedule._eras.first_ids_E, ids_B, side="right") - 1
    for number, first_id, first_position in schedule._starts_of(segment_B):
        here_B = segment_B == number
        positions_B[here_B] = first_position + inverse(schedule._order(number), ids_B[here_B] - first_id)
    return positions_B
