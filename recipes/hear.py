"""HEAR's protocol: what shallow heads make of a frozen model's scene embeddings, fold by fold.

    python -m recipes.hear VARIANT --manifest M.tsv --out DIR [--init ARTIFACT]

crema_d  CREMA-D, emotions of speech, by HEAR's five folds: column `split` has fold00 to fold04, `label` the
         emotion. The audio is not shipped; docs/labels.md says how to get it.
folds    any manifest with labels: by the folds in `split`, or else one speaker left out at a time.
smoke    as folds, of a few clips: shows that everything runs; says nothing of use.

ARTIFACT may name a layer, as default:layer=3; without one all layers are side by side. Beside the model stand
log-mel means and deviations, and the most frequent label. heads.py in speech_ssl/evaluation/hear says what
differs from heareval: a grid of 2 points for its 16, values standardised, clips at their own length.

Writes hear.json and hear.csv.
"""

from __future__ import annotations

from speech_ssl.evaluation.hear.heads import Point, Schedule
from speech_ssl.runs import HearPlan, command


def crema_d() -> HearPlan:
    return HearPlan("crema_d", folds=5)


def folds() -> HearPlan:
    return HearPlan("folds")


def smoke() -> HearPlan:
    """A few clips of each fold, and a narrow head."""
    return HearPlan("smoke", clips=12, grid=(Point(1e-3, width=16),), schedule=Schedule(epochs=6))


main = command.hearing(crema_d, folds, smoke, doc=__doc__)

if __name__ == "__main__":
    main()
