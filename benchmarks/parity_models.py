"""Models of other libraries in their published sizes, heard by them and by us: for `benchmarks.parity`."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.checkpoints import fairseq
from speech_ssl.checkpoints import torchaudio as reader
from speech_ssl.checkpoints.fairseq2 import reading as fairseq2
from speech_ssl.checkpoints.torch_files.pickles import read_pickle
from speech_ssl.checkpoints.transformers import folder as huggingface
from speech_ssl.model.encoder import Encoder
from speech_ssl.types import SAMPLE_RATE

CLIPS_S = (0.09, 0.73, 2.0)
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "conv_bias": True,
}
CONFORMER = {**LARGE, "hidden_act": "swish"}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec 2.0 BASE": ("Wav2Vec2", {}),
    "wav2vec 2.0 LARGE, XLS-R 300M": ("Wav2Vec2", LARGE),
    "MMS 300M with adapters": ("Wav2Vec2", {**LARGE, "adapter_attn_dim": 16}),
    "HuBERT BASE": ("Hubert", {}),
    "HuBERT LARGE": ("Hubert", LARGE),
    "UniSpeech BASE": ("UniSpeech", {}),
    "UniSpeech-SAT BASE": ("UniSpeechSat", {}),
    "data2vec audio BASE": ("Data2VecAudio", {}),
    "WavLM BASE": ("WavLM", {}),
    "WavLM LARGE": ("WavLM", LARGE),
    "wav2vec2-conformer LARGE, rotary": (
        "Wav2Vec2Conformer",
        {**CONFORMER, "position_embeddings_type": "rotary"},
    ),
    "wav2vec2-conformer LARGE, relative": (
        "Wav2Vec2Conformer",
        {**CONFORMER, "position_embeddings_type": "relative"},
    ),
    "w2v-BERT 2.0": ("Wav2Vec2Bert", {"layerdrop": 0.0}),
}
TORCHAUDIO = {
    "wav2vec 2.0 BASE": "wav2vec2_base",
    "wav2vec 2.0 LARGE (LV-60k)": "wav2vec2_large_lv60k",
    "HuBERT BASE": "hubert_base",
    "HuBERT LARGE": "hubert_large",
    "WavLM BASE": "wavlm_base",
    "WavLM LARGE": "wavlm_large",
}

FAIRSEQ2 = {
    "wav2vec 2.0 BASE": "base",
    "wav2vec 2.0 LARGE": "large",
    "wav2vec 2.0 LARGE (LV-60k)": "large_lv60k",
}
WIDE = {
    "encoder_layers": 24,
    "encoder_embed_dim": 1024,
    "encoder_ffn_embed_dim": 4096,
    "encoder_attention_heads": 16,
    "final_dim": 768,
    "extractor_mode": "layer_norm",
    "layer_norm_first": True,
}
LV60K = {**WIDE, "conv_bias": True}
CONFORMER_LARGE = {**LV60K, "layer_type": "conformer", "attn_type": "espnet"}
FAIRSEQ: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec 2.0 BASE": ("wav2vec2", {"final_dim": 256}),
    "wav2vec 2.0 LARGE (LV-60k), XLS-R 300M": ("wav2vec2", LV60K),
    "wav2vec 2.0 BASE, tuned for CTC": ("ctc", {"final_dim": 256}),
    "wav2vec 2.0 LARGE (LV-60k), tuned for CTC": ("ctc", LV60K),
    "HuBERT BASE": ("hubert", {"final_dim": 256}),
    "HuBERT LARGE": ("hubert", WIDE),
    "data2vec audio BASE": (
        "data2vec",
        {"extractor_mode": "layer_norm", "conv_pos": 95, "pos_conv_depth": 5},
    ),
    "wav2vec 2.0 LARGE, Conformer, relative": ("wav2vec2", {**CONFORMER_LARGE, "pos_enc_type": "rel_pos"}),
    "wav2vec 2.0 LARGE, Conformer, rotary": ("wav2vec2", {**CONFORMER_LARGE, "pos_enc_type": "rope"}),
}
MAKER = Path(__file__).with_name("fairseq_models.py")
NARROW = {
    "encoder_layers": 2,
    "encoder_embed_dim": 64,
    "encoder_ffn_embed_dim": 64,
    "encoder_attention_heads": 4,
    "conv_feature_layers": "[(32, 10, 5)] + [(32, 3, 2)] * 4 + [(32,2,2)] + [(32,2,2)]",
}


@dataclass(frozen=True)
class Row:
    family: str
    source: str
    parameters: int
    difference: float
    scale: float
    """Standard deviation of the values compared."""

    def __str__(self) -> str:
        size = f"{self.parameters / 1e6:.0f} M"
        return f"| {self.family} | {self.source} | {size} | {self.difference:.1e} | {self.scale:.2g} |"


Theirs = Callable[[Tensor], Sequence[Tensor]]
"""A wave (1, S), as ours takes it, to the states that are compared, the last one last."""


def clips() -> list[Tensor]:
    rng = np.random.default_rng(0)
    counts = [int(seconds * SAMPLE_RATE) + 7 for seconds in CLIPS_S]
    return [torch.from_numpy(rng.normal(0.01, 0.1, count).astype(np.float32)) for count in counts]


def randomized(model: Any) -> Any:
    """Norms, biases and the statistics of batch norms too, so that no term hides behind a zero or a one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.add_(torch.rand(buffer.shape, generator=generator))
    return model.eval()


def compared(
    family: str, source: str, encoder: Encoder, theirs: Theirs, head: nn.Module | None = None
) -> Row:
    """Ours in one padded batch, theirs alone."""
    waves = clips()
    lengths_B = torch.tensor([*map(len, waves)])
    padded_BS = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    worst, scale = 0.0, 0.0
    with torch.inference_mode():
        states = encoder.hidden_states(padded_BS, lengths_B)
        if head is not None:
            states = [head(states)]
        for row, wave in enumerate(waves):
            answers = list(theirs(wave[None]))
            frames = encoder.frame_count(wave.shape[0])
            for ours, their in zip(states[-len(answers) :], answers, strict=True):
                worst = max(worst, float((ours[row, :frames] - their[0, :frames]).abs().max()))
                scale = max(scale, float(their[0, :frames].std()))
    return Row(family, source, sum(p.numel() for p in encoder.parameters()), worst, scale)


def of_transformers(family: str, tiny: bool, _: object = None) -> Row:
    import transformers

    name, options = FAMILIES[family]
    if tiny:
        options = {**options, "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 64}
        options |= {"num_attention_heads": 4, "conv_dim": [32] * 7}
    model = randomized(
        getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**options))
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
        encoder = huggingface.read(Path(folder)).encoder
    extractor = transformers.SeamlessM4TFeatureExtractor() if name == "Wav2Vec2Bert" else None

    def theirs(wave_1S: Tensor) -> Sequence[Tensor]:
        if extractor is not None:
            features = extractor(wave_1S[0].numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
            answer = model(**features, output_hidden_states=True)
        else:
            answer = model(wave_1S, output_hidden_states=True)
        return [*answer.hidden_states[:-1], answer.last_hidden_state]

    return compared(family, "transformers", encoder, theirs)


def of_torchaudio(family: str, tiny: bool, _: object = None) -> Row:
    import torchaudio

    torch.manual_seed(0)
    model = getattr(torchaudio.models, TORCHAUDIO[family])()
    if tiny:
        model.encoder.transformer.layers = model.encoder.transformer.layers[:2]
    encoder = reader.read(randomized(model).state_dict(), "torchaudio", "model").encoder

    def theirs(wave_1S: Tensor) -> Sequence[Tensor]:
        if encoder.config.frontend.normalize_wave:  # as its pipelines' models do it
            wave_1S = F.layer_norm(wave_1S, wave_1S.shape)
        # Of models with a norm at the end it gives the layers without it, so that only the end is compared.
        if encoder.config.block.pre_norm:
            return [model(wave_1S)[0]]
        return model.extract_features(wave_1S)[0]  # type: ignore[no-any-return]

    return compared(family, "torchaudio", encoder, theirs)


def of_fairseq2(family: str, tiny: bool, _: object = None) -> Row:
    from fairseq2.models.wav2vec2 import get_wav2vec2_model_hub
    from fairseq2.models.wav2vec2.factory import create_wav2vec2_model
    from fairseq2.nn import BatchLayout

    from speech_ssl.training.fairseq2.state import started

    started(no_progress=True)
    torch.manual_seed(0)
    config = get_wav2vec2_model_hub().get_arch_config(FAIRSEQ2[family])
    if tiny:
        config.encoder_config.num_encoder_layers = 2
    model = randomized(create_wav2vec2_model(config))
    encoder = fairseq2.read(model.state_dict(), "fairseq2", "model").encoder
    layers: list[Tensor] = []
    for layer in model.encoder.layers:
        layer.register_forward_hook(lambda _, __, out: layers.append(out))

    def theirs(wave_1S: Tensor) -> Sequence[Tensor]:
        if encoder.config.frontend.normalize_wave:  # as its data sets do it
            wave_1S = F.layer_norm(wave_1S, wave_1S.shape)
        layers.clear()
        last = model.encoder(*model.encoder_frontend(wave_1S, BatchLayout.of(wave_1S)))
        return [*layers[:-1], last]

    return compared(family, "fairseq2", encoder, theirs)


def of_fairseq(family: str, tiny: bool, python: Path | None) -> Row:
    """python: an interpreter that can import fairseq. Raises CalledProcessError if it cannot."""
    kind, options = FAIRSEQ[family]
    waves = {f"clip{number}": wave.numpy() for number, wave in enumerate(clips())}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "clips.npz", allow_pickle=False, **waves)
        models = {"model": (kind, {**options, **NARROW} if tiny else options)}
        request = Path(folder) / "request.json"
        request.write_text(json.dumps({"clips": "clips.npz", "models": models}))
        subprocess.run([str(python), str(MAKER), str(request)], check=True, stderr=subprocess.DEVNULL)
        path = request.with_name("model.pt")
        converted = fairseq.read(read_pickle(path), str(path), "model")
        answers = dict(np.load(path.with_suffix(".npz")))
    lengths = {len(wave): clip for clip, wave in waves.items()}

    def theirs(wave_1S: Tensor) -> Sequence[Tensor]:
        clip = lengths[wave_1S.shape[1]]
        count = sum(name.startswith(f"{clip}.") for name in answers)
        return [torch.from_numpy(answers[f"{clip}.{number}"])[None] for number in range(count)]

    head = converted.heads["ctc"].module if kind == "ctc" else None
    return compared(family, "fairseq", converted.encoder, theirs, head)


Peer = tuple[Mapping[str, Any], Callable[[str, bool, Path | None], Row]]
SOURCES: dict[str, Peer] = {
    "transformers": (FAMILIES, of_transformers),
    "torchaudio": (TORCHAUDIO, of_torchaudio),
    "fairseq2": (FAIRSEQ2, of_fairseq2),
    "fairseq": (FAIRSEQ, of_fairseq),
}
