"""The config of an earlier start beside the present one: what its keys are called now, keys as flat names, and what a key was that
there was not yet.

The section `method` was called `classifier`, and its `kind` was `classifier.method`; `data.cache` was true for what is "part" now, and
false for "none". Files, overrides and checkpoints of that form are still taken. `data.source` may be an object with a `kind`: its keys
stand for `data.source` and the keys of `data` with their names. `translated` is the only place that knows of all this.
"""

import json
from itertools import zip_longest
from typing import Any

from pydantic import BaseModel

from datasets.shown import cut_text

_CACHE = {True: "part", False: "none"}
_OF_A_SOURCE = ("root", "labels", "exclude", "limit", "held_out", "index")


def translated(tree: dict[str, Any]) -> dict[str, Any]:
    """`tree`, a config or a part of one from the top, by the present names; it is not changed.

    Raises ValueError, in a line, where the old section is no section, or where a key is given in two ways.
    """
    return _with_plain_data(_with_method(tree))


def _with_plain_data(tree: dict[str, Any]) -> dict[str, Any]:
    data = tree.get("data")
    if not isinstance(data, dict):
        return tree
    if isinstance(data.get("cache"), bool):
        data = {**data, "cache": _CACHE[data["cache"]]}
    source = data.get("source")
    if not isinstance(source, dict):
        return {**tree, "data": data}
    plain: dict[str, Any] = {}
    for key, value in source.items():
        name = "source" if key == "kind" else key
        if name != "source" and name not in _OF_A_SOURCE:
            raise ValueError(
                f"unknown key data.source.{cut_text(key)}; beside kind there are {', '.join(_OF_A_SOURCE)}"
            )
        if name != "source" and name in data:
            raise ValueError(
                f"data.source.{name} and data.{name} are the same key, and both are given; leave data.{name} out"
            )
        plain[name] = value
    return {**tree, "data": {key: value for key, value in data.items() if key != "source"} | plain}


def _with_method(tree: dict[str, Any]) -> dict[str, Any]:
    if "classifier" not in tree:
        return tree
    old, new = tree["classifier"], tree.get("method", {})
    for name, section in (("classifier", old), ("method", new)):
        if not isinstance(section, dict):
            now = "" if name == "method" else "; it is called method now"
            raise ValueError(f"{name} is {_kind_of(section)}, and must be a section of keys{now}")
    if "method" in old and "kind" in old:
        raise ValueError("classifier.method and classifier.kind are the same key; leave classifier.kind out")
    present = {key: "kind" if key == "method" else key for key in old}
    for key, name in present.items():
        if name in new:
            was, now = cut_text(f"classifier.{key}"), cut_text(f"method.{name}")
            raise ValueError(f"{was} and {now} are the same key, and both are given; leave {was} out")
    others = {key: value for key, value in tree.items() if key not in ("classifier", "method")}
    return others | {"method": {present[key]: value for key, value in old.items()} | new}


def _kind_of(value: Any) -> str:
    """Of a JSON value that is no object. Not the value itself: nothing has looked yet how deep it is."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return "text" if isinstance(value, str) else "a list" if isinstance(value, list) else "a number"


def completed(saved: dict[str, Any], section: BaseModel) -> dict[str, Any]:
    """`saved`, the values of an earlier start, with the defaults of keys that there were not yet; `section` is of the present start."""
    result = dict(saved)
    for name, field in type(section).model_fields.items():
        present = getattr(section, name)
        if name not in saved:
            if not field.is_required():
                result[name] = json.loads(json.dumps(field.get_default(), default=lambda part: part.model_dump()))
        elif isinstance(present, BaseModel) and isinstance(saved[name], dict):
            result[name] = completed(saved[name], present)
        elif isinstance(present, tuple) and isinstance(saved[name], list):  # of sections, perhaps: data.augment.crops
            pairs = zip_longest(saved[name], present[: len(saved[name])])
            result[name] = [
                completed(part, like) if isinstance(part, dict) and isinstance(like, BaseModel) else part
                for part, like in pairs
            ]
    return result


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data": {"root": 1}} -> {"data.root": 1}."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result
