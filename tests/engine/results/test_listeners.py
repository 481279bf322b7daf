"""TensorBoard's curves after a kill: steps that a killed process wrote, and that are taken again, stand once."""

import pytest

from engine.results.listeners import TensorBoard
from engine.results.output import Output


def test_steps_that_are_taken_again_are_shown_once(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    output = Output(tmp_path / "run", ["tensorboard"], None)
    output.make()
    for first, last in ((1, 12), (7, 20)):  # killed after step 11, behind a checkpoint at step 6
        with TensorBoard(output, first_step=first) as board:
            for step in range(first, last):
                board.update({"step": step, "loss": 100.0 * first + step, "figures": []})
    events = accumulator.EventAccumulator(str(output.path / "tensorboard"))
    events.Reload()
    shown = [(one.step, one.value) for one in events.Scalars("loss")]
    assert shown == [(step, 100.0 * (1 if step < 7 else 7) + step) for step in range(1, 20)]
