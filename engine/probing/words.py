"""What a probe found, as a record for linear.json and as lines for people."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engine.probing.score import Score

_NAMES = {"sgd": "linear, SGD", "logistic": "logistic regression", "published": "linear, the published protocol"}


def by_class(labels_C: np.ndarray, example: Callable[[int], str], scores: dict[str, Score]) -> list[dict[str, Any]]:
    """A line for each class that is tested. labels_C: as the source has them; example: what an image of a class is called."""
    count_C = next(iter(scores.values())).count_C
    return [
        {
            "label": int(labels_C[number]),
            "example": example(number),
            "images": int(count_C[number]),
            **{name: float(one.right_C[number]) for name, one in scores.items()},
            **{f"{name}_top5": float(one.five_C[number]) for name, one in scores.items() if one.five_C is not None},
        }
        for number in np.flatnonzero(count_C).tolist()
    ]


def describe(result: dict[str, Any]) -> str:
    """A record of linear.json for people: every figure beside chance, and how it was come by."""
    lines = [
        f"{result['backbone']}: linear probe of {result['features']} features, right answers (chance {result['chance']:.2%})"
    ]
    for one in result["heads"]:
        about = [f"{name} {one[name]:g}" for name in ("rate", "C", "lr") if name in one]
        held = [f"held out {one['held_out_top1']:.1%}"] if "held_out_top1" in one else []
        wild = (
            [] if one.get("is_finite", True) else ["its weights grew without end, so it is never right; lower the rate"]
        )
        lines.append(_line(_NAMES.get(one["name"], one["name"]), one, about + held + wild + ended_early_words(one)))
    for one in result.get("few_labels", []):
        name = f"  {asked_text(one['asked'])}, {one['images']:,} images"
        lines.append(
            _line(name, one, [f"C {one['C']:g}", f"held out {one['held_out_top1']:.1%}", *ended_early_words(one)])
        )
    return "\n".join([*lines, f"  {result['protocol']}"])


def ended_early_words(head: dict[str, Any]) -> list[str]:
    """Of a logistic regression the values of C whose search ran out of iterations, in words; empty where there are none."""
    cut = [f"{one['C']:g}" for one in head.get("grid", []) if not one.get("is_converged", True)]
    return [f"the search ended before its optimum at C {', '.join(cut)}"] if cut else []


def shares_by_name(result: dict[str, Any]) -> dict[str, float]:
    """Every share of a record of linear.json but those by class, for TensorBoard; those that there are not are left out."""
    named = [(one["name"], one) for one in result["heads"]]
    named += [(one["what"], one) for one in result.get("few_labels", [])]
    kinds = {"top1": "top-1", "top5": "top-5", "held_out_top1": "held-out top-1"}
    return {f"{name} {kinds[kind]}": one[kind] for name, one in named for kind in kinds if one.get(kind) is not None}


def asked_text(asked: float) -> str:
    """What an entry of linear.few asks for."""
    return f"{asked:.3g} of the labels" if asked < 1 else f"{asked:.0f} labels a class"


def left_out_text(what: str, missing: int, of: int) -> str:
    """How many of the images that are `what` have no features, to stand behind other words; empty where all have."""
    why = "could not be decoded or have no finite features"
    return f"; {missing:,} of {of:,} images that are {what} are left out, since they {why}" * bool(missing)


def lacking_text(classes_n: np.ndarray, classes: int) -> str:
    """How many classes no image is trained on, of those of the images classes_n; empty where there are none."""
    lacking = classes - len(np.unique(classes_n))
    return f"; {lacking:,} of {classes:,} classes have no image to train on, and are never told" * bool(lacking)


def _line(name: str, figures: dict[str, Any], about: Sequence[str]) -> str:
    top5 = "" if figures["top5"] is None else f", top-5 {figures['top5']:.1%}"
    return f"  {name:40} {figures['top1']:6.1%}{top5}" + f"  ({'; '.join(about)})" * bool(about)
