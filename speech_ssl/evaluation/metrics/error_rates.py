"""Word and character error rates of transcripts, by jiwer. Needs the `eval` extra.

A rate is the least number of substitutions, deletions and insertions that turn the references into the
hypotheses, divided by the number of words (characters) in the references. Both are summed over the corpus
before the division, so long utterances count for more, and a rate can exceed 1.

Empty texts count like others. For an empty hypothesis, all words of the reference are deletions. For an empty
reference, all words of the hypothesis are insertions: it adds errors but no words. Only a corpus without any
word in its references has no rate, and raises ValueError.

Any run of whitespace separates words and counts as one character; at the ends of a text it is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, cast

from speech_ssl.evaluation.extras import eval_extra
from speech_ssl.text import normalize

Kind: TypeAlias = Literal["equal", "substitute", "delete", "insert"]


@dataclass(frozen=True, slots=True)
class Errors:
    """Counts over a corpus. total: words (characters) of the references, above 0.

    The sum of the errors is unique, their division into the three kinds is not: it comes from one of the
    shortest alignments.
    """

    total: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def count(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        return self.count / self.total


@dataclass(frozen=True, slots=True)
class ErrorRates:
    """Errors in words and in characters, of the texts as written and of both after
    `speech_ssl.text.normalize`."""

    utterances: int
    words: Errors
    characters: Errors
    normalized_words: Errors
    normalized_characters: Errors

    @property
    def wer(self) -> float:
        return self.words.rate

    @property
    def cer(self) -> float:
        return self.characters.rate

    @property
    def normalized_wer(self) -> float:
        return self.normalized_words.rate

    @property
    def normalized_cer(self) -> float:
        return self.normalized_characters.rate


class Stretch(NamedTuple):
    """Successive words of a reference, and the hypothesis' words in their place. Either may be empty."""

    kind: Kind
    reference: str
    hypothesis: str


def error_rates(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRates:
    """Error rates of a corpus: hypothesis i belongs to reference i.

    Raises ValueError for lists of different lengths, and if the references have no word at all, as written or
    once normalised.
    """
    for name, texts in (("references", references), ("hypotheses", hypotheses)):
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name} must be a list of texts, one per utterance")
    if len(references) != len(hypotheses):
        raise ValueError(
            f"{len(references)} references but {len(hypotheses)} hypotheses: give one of each per utterance"
        )
    written = _tidy(references), _tidy(hypotheses)
    normal = [normalize(text) for text in references], [normalize(text) for text in hypotheses]
    if not any(written[0]):
        raise ValueError("the references have no words: error rates are undefined")
    if not any(normal[0]):
        raise ValueError("the references have no words once normalised: error rates are undefined")
    return ErrorRates(len(references), *_errors(*written), *_errors(*normal))


def differences(reference: str, hypothesis: str) -> list[Stretch]:
    """A shortest word alignment of two texts: its stretches in order, including the equal ones."""
    with eval_extra("an alignment"):
        import jiwer

    old, new = reference.split(), hypothesis.split()
    found = jiwer.process_words(" ".join(old), " ".join(new))
    return [
        Stretch(
            cast(Kind, chunk.type),
            " ".join(old[chunk.ref_start_idx : chunk.ref_end_idx]),
            " ".join(new[chunk.hyp_start_idx : chunk.hyp_end_idx]),
        )
        for chunk in found.alignments[0]
    ]


def _tidy(texts: Sequence[str]) -> list[str]:
    return [" ".join(text.split()) for text in texts]


def _errors(references: list[str], hypotheses: list[str]) -> tuple[Errors, Errors]:
    """Errors in words and in characters."""
    with eval_extra("an error rate"):
        import jiwer

    words, characters = (
        Errors(
            total=found.hits + found.substitutions + found.deletions,
            substitutions=found.substitutions,
            deletions=found.deletions,
            insertions=found.insertions,
        )
        for found in (
            jiwer.process_words(references, hypotheses),
            jiwer.process_characters(references, hypotheses),
        )
    )
    return words, characters
