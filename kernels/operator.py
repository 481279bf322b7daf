"""A Python function as an operator of torch, under `pic::`: with a schema, so that fake tensors, autograd and torch.compile know it.

torch.library.custom_op would do the same in a line. But its first call imports torch._dynamo, which takes two seconds and more of every
process that trains, for a function that nobody compiles. So the operator is put together from the parts of torch.library.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload


def operator(*, changes: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], OpOverload]:
    """A decorator that makes `pic::<name>` of a function whose arguments and result have types, without the underscores in front.

    changes   names of the tensors that it changes in place; autograd learns of it

    The function runs below autograd: what is differentiable gets its backward by torch.library.register_autograd.
    """

    def register(function: Callable[..., Any]) -> OpOverload:
        name = f"pic::{function.__name__.lstrip('_')}"
        code = function.__code__
        names = code.co_varnames[: code.co_argcount]
        places = [names.index(changed) for changed in changes]

        def implementation(*arguments: Any, **named: Any) -> Any:
            result = function(*arguments, **named)
            if places:
                torch.autograd.graph.increment_version([arguments[place] for place in places])
            return result

        schema = torch.library.infer_schema(function, mutates_args=changes)
        torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(name, "default", implementation)
        return getattr(torch.ops.pic, name.removeprefix("pic::")).default

    return register
