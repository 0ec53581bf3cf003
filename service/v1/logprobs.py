"""How sure the model is of what it wrote, in the form of OpenAI's log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

from service.v1.schemas_audio import Logprob
from speech_ssl.inference.ctc.word_times import Word

LEAST_SCORE = 1e-9


def of_word(word: Word) -> float:
    """The mean of its units' log-probabilities, as `score` is their geometric mean."""
    return math.log(max(word.score, LEAST_SCORE))


def tokens(words: Sequence[Word], *, begun: bool = False) -> list[Logprob]:
    """One a word, with the space before it: joined, they are the text. begun: words come before these."""
    texts = [f" {word.word}" if index or begun else word.word for index, word in enumerate(words)]
    return [
        Logprob(token=text, bytes=list(text.encode()), logprob=of_word(word))
        for text, word in zip(texts, words, strict=True)
    ]
