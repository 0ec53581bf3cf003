"""Our numbers beside those of the library that made a checkpoint, for each family in its published size.

    python -m benchmarks.parity [--write docs/checkpoints.md] [--only NAME...] [--tiny]

A model of each family with random weights is saved by its own library, opened by `speech_ssl`, and both hear
three clips: one of a few frames, one of an odd length, and one of 2 s. Ours hears them as one padded batch,
theirs one by one, as no padding can change them. Printed is the largest difference of any value in any hidden
state (torchaudio: of any layer), and how large such values are. `--write` puts the table between the two
marks in a document. Ends with status 1 if a difference is more than 1e-4.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speech_ssl.checkpoints import huggingface
from speech_ssl.checkpoints import torchaudio as reader
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.frontend import normalize_waves
from speech_ssl.types import SAMPLE_RATE

TOLERANCE = 1e-4
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


HEAD = "| family | source | parameters | largest difference | standard deviation |\n|---|---|---|---|---|"
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


def compared(family: str, source: str, encoder: Encoder, theirs: Theirs) -> Row:
    """Ours in one padded batch, theirs alone."""
    waves = clips()
    lengths_B = torch.tensor([*map(len, waves)])
    padded_BS = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    worst, scale = 0.0, 0.0
    with torch.inference_mode():
        states = encoder.hidden_states(padded_BS, lengths_B)
        for row, wave in enumerate(waves):
            answers = list(theirs(wave[None]))
            frames = encoder.frame_count(wave.shape[0])
            for ours, their in zip(states[-len(answers) :], answers, strict=True):
                worst = max(worst, float((ours[row, :frames] - their[0, :frames]).abs().max()))
                scale = max(scale, float(their[0, :frames].std()))
    return Row(family, source, sum(p.numel() for p in encoder.parameters()), worst, scale)


def of_transformers(family: str, tiny: bool) -> Row:
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


def of_torchaudio(family: str, tiny: bool) -> Row:
    import torchaudio

    torch.manual_seed(0)
    model = getattr(torchaudio.models, TORCHAUDIO[family])()
    if tiny:
        model.encoder.transformer.layers = model.encoder.transformer.layers[:2]
    encoder = reader.read(randomized(model).state_dict(), "torchaudio", "model").encoder

    def theirs(wave_1S: Tensor) -> Sequence[Tensor]:
        if encoder.config.normalize_wave:  # there it is left to whoever calls
            wave_1S = normalize_waves(wave_1S, torch.tensor([wave_1S.shape[1]]))
        # Of models with a norm at the end it gives the layers without it, so that only the end is compared.
        if encoder.config.pre_norm:
            return [model(wave_1S)[0]]
        return model.extract_features(wave_1S)[0]  # type: ignore[no-any-return]

    return compared(family, "torchaudio", encoder, theirs)


def rows(only: Sequence[str] | None, tiny: bool) -> Iterator[Row]:
    for families, of in ((FAMILIES, of_transformers), (TORCHAUDIO, of_torchaudio)):
        for family in families:
            if only is None or family in only:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of their libraries, about their own code
                    yield of(family, tiny)


def replace_table(document: Path, table: str) -> None:
    """Between the marks. Raises ValueError for a document without them."""
    text = document.read_text(encoding="utf-8")
    begin, end = "<!-- benchmarks.parity -->", "<!-- end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{document}: has no {begin} and {end} to put the table between")
    document.write_text(pattern.sub(lambda _: f"{begin}\n{table}\n{end}", text), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Our numbers beside those of the library that made a model.")
    parser.add_argument("--write", type=Path, help="a document with the two marks")
    parser.add_argument("--only", nargs="+", choices=sorted({*FAMILIES, *TORCHAUDIO}))
    parser.add_argument("--tiny", action="store_true", help="two narrow layers each, for tests")
    options = parser.parse_args(arguments)
    print(HEAD)
    found = []
    for row in rows(options.only, options.tiny):
        print(row, flush=True)
        found.append(row)
    if options.write is not None:
        replace_table(options.write, "\n".join([HEAD, *map(str, found)]))
    return 0 if max(row.difference for row in found) <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
