"""Ask a running service with the client: what it serves, and the vectors of many files.

    scripts/serve                                  # in another terminal
    python examples/ask_service.py FILE...

The address is that of SPEECH_SSL_URL, or http://localhost:8000. Needs the extra `client`, and no PyTorch.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from speech_ssl.client import Client


def main(files: list[Path]) -> None:
    with Client() as client:
        for model in client.models():
            heads = [head.name for head in model.heads] or "no heads"
            print(f"{model.id}: {model.layers} layers, vectors of {model.width} numbers, {heads}")
        for done in client.embed_many(files):
            if done.error:  # it says what is wrong with this file; the others go on
                print(f"{done.audio}: {done.error}")
            else:
                print(f"{done.audio}: vector of length {np.linalg.norm(done.answer.vector):.2f}")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
