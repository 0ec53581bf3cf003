"""A reader of ARPA files that knows nothing of ours, nor of KenLM: back-off by the definition of the form."""

from __future__ import annotations

import math
from pathlib import Path


class Arpa:
    """Probabilities and back-off weights, natural logarithms, by n-gram."""

    def __init__(self, path: Path) -> None:
        self.probability: dict[tuple[str, ...], float] = {}
        self.backoff: dict[tuple[str, ...], float] = {}
        self.announced: dict[int, int] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            fields = line.split("\t")
            if line.startswith("ngram "):
                order, count = line.removeprefix("ngram ").split("=")
                self.announced[int(order)] = int(count)
            elif len(fields) > 1:
                gram = tuple(fields[1].split(" "))
                self.probability[gram] = float(fields[0]) * math.log(10)
                self.backoff[gram] = float(fields[2]) * math.log(10) if len(fields) > 2 else 0.0
        self.order = max(self.announced)
        self.words = [word for (word, *rest) in self.probability if not rest]

    def log_prob(self, word: str, context: tuple[str, ...]) -> float:
        word = word if (word,) in self.probability else "<unk>"
        context = tuple(w if (w,) in self.probability else "<unk>" for w in context)[1 - self.order :]
        gram = (*context, word)
        if gram in self.probability:
            return self.probability[gram]
        return self.backoff.get(context, 0.0) + self.log_prob(word, context[1:])

    def steps(self, words: list[str]) -> list[float]:
        """Of each word after those before it, and of the end."""
        said = ["<s>", *words, "</s>"]
        return [self.log_prob(word, tuple(said[:i])) for i, word in enumerate(said) if i]
