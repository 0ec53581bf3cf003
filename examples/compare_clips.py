"""How alike clips sound: the cosine between their vectors.

    python examples/compare_clips.py [FILE...]

Without files it compares six of the shipped prompts. Prints a line a pair, the most alike first.
"""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path

import numpy as np

import speech_ssl

PROMPTS = Path(speech_ssl.__file__).parent / "assets" / "prompts" / "audio"
EXAMPLES = ("digits/6", "digits/60", "digits/h-6", "vm-message", "vm-messages", "conf-hasleft")


def main(files: list[Path]) -> None:
    runtime = speech_ssl.load("default")
    vectors_ND = np.stack([features.pooled("mean") for features in runtime.encode(files)])
    vectors_ND -= vectors_ND.mean(axis=0)  # all vectors of a model point nearly the same way
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    cosines_NN = vectors_ND @ vectors_ND.T
    pairs = sorted(combinations(range(len(files)), 2), key=lambda pair: -cosines_NN[pair])
    for one, other in pairs:
        print(f"{cosines_NN[one, other]:+.2f}  {files[one].name}  {files[other].name}")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]] or [PROMPTS / f"{name}.flac" for name in EXAMPLES])
