"""The best of a grid by held-out images, and what it says of the images that are tested: those are asked once, of what was chosen.

Of equal values the first one wins. The chosen classifier is not trained again with the held-out images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from engine.probing.heads import Head, Heads
from engine.probing.kept import Kept
from engine.probing.logistic import fit_logistic
from engine.probing.rows import Rows
from engine.probing.score import Score, score
from engine.probing.tellers import Tell, nobody


@dataclass(frozen=True)
class Chosen:
    """
    name     of the classifier: "sgd" or "logistic"
    about    what was chosen: {"rate": 0.1} or {"C": 0.01}
    grid     each value of the grid with its share right on the held-out images
    """

    name: str
    head: Head
    about: dict[str, float]
    grid: list[dict[str, Any]]

    def record(self, tested: Score) -> dict[str, Any]:
        """For linear.json."""
        held_out_top1 = max(one["held_out_top1"] for one in self.grid)
        return {
            "name": self.name,
            **self.about,
            **tested.figures(),
            "is_finite": self.head.is_finite,
            "held_out_top1": held_out_top1,
            "grid": self.grid,
        }


def best_rate(heads: Heads, rates: Sequence[float], rows: Rows, labels_M: np.ndarray, held_n: np.ndarray) -> Chosen:
    """heads: one for each of `rates`; held_n: the held-out rows."""
    grid = [
        {"rate": rate, "held_out_top1": score(heads.head(number), rows, labels_M, held_n).top1}
        for number, rate in enumerate(rates)
    ]
    best = int(np.argmax([one["held_out_top1"] for one in grid]))
    return Chosen("sgd", heads.head(best), {"rate": rates[best]}, grid)


def best_strength(
    rows: Rows,
    labels_M: np.ndarray,
    ids_n: np.ndarray,
    held_n: np.ndarray,
    strengths: Sequence[float],
    classes: int,
    kept: Kept,
    tell: Tell = nobody,
) -> Chosen:
    """Logistic regression on the rows `ids_n` at each C of `strengths`, ascending: each begins where the one before ended.

    tell: hears each iteration of a search, with its loss and C.
    """
    done, tensors = kept.load() or (0, {})
    fits: list[Head] = []
    grid: list[dict[str, Any]] = []
    for number, C in enumerate(strengths):
        if number >= done:
            fit = fit_logistic(rows, labels_M, ids_n, C, classes, fits[-1] if fits else None, tell)
            tensors = {**tensors, **_tensors(number, fit.head)}
            tensors[f"{number}.search"] = torch.tensor([fit.iterations, int(fit.is_converged)])
            kept.save(number + 1, partial(dict, tensors), is_last=True)
        fits.append(Head(*(tensors[f"{number}.{part}"].to(rows.device) for part in ("weight", "bias"))))
        iterations, is_converged = tensors[f"{number}.search"].tolist()
        top1 = score(fits[-1], rows, labels_M, held_n).top1
        grid.append({"C": C, "held_out_top1": top1, "iterations": iterations, "is_converged": bool(is_converged)})
    best = int(np.argmax([one["held_out_top1"] for one in grid]))
    return Chosen("logistic", fits[best], {"C": strengths[best]}, grid)


def _tensors(number: int, head: Head) -> dict[str, torch.Tensor]:
    return {
        f"{number}.weight": head.weight_DC.cpu().contiguous(),
        f"{number}.bias": head.bias_C.cpu().contiguous(),
    }
