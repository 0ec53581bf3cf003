"""Whole runs, from manifests to artifacts and figures: what recipes start, for any program.

from recipes.pretrain_wav2vec2 import smoke
from speech_ssl import runs
artifact = runs.pretrain(smoke(), ["my-audio.tsv"], "runs/smoke", tell=print)

`tell` is called with each event (see `events`); `Console` makes of them what recipes print.
"""

from speech_ssl.runs.comparison import ComparisonPlan, compare
from speech_ssl.runs.console import Console
from speech_ssl.runs.efficiency import StudyPlan, study
from speech_ssl.runs.events import Listener, RunEvent
from speech_ssl.runs.finetuning import finetune
from speech_ssl.runs.hearing import HearPlan, hear
from speech_ssl.runs.pretraining import pretrain
from speech_ssl.runs.probing import probe
from speech_ssl.runs.tuning import FineTuning
from speech_ssl.training.run import Run

__all__ = [
    "ComparisonPlan",
    "Console",
    "FineTuning",
    "HearPlan",
    "Listener",
    "Run",
    "RunEvent",
    "StudyPlan",
    "compare",
    "finetune",
    "hear",
    "pretrain",
    "probe",
    "study",
]
