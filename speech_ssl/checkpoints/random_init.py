"""Create modules without random numbers, for weights that come from a file."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class no_random_init(TorchFunctionMode):
    """Skips random initialisation, which takes seconds for a large encoder only to be overwritten from the
    file. (The meta device would do the same, but importing what it needs takes almost a second.)

    most: the largest number of weights; ValueError beyond it, since a file may claim any size.
    """

    def __init__(self, most: int | None = None) -> None:
        super().__init__()
        self._left = math.inf if most is None else most

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if func in (torch.empty, torch.zeros, torch.ones):
            size = kwargs.get("size", args if args and isinstance(args[0], int) else (args or ((),))[0])
            self._left -= math.prod(size)
            if self._left < 0:
                raise ValueError("it would have far more weights than the file")
        return func(*args, **kwargs)
