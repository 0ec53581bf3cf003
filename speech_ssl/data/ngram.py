"""Word n-gram language models in ARPA form, estimated from the transcripts of a manifest.

    python -m speech_ssl.data.ngram MANIFEST OUT.arpa [--order 3]

Texts are normalised as for fine-tuning. Only training rows are read, so that figures on validation and test
rows stay honest. Interpolated Kneser-Ney smoothing with one discount per order (Chen and Goodman 1999, "An
empirical study of smoothing techniques", section 4.1.6 and eq. 20). The unigrams are interpolated with the
uniform distribution over the vocabulary and `<unk>`, whose share is the probability of an unseen word.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from speech_ssl.data.manifest import read_manifest
from speech_ssl.data.splits import split_utterances
from speech_ssl.text import normalize

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
ORDERS = range(2, 7)  # the orders that KenLM reads
DISCOUNT = 0.5  # for an order without n-grams that occur once, or without any that occur twice

Gram: TypeAlias = tuple[str, ...]
Counts: TypeAlias = dict[Gram, Counter[str]]
"""Context -> word -> count."""


def write_arpa(texts: Iterable[str], path: str | Path, *, order: int = 3) -> None:
    """Estimate a model of whitespace-separated words and write it. Texts without words are ignored.

    Raises ValueError for an order that KenLM does not read, for texts without any word, and for words that
    are markers of the ARPA format.
    """
    if order not in ORDERS:
        raise ValueError(f"order must be {ORDERS[0]} to {ORDERS[-1]}, not {order}")
    counts = _adjusted(_count(texts, order))
    probabilities, backoffs = _estimate(counts)
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        file.write("\\data\\\n")
        file.writelines(f"ngram {n}={len(grams)}\n" for n, grams in enumerate(probabilities, 1))
        for n, grams in enumerate(probabilities, 1):
            file.write(f"\n\\{n}-grams:\n")
            file.writelines(_lines(grams, backoffs))
        file.write("\n\\end\\\n")


def _count(texts: Iterable[str], order: int) -> list[Counts]:
    """Counts of n-grams, indexed by length minus one; `<s>` alone is not counted as a word."""
    counts: list[Counts] = [defaultdict(Counter) for _ in range(order)]
    for text in texts:
        words = text.split()
        if marks := {BEGIN, END, UNKNOWN}.intersection(words):
            raise ValueError(
                f"{min(marks)!r} is a marker of ARPA files, not a word: remove it from {text[:60]!r}"
            )
        said = [BEGIN, *words, END] if words else []
        for end in range(1, len(said)):
            for begin in range(max(end - order + 1, 0), end + 1):
                counts[end - begin][tuple(said[begin:end])][said[end]] += 1
    if not counts[0]:
        raise ValueError("there are no words to estimate a language model from: give texts")
    return counts


def _adjusted(counts: list[Counts]) -> list[Counts]:
    """Below the highest order, an n-gram counts once for each context in which it occurs.

    N-grams at the beginning of a text keep their counts: nothing precedes them.
    """
    adjusted: list[Counts] = []
    for shorter, longer in zip(counts, counts[1:], strict=False):
        distinct: Counts = defaultdict(Counter)
        for context, words in longer.items():
            distinct[context[1:]].update(words.keys())
        distinct.update({context: words for context, words in shorter.items() if context[:1] == (BEGIN,)})
        adjusted.append(distinct)
    return [*adjusted, counts[-1]]


def _estimate(counts: list[Counts]) -> tuple[list[dict[Gram, float]], dict[Gram, float]]:
    """Probabilities of the observed n-grams, by order, and the back-off weight of each context.

    With the weight of () and the uniform distribution below it, the probabilities in each context sum to 1.
    """
    vocabulary = [*counts[0][()], UNKNOWN]
    lower: dict[Gram, float] = {(): 1 / len(vocabulary)}  # the next lower order: at first the empty n-gram
    probabilities: list[dict[Gram, float]] = []
    backoffs: dict[Gram, float] = {}
    for n, contexts in enumerate(counts):
        discount = _discount(contexts)
        grams: dict[Gram, float] = {}
        for context, words in contexts.items():
            total = words.total()
            backoffs[context] = discount * len(words) / total
            for word, count in words.items():
                gram = (*context, word)
                grams[gram] = (count - discount) / total + backoffs[context] * lower[gram[1:] if n else ()]
        if n == 0:
            grams[(UNKNOWN,)] = backoffs[()] * lower[()]
            grams[(BEGIN,)] = 0.0
        probabilities.append(grams)
        lower = grams
    return probabilities, backoffs


def _discount(contexts: Counts) -> float:
    """Ney, Essen and Kneser (1994): n1 / (n1 + 2 n2); n1 n-grams occur once, n2 occur twice."""
    occur = Counter(count for words in contexts.values() for count in words.values())
    return occur[1] / (occur[1] + 2 * occur[2]) if occur[1] and occur[2] else DISCOUNT


def _lines(grams: dict[Gram, float], backoffs: dict[Gram, float]) -> Iterator[str]:
    for gram in sorted(grams):
        weight = f"\t{math.log10(backoffs[gram]):.7f}" if gram in backoffs else ""
        yield f"{math.log10(grams[gram]) if grams[gram] else -99:.7f}\t{' '.join(gram)}{weight}\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m speech_ssl.data.ngram",
        description="Estimate a word n-gram from a manifest's training rows.",
    )
    parser.add_argument("manifest")
    parser.add_argument("out", metavar="OUT.arpa")
    parser.add_argument("--order", type=int, default=3)
    options = parser.parse_args(arguments)
    try:
        train, _ = split_utterances(read_manifest(options.manifest))
        texts = [normalize(utterance.text) for utterance in train]
        write_arpa(texts, options.out, order=options.order)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: order {options.order}, {sum(map(bool, texts))} texts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
