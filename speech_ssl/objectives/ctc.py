"""CTC: fine-tune a pre-trained encoder for transcription with few labels.

The loss: Graves et al. 2006. The fine-tuning: Baevski et al. 2020, arXiv 2006.11477, section 4.3 and appendix
B: a frozen front end, only the new head trained at first, time steps and channels hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from speech_ssl.model.encoder import Encoder
from speech_ssl.model.heads.specs import CTCSpec
from speech_ssl.objectives.base import Floor
from speech_ssl.objectives.tuned import FineTuneConfig, Tuned
from speech_ssl.types import Batch, Frames, LossSum, least_frames, valid_mask


@dataclass(frozen=True, kw_only=True, slots=True)
class CTCConfig(FineTuneConfig):
    vocabulary: tuple[str, ...] = ()
    """The blank, then the characters. Recipes leave it empty: it is made from the manifest."""

    @property
    def spec(self) -> CTCSpec:
        return CTCSpec(vocabulary=self.vocabulary)

    def build(self, encoder: Encoder) -> CTC:
        return CTC(encoder, self)


class CTC(Tuned):
    """Encoder and CTC head. A batch's `targets_BU` holds units from 1 on; the padding may hold anything."""

    best_by = "cer"  # word error rates after little training are all near 1, and tell less

    def __init__(self, encoder: Encoder, config: CTCConfig) -> None:
        super().__init__(encoder, config.spec.build(encoder.config, config.dropout), config)
        self.space = config.vocabulary.index(" ") if " " in config.vocabulary else None

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        """The summed negative log-likelihood in nats; count: the number of target units.

        A row with more units than fit into its frames has no alignment and an infinite loss. It is left out,
        and its units are counted as `impossible`. Raises ValueError if the batch has no targets.
        """
        if batch.targets_BU is None or batch.target_lengths_B is None:
            raise ValueError("CTC needs targets: the manifest has no text")
        targets_BU, target_lengths_B = batch.targets_BU, batch.target_lengths_B
        outputs = self.outputs(self.augmented(batch, generator), generator)
        log_probs_BTV = outputs.x_BTD
        total = F.ctc_loss(
            log_probs_BTV.transpose(0, 1),
            targets_BU,
            outputs.lengths_B,
            target_lengths_B,
            blank=0,
            reduction="sum",
            zero_infinity=True,  # also for the gradient: a mask on the loss would leave it NaN
        )
        said_BU = valid_mask(target_lengths_B, targets_BU.shape[1])
        possible_B = least_frames(targets_BU * said_BU) <= outputs.lengths_B
        count = (target_lengths_B * possible_B).sum().float()
        units = target_lengths_B.sum().float()
        with torch.no_grad():
            valid_BT = outputs.valid_BT
            best_BT = log_probs_BTV.argmax(-1)
            spoken = ((best_BT != 0) & valid_BT).sum() / valid_BT.sum().clamp(min=1)
            metrics = {"spoken": spoken * count, "impossible": units - count}
            if not self.training:
                metrics |= self._errors(Frames(best_BT, outputs.lengths_B), batch, possible_B)
        return LossSum(total, count, {k: v.detach() for k, v in metrics.items()})

    def report(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """In evaluation, adds `cer` and `wer`: character and word error rates of the best path over the whole
        set; they can exceed 1."""
        reported = {"spoken": float(means["spoken"]), "impossible": float(means["impossible"])}
        if "unit_errors" in means:
            reported["cer"] = float(means["unit_errors"])
            reported["wer"] = float(means["word_errors"] / means["words"].clamp(min=1e-9))
        return reported

    def floors(self) -> Mapping[str, Floor]:
        return {
            "spoken": Floor(
                0.01,
                "nearly every frame is a blank: a plateau that CTC may never leave. Raise the peak "
                "learning rate or the steps, and check that the texts belong to the audio",
            )
        }

    def _errors(self, best: Frames, batch: Batch, possible_B: Tensor) -> dict[str, Tensor]:
        assert batch.targets_BU is not None and batch.target_lengths_B is not None
        unit_errors = word_errors = words = 0
        rows = zip(batch.targets_BU, batch.target_lengths_B, best.x_BTD, best.lengths_B, strict=True)
        for (target_U, units, path_T, frames), possible in zip(rows, possible_B.tolist(), strict=True):
            if not possible:
                continue
            said = [unit for unit, _ in groupby(path_T[:frames].tolist()) if unit]
            meant = target_U[:units].tolist()
            unit_errors += _distance(meant, said)
            word_errors += _distance(self._words(meant), self._words(said))
            words += len(self._words(meant))
        counts = {"unit_errors": unit_errors, "word_errors": word_errors, "words": words}
        device = best.lengths_B.device
        return {k: torch.tensor(float(v), device=device) for k, v in counts.items()}

    def _words(self, units: Sequence[int]) -> list[tuple[int, ...]]:
        split = groupby(units, key=lambda unit: unit == self.space)
        return [tuple(word) for is_space, word in split if not is_space]


def _distance(reference: Sequence[object], hypothesis: Sequence[object]) -> int:
    """Levenshtein distance."""
    from torchaudio.functional import edit_distance

    return int(edit_distance(reference, hypothesis))
