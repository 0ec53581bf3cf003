"""Models by the names that fairseq2 has for them, fetched by it and read by us; and its model for CTC."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from fairseq2.data.tokenizers.char import load_char_tokenizer
from fairseq2.models.transformer import TransformerNormOrder
from fairseq2.models.wav2vec2.asr.config import Wav2Vec2AsrConfig
from fairseq2.models.wav2vec2.asr.factory import create_wav2vec2_asr_model
from fairseq2.models.wav2vec2.config import Wav2Vec2EncoderConfig
from fairseq2.nn import BatchLayout
from torch import nn

import speech_ssl
from speech_ssl.checkpoints.artifact import load_artifact

GOLDEN = Path(__file__).parents[1] / "checkpoints" / "golden" / "characters.model"
ENCODER = {
    "model_dim": 48,
    "feature_dim": 16,
    "layer_norm_features": False,
    "feature_extractor_layer_descs": [[16, 10, 4], [16, 4, 4], [16, 3, 3], [16, 3, 3]],
    "feature_extractor_bias": True,
    "feature_extractor_layer_norm_convs": True,
    "pos_conv_kernel_size": 8,
    "num_pos_conv_groups": 4,
    "num_encoder_layers": 2,
    "num_encoder_attn_heads": 6,
    "ffn_inner_dim": 32,
}
"""Its heads and strides are none that shapes tell."""


def asr() -> nn.Module:
    torch.manual_seed(1)
    encoder = Wav2Vec2EncoderConfig(**ENCODER, norm_order=TransformerNormOrder.PRE)
    model = create_wav2vec2_asr_model(Wav2Vec2AsrConfig(encoder_config=encoder, target_vocab_size=40))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server on this machine with a checkpoint and a tokenizer; and the folder that it shows."""
    folder = tmp_path_factory.mktemp("served")
    torch.save({"model": asr().state_dict()}, folder / "asr.pt")
    shutil.copy(GOLDEN, folder / "characters.model")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


def cards(folder: Path, address: str) -> Path:
    told = [
        {
            "name": "some_asr",
            "model_family": "wav2vec2_asr",
            "model_arch": "base_10h",
            "model_config": {"encoder_config": {**ENCODER, "norm_order": "PRE"}, "target_vocab_size": 40},
            "checkpoint": f"{address}/asr.pt",
            "tokenizer_ref": "some_tokenizer",
        },
        {
            "name": "some_tokenizer",
            "tokenizer_family": "char_tokenizer",
            "tokenizer": f"{address}/characters.model",
        },
        {"name": "mute_asr", "base": "some_asr", "tokenizer_ref": "librispeech_asr"},
        {"name": "gone_asr", "base": "some_asr", "checkpoint": f"{address}/gone.pt"},
        {"name": "no_file", "base": "some_asr", "checkpoint": f"file://{folder}/gone.pt"},
        {"name": "of_text", "model_family": "llama", "model_arch": "llama3_8b", "checkpoint": f"{address}/x"},
    ]
    folder.mkdir(exist_ok=True)
    (folder / "cards.yaml").write_text("\n---\n".join(json.dumps(card) for card in told))
    return folder


def converted(name: str, out: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "speech_ssl.cli", "convert", name, str(out)]
    environment = {"FAIRSEQ2_USER_ASSET_DIR": str(folder), "FAIRSEQ2_CACHE_DIR": str(folder / "cache")}
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def test_an_asset_by_its_name(tmp_path: Path, served: tuple[str, Path]) -> None:
    """Log-probabilities are those of fairseq2's model, and what is read out is what its tokenizer reads."""
    done = converted("some_asr", tmp_path / "a", cards(tmp_path / "cards", served[0]))
    assert done.returncode == 0, done.stderr
    artifact, theirs = load_artifact(tmp_path / "a"), asr()
    assert (artifact.name, artifact.encoder.config.heads) == ("some_asr", 6)
    frontend = artifact.encoder.config.frontend
    assert frontend.strides == (4, 4, 3, 3) and frontend.normalize_wave
    assert "left_out" not in artifact.config["training"]
    wave = 0.05 * torch.randn(1, 12_000, generator=torch.Generator().manual_seed(2))
    heard = torch.nn.functional.layer_norm(wave, wave.shape)
    with torch.inference_mode():
        logits, _ = theirs(heard, BatchLayout.of(heard))
    runtime = speech_ssl.load(tmp_path / "a")
    ours = runtime.run_windows([wave[0].numpy()], [None], ["ctc"])[0].heads["ctc"]
    torch.testing.assert_close(torch.from_numpy(ours), logits[0].log_softmax(-1), atol=1e-4, rtol=0)
    units = logits[0].argmax(-1)
    units = units[torch.cat([torch.tensor([True]), units[1:] != units[:-1]])]
    decoder = load_char_tokenizer(GOLDEN, None).create_decoder(skip_special_tokens=True)
    said = runtime.transcribe([wave[0].numpy()])[0].text
    assert len(set(said)) > 5 and " ".join(said.split()) == " ".join(decoder(units).replace("⁇", "").split())


def test_without_a_tokenizer_the_encoder_is_had(tmp_path: Path, served: tuple[str, Path]) -> None:
    done = converted("mute_asr", tmp_path / "a", cards(tmp_path / "cards", served[0]))
    assert done.returncode == 0 and "final_proj.weight" in done.stdout + done.stderr
    assert not load_artifact(tmp_path / "a").heads


@pytest.mark.parametrize(
    "name, said",
    [
        ("gone_asr", "gone_asr: this asset of fairseq2 cannot be fetched"),
        ("no_file", "gone.pt"),
        ("of_text", "of_text: of fairseq2's family 'llama'; supported are wav2vec2, wav2vec2_asr"),
        ("unknown", "unknown: no such folder or file, and no model that fairseq2 knows by this name"),
    ],
)
def test_what_cannot_be_had_is_one_line(
    tmp_path: Path, served: tuple[str, Path], name: str, said: str
) -> None:
    done = converted(name, tmp_path / "a", cards(tmp_path / "cards", served[0]))
    assert done.returncode != 0 and said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
