"""Who hears of a run while it trains: a file, the terminal, TensorBoard. Rank 0 has them; the others have none."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol, Self

from engine.results.json_files import json_text
from engine.results.output import Output
from engine.results.records import FIGURES_OF_PROBE, evaluator_figures, finite_items


class Listener(AbstractContextManager, Protocol):
    """Is entered before the first step and left after the last."""

    def update(self, line: Mapping[str, Any]) -> None:
        """Take a line of metrics.jsonl."""

    def evaluated(self, line: Mapping[str, Any]) -> None:
        """Take a line of evaluations.jsonl."""

    def note(self, text: str) -> None:
        """Take words about something that happened once."""


class MetricsFile:
    """metrics.jsonl: every line, as it comes."""

    def __init__(self, output: Output) -> None:
        self._output, self._open = output, ExitStack()

    def __enter__(self) -> Self:
        self._file = self._open.enter_context(self._output.lines("metrics.jsonl"))
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def update(self, line: Mapping[str, Any]) -> None:
        self._file.write(json_text(line) + "\n")
        self._file.flush()

    def evaluated(self, line: Mapping[str, Any]) -> None:
        """Evaluations have a file of their own, which is written whether anybody listens or not."""

    def note(self, text: str) -> None:
        """A file of figures takes no words."""


class TensorBoard:
    """Loss, learning rate, images per second, the method's figures and those of evaluations as TensorBoard's scalars, in the output's
    `tensorboard`.

    prefix       stands before the name of every scalar
    first_step   of a run: what a process that was killed wrote from there on is not shown; None: nothing is hidden
    """

    def __init__(self, output: Output, prefix: str = "", *, first_step: int | None = None) -> None:
        self._output, self._prefix, self._first_step = output, prefix, first_step

    def __enter__(self) -> Self:
        from torch.utils.tensorboard import SummaryWriter

        directory = self._output.enter("tensorboard")
        directory.mkdir(exist_ok=True)
        before = set(directory.iterdir())
        self._writer = SummaryWriter(str(directory), purge_step=self._first_step)
        for path in set(directory.iterdir()) - before:
            self._output.take(f"tensorboard/{path.name}")
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def update(self, line: Mapping[str, Any]) -> None:
        for key in ("loss", "lr", "images_per_second", *line["figures"], *FIGURES_OF_PROBE):
            if line.get(key) is not None:
                self._writer.add_scalar(self._prefix + key, line[key], line["step"])
        self._writer.flush()

    def evaluated(self, line: Mapping[str, Any]) -> None:
        for name, value in {**finite_items(line.get("figures")), **evaluator_figures(line)}.items():
            self._writer.add_scalar(self._prefix + name, value, line["step"])
        self._writer.flush()

    def note(self, text: str) -> None:
        """Scalars take no words."""
