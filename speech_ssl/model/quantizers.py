"""Discrete targets: the Gumbel product quantizer of wav2vec 2.0 (section 2, "Quantization module")."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Quantized(NamedTuple):
    """N stands for any leading dimensions."""

    vectors_ND: Tensor
    """Chosen entries of all codebooks, concatenated; gradients pass straight through the choice."""
    codes_NG: Tensor
    """Index of the chosen entry in each codebook."""
    probs_NGV: Tensor
    """Softmax of the logits, without noise; the diversity loss averages it."""


class GumbelQuantizer(nn.Module):
    """`groups` codebooks of `entries` vectors each; each frame gets one entry of each.

    In training the choice is the argmax of logits plus Gumbel noise, with the gradient of the softmax at
    `temperature` (Jang et al. 2016). In evaluation it is the argmax of the logits.
    """

    def __init__(
        self, inputs: int, *, groups: int = 2, entries: int = 320, width: int = 256, logit_std: float = 1.0
    ) -> None:
        """logit_std: of the initial weights. With 1, as in fairseq, logits are about sqrt(inputs): the choice
        is nearly hard from the start, and noise and diversity loss have little effect on it."""
        super().__init__()
        if width % groups:
            raise ValueError(f"the quantizer's width {width} must be a multiple of its groups {groups}")
        self.groups, self.entries = groups, entries
        self.logits = nn.Linear(inputs, groups * entries)
        self.codebook_GVD = nn.Parameter(torch.empty(groups, entries, width // groups).uniform_())
        nn.init.normal_(self.logits.weight, std=logit_std)
        nn.init.zeros_(self.logits.bias)

    @property
    def width(self) -> int:
        return self.groups * self.codebook_GVD.shape[2]

    def forward(self, x_NC: Tensor, *, temperature: Tensor | float, generator: torch.Generator) -> Quantized:
        with torch.autocast(x_NC.device.type, enabled=False):  # in bf16 one in fifty maxima would be a tie
            logits_NGV = self.logits(x_NC.float()).unflatten(-1, (self.groups, self.entries))
        noisy_NGV = logits_NGV
        if self.training:
            exponential_NGV = torch.empty_like(logits_NGV).exponential_(generator=generator)
            noisy_NGV = logits_NGV - exponential_NGV.clamp(min=1e-10).log()
        codes_NG = noisy_NGV.argmax(-1)
        choice_NGV = torch.zeros_like(logits_NGV).scatter_(-1, codes_NG[..., None], 1.0)
        if self.training:
            soft_NGV = (noisy_NGV / temperature).softmax(-1)
            choice_NGV = choice_NGV - soft_NGV.detach() + soft_NGV
        with torch.autocast(x_NC.device.type, enabled=False):
            vectors_NGD = torch.einsum("...gv,gvd->...gd", choice_NGV, self.codebook_GVD.float())
        return Quantized(vectors_NGD.flatten(-2), codes_NG, logits_NGV.softmax(-1))
