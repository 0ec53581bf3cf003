"""Loss scaling for fp16 (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2), without waiting for the
device: a factor on the loss keeps gradients that are too small for fp16 from becoming 0. The factor shrinks
when they overflow, and grows when they have not for a while."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

START, LEAST, MOST = 2.0**6, 2.0**-10, 2.0**24
"""Initial scale of a loss that is a sum over targets. torch's, of a mean, starts at 2**16: the same, for a
thousand."""
GROWS_AFTER = 2_000
"""After so many steps without an overflow the scale grows."""


class LossScale:
    """A factor on the loss, a power of two, by which the gradients are divided again. Without fp16 it is 1,
    and costs the device nothing."""

    def __init__(self, device: torch.device, numbers: Mapping[str, float], *, active: bool) -> None:
        """numbers: as `numbers` returned them, for a run that is resumed."""
        self.active = active
        self._factor = torch.tensor(numbers.get("scale", START) if active else 1.0, device=device)
        self._clean = torch.tensor(numbers.get("clean", 0.0), device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        return loss * self._factor if self.active else loss

    def unscaled(self, factor: Tensor) -> Tensor:
        """The factor for gradients of the scaled loss that corresponds to `factor` for those of the loss."""
        return factor / self._factor if self.active else factor

    def adapt(self, skip: Tensor, loss_finite: Tensor) -> Tensor:
        """Shrink or grow after a step. Returns (a bool, on the device) whether it was skipped only because of
        its
        scale: the loss was finite, and the gradients may be finite with a smaller scale."""
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
