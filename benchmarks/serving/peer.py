"""The usual way: FastAPI around a model of transformers, one request at a time.

    python -m benchmarks.serving.peer [MODEL]

Of the same size as an artifact, with random weights: that makes no difference to the time. It decodes with
soundfile, prepares with the feature extractor, takes the mean over time, and answers a list of numbers.
"""

from __future__ import annotations

import io
import socket
import sys
import threading
from typing import Any

import soundfile
import soxr
import torch
import uvicorn
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from speech_ssl.checkpoints.transformers.transformer import write_config
from speech_ssl.inference.runtime import named_artifact
from speech_ssl.model.config import Convolutions, EncoderConfig
from speech_ssl.types import SAMPLE_RATE


def peer_config(config: EncoderConfig) -> Any:
    """The same model, in transformers' words."""
    return Wav2Vec2Config.from_dict({**write_config(config, "wav2vec2"), "layerdrop": 0.0})


class Peer:
    def __init__(self, config: EncoderConfig) -> None:
        assert isinstance(config.frontend, Convolutions)
        torch.manual_seed(0)
        self.model = Wav2Vec2Model(peer_config(config)).eval()  # type: ignore[no-untyped-call]
        self.extractor = Wav2Vec2FeatureExtractor(  # type: ignore[no-untyped-call]
            feature_size=1,
            sampling_rate=SAMPLE_RATE,
            padding_value=0.0,
            do_normalize=config.frontend.normalize_wave,
            return_attention_mask=config.frontend.norm == "layer",
        )
        self._lock = threading.Lock()

    def embed(self, data: bytes) -> list[float]:
        with self._lock, torch.inference_mode():
            wave, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
            mono = wave.mean(axis=1)
            if rate != SAMPLE_RATE:
                mono = soxr.resample(mono, rate, SAMPLE_RATE)
            inputs = self.extractor(mono, sampling_rate=SAMPLE_RATE, return_tensors="pt")
            vector: list[float] = self.model(**inputs).last_hidden_state.mean(dim=1)[0].tolist()
        return vector


def create_app(config: EncoderConfig) -> FastAPI:
    app, peer = FastAPI(), Peer(config)

    @app.get("/health/ready")
    def ready() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> dict[str, Any]:
        data = await request.body()
        vector = await run_in_threadpool(peer.embed, data)
        return {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": vector}]}

    return app


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "default"
    app = create_app(named_artifact(model).encoder.config)
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        port = listener.getsockname()[1]
        print(f"listening on http://127.0.0.1:{port}", file=sys.stderr, flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listener])


if __name__ == "__main__":
    main()
