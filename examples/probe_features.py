"""A linear probe of extracted features: does a clip's vector tell whether one word is said, or more?

    speech-ssl extract speech_ssl/assets/prompts/manifest.tsv vectors
    python examples/probe_features.py vectors

Needs the extra `eval` (scikit-learn). Any folder of `speech-ssl extract --pool mean` will do whose manifest
has a column `text`; for your own task, make another label of the columns.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from speech_ssl.extraction.parquet import read_rows


def main(folder: Path) -> None:
    table = read_rows(folder, columns=["text", "embedding"])
    vectors_ND = np.stack(table["embedding"].to_numpy())
    is_one_word = np.array([len(text.split()) == 1 for text in table["text"].to_pylist()])

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1_000))
    accuracies = cross_val_score(probe, vectors_ND, is_one_word, cv=5)
    guessing = max(is_one_word.mean(), 1 - is_one_word.mean())
    print(f"{len(vectors_ND)} clips, held out in five parts: accuracy {accuracies.mean():.2f}")
    print(f"always guessing the same: {guessing:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
