"""Make a run's artifact the packaged model: python scripts/ship_default.py RUN_FOLDER

In half precision, to spare the repository half the size; with the sources of its audio named.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from speech_ssl.checkpoints.artifact import load_artifact, load_extra, save_artifact

AUDIO = {
    "Kathleen, Kerstin and Flemish Guy (Rhasspy voice datasets)": "CC0",
    "LJ Speech; Les Fleurs du mal (LibriVox)": "public domain",
    "Berlin Database of Emotional Speech (Emo-DB)": "CC0",
    "Precise Community Data (Mycroft)": "public domain",
    "LibriSpeech, one clip of 251 speakers": "CC-BY-4.0",
    "Asterisk core sounds in en, es, fr, it and ru": "CC-BY-SA-3.0",
    "Picovoice wake word and speech-to-intent benchmarks": "Apache-2.0",
}


def main(run: Path) -> None:
    made = load_artifact(run / "artifact")
    held_out = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    best = next(e for e in held_out if e["kind"] == "valid" and e["step"] == made.config["training"]["step"])
    measured = {
        k: best[k] for k in ("contrastive", "accuracy", "chance", "code_perplexity", "effective_rank")
    }
    save_artifact(
        made.encoder,
        Path(__file__).parents[1] / "speech_ssl" / "assets" / "default",
        name=made.name,
        training={**made.config["training"], "held_out": measured, "audio": AUDIO},
        licence="CC-BY-SA-3.0",
        extra=load_extra(run / "artifact"),
        dtype=torch.float16,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
