"""What can be read out of a frozen encoder, layer by layer, and out of nothing but a spectrum.

    python -m recipes.probe_layers keyword --manifest M.tsv [--manifest ...] --out DIR [--init ARTIFACT]
    python -m recipes.probe_layers all --manifest keyword=M.tsv --manifest emotion=N.tsv --out DIR

keyword        which label
intent         which intent of a spoken order; where all have one intent, which value of each slot
emotion        which label, one speaker left out at a time
speaker        who of the speakers heard in training
verification   whether two clips are of one speaker, none of whom training has heard
all            several of these at once: say which is for which manifest
smoke          seconds, on the packaged prompts: shows that everything runs; says nothing of use

SUPERB's protocol (speech_ssl/evaluation/probes/linear.py says what differs): the encoder is frozen, all its
hidden states are averaged over time and mixed by learned weights. Beside it stand the best single layer
(chosen on training clips), the same encoder with random weights, log-mel and MFCC means and deviations, and
guessing.
Writes probes.csv, layers.csv, layers.png and probes.json. With the packaged model all of it takes about two
minutes of one core an hour of audio, then 5 to 40 seconds a task.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from speech_ssl.data.manifest import Utterance
from speech_ssl.evaluation.probes import tasks as probe_tasks
from speech_ssl.evaluation.probes.tasks import Problem, Task
from speech_ssl.runs import command


def keyword() -> tuple[Task, ...]:
    return (probe_tasks.keyword(),)


def intent() -> tuple[Task, ...]:
    return (probe_tasks.intent(),)


def emotion() -> tuple[Task, ...]:
    return (probe_tasks.emotion(),)


def speaker() -> tuple[Task, ...]:
    return (probe_tasks.speaker(),)


def verification() -> tuple[Task, ...]:
    return (probe_tasks.verification(),)


def all() -> tuple[Task, ...]:
    return (*keyword(), *intent(), *emotion(), *speaker(), *verification())


def smoke() -> tuple[Task, ...]:
    """Whether a prompt has one word or several, and whether two halves are of one prompt: labels that any
    transcribed speech has. The packaged prompts have one speaker, and the packaged model has heard them."""

    def few(utterances: Sequence[Utterance]) -> list[Utterance]:
        return [u for u in utterances if u.text and u.duration_s > 0.4][:40]

    def halves(utterances: Sequence[Utterance]) -> list[Utterance]:
        return [half for u in few(utterances) for half in _halves(u)]

    def words(clips: Sequence[Utterance]) -> list[Problem]:
        labels = ["one" if len(clip.text.split()) == 1 else "several" for clip in clips]
        return [Problem("words", labels, np.arange(len(clips)) % 4 == 0)]

    def prompts(clips: Sequence[Utterance]) -> list[Problem]:
        names = [clip.speaker for clip in clips]
        tested_N = np.isin(names, sorted(set(names))[::4])
        return [Problem("halves", names, tested_N, verify=True, note="the halves of a prompt as its clips")]

    return (Task("words", few, words), Task("halves", halves, prompts))


def _halves(clip: Utterance) -> Iterable[Utterance]:
    middle = (clip.start or 0.0) + clip.duration_s / 2
    for start, end in (((clip.start or 0.0), middle), (middle, middle + clip.duration_s / 2)):
        yield replace(clip, start=start, end=end, id=f"{clip.id}#{start:g}", speaker=clip.id)


VARIANTS = {f.__name__: f for f in (keyword, intent, emotion, speaker, verification, all, smoke)}
main = command.probing(*VARIANTS.values(), doc=__doc__)

if __name__ == "__main__":
    main()
