"""Loss scaling for fp16 (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2), without waiting for the
device: gradients too small for fp16 are kept from becoming 0 by a large loss, which shrinks where they
overflow and grows where they have not for long."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

START, LEAST, MOST = 2.0**6, 2.0**-10, 2.0**24
"""Of a loss that is a sum over targets. torch's scale, of means, starts at 2**16: as much, for a thousand."""
GROWS_AFTER = 2_000
"""Steps without an overflow after which the loss is made larger."""


class LossScale:
    """A factor on the loss, a power of two, that the gradients are divided by again. Without fp16: 1, and no
    work for the device."""

    def __init__(self, device: torch.device, numbers: Mapping[str, float], *, active: bool) -> None:
        """numbers: as `numbers` gave them, where a run goes on."""
        self.active = active
        self._factor = torch.tensor(numbers.get("scale", START) if active else 1.0, device=device)
        self._clean = torch.tensor(numbers.get("clean", 0.0), device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        return loss * self._factor if self.active else loss

    def unscaled(self, factor: Tensor) -> Tensor:
        """What does to the gradients of a scaled loss what `factor` does to those of the loss."""
        return factor / self._factor if self.active else factor

    def adapt(self, skip: Tensor, loss_finite: Tensor) -> Tensor:
        """Shrink or grow after a step, and say (a bool, on the device) whether it was skipped only for its
        scale: the loss was finite, and the gradients may be so under a smaller one."""
        if not self.active:
            return torch.zeros_like(skip)
        too_large = skip & loss_finite
        overflown = too_large & (self._factor > LEAST)
        clean = torch.where(skip, 0.0, self._clean + 1)
        grows = clean >= GROWS_AFTER
        grown = torch.where(grows, self._factor * 2, self._factor)
        self._clean = torch.where(grows, 0.0, clean)
        self._factor = torch.where(too_large, self._factor / 2, grown).clamp(LEAST, MOST)
        return overflown

    def numbers(self) -> dict[str, float]:
        """What a checkpoint keeps. Waits for the device."""
        return {"scale": float(self._factor), "clean": float(self._clean)} if self.active else {}
