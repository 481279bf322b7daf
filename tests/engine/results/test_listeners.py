"""TensorBoard's curves: figures of evaluations are there, and steps that a killed process wrote, and that are taken again, stand once."""

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


def test_the_figures_of_evaluations_are_scalars(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    output = Output(tmp_path / "run", ["tensorboard"], None)
    output.make()
    line = {"elapsed_seconds": 1.0, "chance": 0.1, "rankme_dim": 64, "protocol": "words", "uniformity": None}
    shares = {"digits, queries": 0.75, "knn_top1": 0.75, "none": None}
    with TensorBoard(output) as board:
        board.evaluated({**line, "step": 7, "figures": shares, "rankme": 12.5, "own_row_found": 0.25})
    events = accumulator.EventAccumulator(str(output.path / "tensorboard"))
    events.Reload()
    names = {"digits, queries": 0.75, "knn_top1": 0.75, "rankme": 12.5, "own_row_found": 0.25}
    assert set(events.Tags()["scalars"]) == set(names)
    assert {name: [(one.step, one.value) for one in events.Scalars(name)] for name in names} == {
        name: [(7, value)] for name, value in names.items()
    }
