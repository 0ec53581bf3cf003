"""What can be asked of a model is resolved in one place, from its facts alone."""

from __future__ import annotations

import pytest

from speech_ssl.inference.answers import Choice
from speech_ssl.inference.card import ChoiceError, ModelCard, PassRequest
from speech_ssl.inference.chunking import Chunker
from tests.narrow import HEADS

CHUNKER = Chunker.of_seconds(320, 400, window_s=4.0, context_s=0.5)
CARD = ModelCard("narrow", "", 16, 3, 20.0, CHUNKER, HEADS)
BARE = ModelCard("bare", "", 16, 3, 20.0, CHUNKER, {}, {"ctc": "its head has no vocabulary"})


def test_what_is_not_said_is_all_that_the_model_can() -> None:
    assert CARD.tasks == ("embedding", "transcription", "classification") and BARE.tasks == ("embedding",)
    wanted = CARD.choose()
    assert wanted == PassRequest(3, "mean", "ctc", "sounds") and wanted.heads == ("ctc", "sounds")
    assert BARE.choose() == PassRequest(3) and BARE.choose().heads == ()


def test_only_what_is_asked_for_is_wanted() -> None:
    choice = Choice(top_k=1)
    wanted = CARD.choose(["classification"], layer=99, sounds_head="moods", choice=choice)
    assert wanted == PassRequest(None, "mean", None, "moods", choice)
    assert CARD.choose(["embedding"], layer=-4, pooling="none") == PassRequest(0, "none")
    assert CARD.choose(["embedding"], pooling="none").holds_frames and not wanted.holds_frames


@pytest.mark.parametrize(
    ("card", "options", "param", "code", "message"),
    [
        (CARD, {"layer": 4}, "layer", "invalid_value", "layer 4 is not there: narrow has 0 to 3"),
        (CARD, {"speech_head": "sounds"}, "head", "unsupported_task", "no head 'sounds' to transcribe"),
        (CARD, {"sounds_head": "x"}, "head", "unsupported_task", "to classify: it has sounds, moods"),
        (BARE, {"tasks": ["transcription"]}, "model", "unsupported_task", "(its head has no vocabulary)"),
        (BARE, {"tasks": ["classification"]}, "model", "unsupported_task", "cannot classify"),
    ],
)
def test_what_is_not_there_is_one_error(card, options, param, code, message) -> None:
    with pytest.raises(ChoiceError) as caught:
        card.choose(**options)
    assert (caught.value.param, caught.value.code) == (param, code) and message in str(caught.value)


def test_unknown_tasks_are_refused() -> None:
    for tasks in ([], ["translation"]):
        with pytest.raises(ValueError, match="choose from embedding, transcription, classification"):
            CARD.choose(tasks)  # type: ignore[arg-type]


def test_labels_are_those_of_heads_that_classify() -> None:
    assert CARD.labels("moods") == ("calm", "tense") and CARD.labels("ctc") is None
