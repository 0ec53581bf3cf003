"""Select transcribed prompts from the Asterisk core sounds and convert them: see scripts/prompts."""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

RATE = 16_000
WANTED = {(0.5, 1.0): 72, (1.0, 1.5): 42, (1.5, 2.5): 24, (2.5, 4.0): 8, (4.0, 12.0): 4}  # seconds: clips
DEV_SHARE = 0.15
SPOKEN = re.compile(r"[A-Z]?[a-z' ,.;?!-]+(?:[.;?!] +[A-Z][a-z' ,.;?!-]+)*")
"""Sentences as they are said: no digits, no abbreviations, no notes in brackets."""
SPELLING = {"fourtieth": "fortieth", "Un-indentified": "Unidentified", "witheld": "withheld"}


def clean(text: str) -> str:
    """Without the dots that mark a continuation, doubled spaces and misspellings."""
    words = " ".join(SPELLING.get(word, word) for word in text.strip(" .").split())
    return words + ("." if text.rstrip().endswith(".") else "")


def key(text: str) -> str:
    """Texts with the same key sound the same."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def read_texts(path: Path) -> dict[str, str]:
    """Prompt name -> text; a text that occurs twice is kept once, so that dev is never heard in train."""
    texts: dict[str, str] = {}
    seen = set()
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        name, _, text = line.partition(": ")
        text = clean(text)
        if SPOKEN.fullmatch(text) and key(text) not in seen:
            seen.add(key(text))
            texts[name] = text
    return texts


def decode(path: Path) -> NDArray[np.int16]:
    command = ["ffmpeg", "-v", "error", "-f", "g722", "-i", str(path), "-f", "s16le", "-"]
    return np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, "<i2")


def order(name: str) -> str:
    """A fixed shuffle: the choice must not follow the alphabet, nor change between runs."""
    return hashlib.sha256(name.encode()).hexdigest()


def select(sounds: Path, texts: dict[str, str]) -> dict[str, NDArray[np.int16]]:
    room = dict(WANTED)
    chosen = {}
    for name in sorted(texts, key=order):
        source = sounds / f"{name}.g722"
        seconds = 2 * source.stat().st_size / RATE if source.exists() else 0.0  # G.722: two samples a byte
        for low, high in room:
            if low <= seconds < high and room[low, high]:
                room[low, high] -= 1
                chosen[name] = decode(source)
    return chosen


def main(sounds: Path, text_list: Path, out: Path) -> None:
    texts = read_texts(text_list)
    waves = select(sounds, texts)
    dev = set(list(waves)[: round(DEV_SHARE * len(waves))])
    shutil.rmtree(out / "audio", ignore_errors=True)
    rows = ["path\tduration_s\ttext\tspeaker\tsplit\tlang"]
    for name, wave in sorted(waves.items()):
        path = out / "audio" / f"{name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave, RATE, subtype="PCM_16", compression_level=1.0)
        split = "dev" if name in dev else "train"
        rows.append(f"audio/{name}.flac\t{len(wave) / RATE:.3f}\t{texts[name]}\tAllison Smith\t{split}\ten")
    (out / "manifest.tsv").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
