"""Loss scaling for fp16 (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2), without waiting for the
device. A factor on the loss keeps gradients that are too small for fp16 from becoming 0. It shrinks when
gradients overflow, and grows after a while without overflow."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

START, LEAST, MOST = 2.0**6, 2.0**-10, 2.0**24
"""Initial scale of a loss that is a sum over targets. torch's, for a mean, is 2**16: the same for a thousand
targets."""
GROWS_AFTER = 2_000
"""The scale grows after this many steps without overflow."""


class LossScale:
    """A power of two that multiplies the loss and divides its gradients. Without fp16 it is 1, at no cost on
    the device."""

    def __init__(self, device: torch.device, numbers: Mapping[str, float], *, active: bool) -> None:
        """numbers: from `numbers`, for a resumed run."""
        self.active = active
        self._factor = torch.tensor(numbers.get("scale", START) if active else 1.0, device=device)
        self._clean = torch.tensor(numbers.get("clean", 0.0), device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        return loss * self._factor if self.active else loss

    def unscaled(self, factor: Tensor) -> Tensor:
        """`factor`, meant for gradients of the loss, converted to a factor for gradients of the scaled
        loss."""
        return factor / self._factor if self.active else factor

    def adapt(self, skip: Tensor, loss_finite: Tensor) -> Tensor:
        """Shrink or grow after a step. Returns whether the step was skipped only because of its scale: the
        loss was finite, and a smaller scale may give finite gradients. A bool, on the device."""
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
        """The numbers to keep in a checkpoint. Waits for the device."""
        return {"scale": float(self._factor), "clean": float(self._clean)} if self.active else {}
