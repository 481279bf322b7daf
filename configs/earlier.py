"""The config of an earlier start beside the present one: keys as flat names, and what a key was that there was not yet."""

import json
from itertools import zip_longest
from typing import Any

from pydantic import BaseModel


def completed(kept: dict[str, Any], section: BaseModel) -> dict[str, Any]:
    """`kept`, the values of an earlier start, with the defaults of keys that there were not yet; `section` is of the present start."""
    result = dict(kept)
    for name, field in type(section).model_fields.items():
        present = getattr(section, name)
        if name not in kept:
            if not field.is_required():
                result[name] = json.loads(json.dumps(field.get_default(), default=lambda part: part.model_dump()))
        elif isinstance(present, BaseModel) and isinstance(kept[name], dict):
            result[name] = completed(kept[name], present)
        elif isinstance(present, tuple) and isinstance(kept[name], list):  # of sections, perhaps: data.augment.crops
            pairs = zip_longest(kept[name], present[: len(kept[name])])
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
