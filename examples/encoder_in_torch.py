"""The encoder as a module of PyTorch: a padded batch in, all layers out, gradients back to the samples.

    python examples/encoder_in_torch.py [FILE FILE...]

Prints how much each layer turns the frames, and what in the first clip the last layer depends on most.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

import speech_ssl
from speech_ssl import audio
from speech_ssl.inference.runtime import named_artifact
from speech_ssl.types import SAMPLE_RATE

PROMPTS = Path(speech_ssl.__file__).parent / "assets" / "prompts" / "audio"


def main(files: list[Path]) -> None:
    encoder = named_artifact("default").encoder.eval()  # or a folder, or OWNER/NAME of the Hugging Face hub
    waves = [torch.from_numpy(audio.decode(path)) for path in files]
    lengths_B = torch.tensor([len(wave) for wave in waves])
    wave_BS = pad_sequence(waves, batch_first=True).requires_grad_()

    frames = encoder(wave_BS, lengths_B)  # the last layer: x_BTD, and how many frames of each row are real
    states = encoder.hidden_states(wave_BS, lengths_B)  # all layers, each (B, T, D)
    for layer, (before_BTD, after_BTD) in enumerate(pairwise(states), start=1):
        cosine_BT = torch.cosine_similarity(before_BTD, after_BTD, dim=-1)
        print(f"layer {layer}: cosine of its frames to those before {cosine_BT[frames.valid_BT].mean():.2f}")

    frames.x_BTD[0].square().sum().backward()
    assert wave_BS.grad is not None
    strongest = int(wave_BS.grad[0].abs().argmax()) / SAMPLE_RATE
    print(f"{files[0].name}: the frames depend most on the sound at {strongest:.2f} s")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]] or [PROMPTS / "hello.flac", PROMPTS / "vm-nomore.flac"])
