r"""Pre-train the smoke variant of a recipe on the shipped prompts, and look at its log.

    python examples/pretrain_smoke.py runs/smoke

Takes half a minute on two CPU cores. From a shell the first step is

    python -m recipes.pretrain_wav2vec2 smoke --out runs/smoke \
        --manifest speech_ssl/assets/prompts/manifest.tsv

The model learns nothing of use. In a longer run the loss falls, `code_perplexity` stays far above 1 (else the
codes have collapsed), and the held-out `accuracy` rises above `chance`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import speech_ssl
from recipes import pretrain_wav2vec2

MANIFEST = Path(speech_ssl.__file__).parent / "assets" / "prompts" / "manifest.tsv"
SHOWN = ("loss", "accuracy", "chance", "code_perplexity", "effective_rank")


def main(out: Path) -> None:
    pretrain_wav2vec2.main(["smoke", "--manifest", str(MANIFEST), "--out", str(out), "--device", "cpu"])

    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    print("kind   step  " + "  ".join(f"{name:>15}" for name in SHOWN))
    for entry in entries:
        if entry["kind"] in ("train", "valid"):
            numbers = "  ".join(f"{entry[name]:15.3f}" for name in SHOWN)
            print(f"{entry['kind']}  {entry['step']:4}  {numbers}")

    runtime = speech_ssl.load(out / "artifact")
    print(
        f"{runtime.name}: {runtime.num_layers} layers of width {runtime.width}, ready for `speech-ssl embed`"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
