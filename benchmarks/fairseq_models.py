"""Checkpoints that fairseq itself made, with what it hears in clips: for `benchmarks.parity --fairseq`.

    PYTHON benchmarks/fairseq_models.py REQUEST.json

Runs in an interpreter of fairseq, which has builds for Python 3.8 at the latest (see `benchmarks.parity`), so
it knows nothing of `speech_ssl`. The request names `clips`, an .npz of waves beside it, and `models`, each by
its kind and options. For each, NAME.pt is made beside the request, as fairseq's trainer saves it (a model of
the kind "saved" is there already), and NAME.npz: for each clip `CLIP.STATE`, all layers of the encoder and
what it gives out, or log-probabilities; where it quantizes, `targets.CLIP` too, what is to be told apart.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from fairseq.checkpoint_utils import load_model_ensemble_and_task, torch_persistent_save
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.examples.data2vec.models.data2vec_audio import Data2VecAudioConfig, Data2VecAudioModel
from fairseq.models.hubert.hubert import HubertConfig, HubertModel
from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Config, Wav2Vec2Model
from fairseq.models.wav2vec.wav2vec2_asr import Wav2Vec2CtcConfig, Wav2VecCtc
from fairseq.tasks.audio_finetuning import AudioFinetuningConfig
from fairseq.tasks.audio_pretraining import AudioPretrainingConfig
from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig
from omegaconf import OmegaConf

LETTERS = "|ETAOIN'"


def main():
    folder = Path(sys.argv[1]).resolve().parent
    request = json.loads(Path(sys.argv[1]).read_text())
    waves = np.load(folder / request["clips"])
    for name, (kind, options) in request["models"].items():
        torch.manual_seed(0)
        path = folder / f"{name}.pt"
        if kind == "saved":
            (model,), cfg, _ = load_model_ensemble_and_task([str(path)])
            model.eval()
        else:
            cfg, model = MAKERS[kind](options, folder)
            randomize(model)
            save(cfg, model, path)
        answers = {}
        for clip in waves.files:
            wave = wave_of(waves[clip], cfg)
            with torch.no_grad():
                found = states(model, wave)
                if getattr(model, "quantizer", None) is not None:
                    answers[f"targets.{clip}"] = targets(model, wave)[0].numpy()
            answers.update({f"{clip}.{i}": state[0].numpy() for i, state in enumerate(found)})
        np.savez(path.with_suffix(".npz"), **answers)


def wav2vec2(options, _):
    task = AudioPretrainingConfig(normalize=options.get("extractor_mode") == "layer_norm")
    model = OmegaConf.structured(Wav2Vec2Config(quantize_targets=True, **options))
    cfg = full("wav2vec2", model, "audio_pretraining", task)
    return cfg, Wav2Vec2Model(cfg.model)


def hubert(options, _):
    task = HubertPretrainingConfig(normalize=options.get("extractor_mode") == "layer_norm", label_rate=50)
    cfg = full("hubert", OmegaConf.structured(HubertConfig(**options)), "hubert_pretraining", task)
    return cfg, HubertModel(cfg.model, cfg.task, [letters()])


def data2vec(options, _):
    task = AudioPretrainingConfig(normalize=True)
    model = OmegaConf.structured(Data2VecAudioConfig(average_top_k_layers=2, **options))
    cfg = full("data2vec_audio", model, "audio_pretraining", task)
    model = Data2VecAudioModel(cfg.model)
    model.set_num_updates(0)  # makes its teacher, which comes along in checkpoints
    return cfg, model


def ctc(options, folder):
    """Tuned, so that the options of its pre-training are within its own."""
    before, _ = wav2vec2(options, folder)
    OmegaConf.set_struct(before, False)
    options = {
        "w2v_path": "/gone/before.pt",
        "w2v_args": before,
        "normalize": before.task.normalize,
        "data": "/gone",
    }
    model = OmegaConf.structured(Wav2Vec2CtcConfig(**options))
    task = AudioFinetuningConfig(normalize=before.task.normalize)
    cfg = full("wav2vec_ctc", model, "audio_finetuning", task)
    letters().save(str(folder / "dict.ltr.txt"))

    class Task:
        target_dictionary = letters()

    return cfg, Wav2VecCtc.build_model(cfg.model, Task())


MAKERS = {"wav2vec2": wav2vec2, "hubert": hubert, "data2vec": data2vec, "ctc": ctc}


def letters():
    found = Dictionary()
    for letter in LETTERS:
        found.add_symbol(letter)
    return found


def full(name, model, task_name, task):
    """All of fairseq's options, with these in it."""
    cfg = convert_namespace_to_omegaconf(argparse.Namespace())
    OmegaConf.set_struct(cfg, False)
    cfg.model, cfg.task = model, OmegaConf.structured(task)
    for part, part_name in ((cfg.model, name), (cfg.task, task_name)):
        OmegaConf.set_struct(part, False)
        part._name = part_name
        OmegaConf.set_struct(part, True)  # what is not there is an error, for which its models have defaults
    return cfg


def randomize(model):
    """Norms and biases too, so that no term hides behind a zero or a one."""
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.add_(torch.rand(buffer.shape))


def save(cfg, model, path):
    """The parts that its trainer writes (`Trainer.state_dict`)."""
    content = {
        "args": None,
        "cfg": OmegaConf.to_container(cfg, resolve=False, enum_to_str=True),
        "model": model.state_dict(),
        "criterion": None,
        "optimizer_history": [{"criterion_name": "Wav2vecCriterion", "optimizer_name": "FP16Optimizer"}],
        "task_state": {},
        "extra_state": {"metrics": [], "previous_training_time": 1.0},
        "last_optimizer_state": None,
    }
    torch_persistent_save(content, str(path))


def wave_of(wave, cfg):
    """As its data sets give it out."""
    wave = torch.from_numpy(wave)[None]
    return torch.nn.functional.layer_norm(wave, wave.shape) if cfg.task.normalize else wave


def states(model, wave):
    if isinstance(model, Wav2VecCtc):
        answer = model(source=wave, padding_mask=None)
        return [model.get_normalized_probs(answer, log_probs=True).transpose(0, 1)]
    layers = range(len(model.encoder.layers) - 1)
    if isinstance(model, HubertModel):
        found = [model.extract_features(wave, output_layer=layer + 1)[0] for layer in layers]
        return [*found, model.extract_features(wave)[0]]
    found = [model.extract_features(wave, padding_mask=None, layer=layer)["x"] for layer in layers]
    return [*found, model.extract_features(wave, padding_mask=None)["x"]]


def targets(model, wave):
    features = model.layer_norm(model.feature_extractor(wave).transpose(1, 2))
    return model.project_q(model.quantizer(features)["x"])


if __name__ == "__main__":
    main()
