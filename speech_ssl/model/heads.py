"""What turns frames into answers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CTCHead(nn.Module):
    """Frames (B, T, D) to log-probabilities of units (B, T, V), in fp32. Unit 0 is the blank."""

    def __init__(self, width: int, units: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.logits = nn.Linear(width, units)
        nn.init.normal_(self.logits.weight, std=width**-0.5)
        nn.init.zeros_(self.logits.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        with torch.autocast(x_BTD.device.type, enabled=False):
            return self.logits(self.dropout(x_BTD).float()).log_softmax(-1)  # type: ignore[no-any-return]
