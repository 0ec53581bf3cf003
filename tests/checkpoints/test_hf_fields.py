"""Every field of transformers' configs: with another value the numbers are theirs, or it is refused by name.

Fields are drawn at random, all at once. A field that a new version adds fails the last test until somebody
has decided what it means here.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import speech_ssl
from speech_ssl.checkpoints.artifact import ArtifactError
from speech_ssl.checkpoints.transformers.names import ACTIVATIONS
from speech_ssl.model.heads.specs import CTCSpec
from tests.checkpoints.transformers_models import change_json, made, noise, saved

transformers = pytest.importorskip("transformers")

CONVOLUTIONS = [
    {"conv_kernel": [10, 3, 2], "conv_stride": [5, 2, 2]},
    {"conv_kernel": [7, 4, 3], "conv_stride": [3, 4, 1]},
]
TYPE = "position_embeddings_type"
HEARD: dict[str, list[Any]] = {
    "hidden_size": [16, 24],
    "num_hidden_layers": [1, 2, 3],
    "num_attention_heads": [2, 4],
    "intermediate_size": [8, 20],
    "hidden_act": list(ACTIVATIONS),
    "feat_extract_activation": list(ACTIVATIONS),
    "layer_norm_eps": [1e-5, 1e-3, 0.05],
    "conv_bias": [False, True],
    "conv_dim": [[8, 12, 16], [12, 12, 12]],
    "feat_extract_norm": ["group", "layer"],
    "do_stable_layer_norm": [False, True],
    "num_conv_pos_embeddings": [1, 4, 7],
    "num_conv_pos_embedding_groups": [1, 2, 4],
    "adapter_attn_dim": [None, 6],
    "conv_pos_batch_norm": [False, True],
    "feat_proj_layer_norm": [False, True],
    "num_buckets": [9, 32],
    "max_bucket_distance": [9, 100],
    "conv_pos_kernel_size": [3, 4, 19],
    "conv_depthwise_kernel_size": [3, 7],
    TYPE: ["rotary", "relative", None, "relative_key"],
    "rotary_embedding_base": [50, 10_000],
    "left_max_position_embeddings": [0, 3, 64],
    "right_max_position_embeddings": [0, 2, 8],
    "feature_projection_input_dim": [20, 40],
    "add_adapter": [False, True],
    "num_adapter_layers": [1, 2],
    "output_hidden_size": [8, 16],
    "adapter_act": ["relu", "gelu"],
    "use_intermediate_ffn_before_adapter": [False, True],
    "classifier_proj_size": [6, 12],
    "use_weighted_layer_sum": [False, True],
    "problem_type": [None, "single_label_classification", "multi_label_classification"],
    "num_codevectors_per_group": [4, 6],
    "num_codevector_groups": [1, 2],
    "codevector_dim": [8, 12],
    "proj_codevector_dim": [8, 10],
}
"""What changes numbers: with choices."""
UNHEARD: dict[str, list[Any]] = {
    **dict.fromkeys(("activation_dropout", "attention_dropout", "feat_proj_dropout"), [0.0, 0.3]),
    **dict.fromkeys(("final_dropout", "hidden_dropout", "layerdrop", "conformer_conv_dropout"), [0.0, 0.3]),
    **dict.fromkeys(("mask_feature_prob", "feat_quantizer_dropout", "mask_time_prob"), [0.0, 0.3]),
    **dict.fromkeys(("mask_feature_length", "mask_time_length", "mask_time_min_masks"), [2, 3]),
    **dict.fromkeys(("mask_feature_min_masks", "num_negatives", "num_ctc_classes", "num_clusters"), [2, 3]),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "chunk_size_feed_forward"), [0, 3]),
    **dict.fromkeys(("contrastive_logits_temperature", "diversity_loss_weight", "replace_prob"), [0.1, 0.4]),
    "ctc_loss_reduction": ["sum", "mean"],
    "ctc_zero_infinity": [False, True],
    "apply_spec_augment": [False, True],
    "initializer_range": [0.02, 0.1],
    "max_source_positions": [50, 5000],
    "output_hidden_states": [False, True],
}
"""What training alone, or nothing, sees: drawn too."""
OTHERS = {"conv_kernel", "conv_stride", "num_feat_extract_layers"}  # drawn together
OTHERS |= {"vocab_size", "pad_token_id", "id2label", "label2id", "model_type", "architectures"}  # of heads
OTHERS |= {"adapter_kernel_size", "adapter_stride"}  # read: others are refused, test_hf_adapters
OTHERS |= {"tdnn_dilation", "tdnn_dim", "tdnn_kernel", "xvector_output_dim"}  # of heads that are left out
OTHERS |= {"_name_or_path", "transformers_version", "dtype", "return_dict", "output_attentions"}
OTHERS |= {"is_encoder_decoder"}
FAMILIES = {
    "Wav2Vec2": ["ForCTC", "ForSequenceClassification", "ForAudioFrameClassification", "ForPreTraining"],
    "Hubert": ["ForCTC", "ForSequenceClassification"],
    "WavLM": ["ForCTC", "ForSequenceClassification", "ForAudioFrameClassification"],
    "UniSpeech": ["ForCTC", "ForSequenceClassification"],
    "UniSpeechSat": ["ForCTC", "ForSequenceClassification", "ForAudioFrameClassification"],
    "Data2VecAudio": ["ForCTC", "ForSequenceClassification", "ForAudioFrameClassification"],
    "Wav2Vec2Conformer": ["ForCTC", "ForSequenceClassification", "ForPreTraining"],
    "Wav2Vec2Bert": ["ForCTC", "ForSequenceClassification", "ForAudioFrameClassification"],
}
DRAWS = 4


def fields_of(family: str) -> set[str]:
    return set(json.loads(getattr(transformers, f"{family}Config")().to_json_string(use_diff=False)))


def drawn(family: str, head: str, seed: int) -> dict[str, Any]:
    """Values for all fields of a family that fit each other."""
    rng, known = random.Random(seed), fields_of(family)
    options = {name: rng.choice(values) for name, values in {**HEARD, **UNHEARD}.items() if name in known}
    if "conv_dim" in known:
        options |= rng.choice(CONVOLUTIONS)
        options["num_feat_extract_layers"] = 3
    if family == "Wav2Vec2Conformer":
        options[TYPE] = rng.choice(["rotary", "relative", None])
    if family == "WavLM":
        options["max_bucket_distance"] = max(options["max_bucket_distance"], options["num_buckets"])
    if not options.get("add_adapter") or head != "ForCTC":
        options |= {
            name: False for name in ("add_adapter", "use_intermediate_ffn_before_adapter") if name in known
        }
    if options.get("do_stable_layer_norm") or family == "Wav2Vec2Conformer":
        options["use_weighted_layer_sum"] = False  # whose last state transformers 5 takes without the norm
    return options if head == "ForCTC" else {**options, "num_labels": 3}


def their_answer(model: Any, wave: NDArray[np.float32]) -> Any:
    """Without the adapter: base models are asked for their encoder's last state."""
    values: dict[str, Any] = {"input_values": torch.from_numpy(wave)[None]}
    if model.config.model_type == "wav2vec2-bert":
        bins = model.config.feature_projection_input_dim // 2
        extractor = transformers.SeamlessM4TFeatureExtractor(feature_size=bins, num_mel_bins=bins)
        values = dict(extractor(wave, sampling_rate=16_000, return_tensors="pt"))
    with torch.inference_mode():
        return model(**values, output_hidden_states=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_numbers_whatever_fields_say(family: str, tmp_path: Path) -> None:
    wave = noise(0.26)  # an even number of 10 ms steps: their adapters hear the padding of an odd one
    for seed in range(DRAWS):
        head = FAMILIES[family][seed % len(FAMILIES[family])]
        options = drawn(family, head, seed)
        model = made(family, head, **options)
        bins = model.config.feature_projection_input_dim // 2 if family == "Wav2Vec2Bert" else 80
        preprocessor = {"do_normalize": False, "num_mel_bins": bins}
        runtime = speech_ssl.load(saved(model, tmp_path / str(seed), preprocessor=preprocessor))
        told, answer = f"{head} {options}", their_answer(model, wave)
        encoder = model.base_model
        if options.get("add_adapter"):
            encoder.adapter = encoder.intermediate_ffn = None
        theirs = their_answer(encoder, wave).last_hidden_state[0].numpy()
        ours = runtime.encode([wave])[0].frames
        np.testing.assert_allclose(ours, theirs[: len(ours)], atol=2e-4, err_msg=told)
        for name, spec in runtime.heads.items():
            outputs = runtime.run_windows([wave], [None], [name])[0].heads[name]
            logits = answer.logits[0]
            if isinstance(spec, CTCSpec):
                outputs = outputs[:: spec.stride]
                logits = logits.log_softmax(-1)[: len(outputs), [6, 0, 1, 2, 3, 4, 5, 7, 8]]
            elif logits.ndim == 1:
                outputs = outputs.mean(axis=0)
                several = options["problem_type"] == "multi_label_classification"
                assert spec.exclusive is not several
            np.testing.assert_allclose(outputs, logits[: len(outputs)].numpy(), atol=2e-4, err_msg=told)
        assert runtime.heads or head == "ForPreTraining"


@pytest.mark.parametrize(
    "family, changes, named",
    [
        ("Wav2Vec2", {"hidden_act": "quick_gelu"}, "'hidden_act'"),
        ("Wav2Vec2", {"feat_extract_activation": "tanh"}, "'feat_extract_activation'"),
        ("WavLM", {"feat_extract_norm": "batch"}, "'batch'"),
        ("Wav2Vec2Conformer", {TYPE: "relative_key"}, f"'{TYPE}'"),
        ("Wav2Vec2Bert", {TYPE: "absolute"}, f"'{TYPE}'"),
        ("Hubert", {"model_type": []}, "'model_type'"),
        ("Wav2Vec2", {"num_codevector_groups": "2"}, "'num_codevector_groups'"),
        ("Wav2Vec2", {"quantization_config": {"load_in_8bit": True}}, "'quantization_config'"),
    ],
)
def test_what_is_not_here_is_refused_by_name(
    family: str, changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    folder = saved(made(family, "Model"), tmp_path / "model")
    change_json(folder / "config.json", **changes)
    with pytest.raises(ArtifactError) as refused:
        speech_ssl.load(folder)
    assert named in str(refused.value) and "\n" not in str(refused.value)


WAVES = {"feature_size": 2, "padding_value": 1.0, "return_attention_mask": True, "padding_side": "left"}


@pytest.mark.parametrize("family, options", [("Wav2Vec2", WAVES), ("Wav2Vec2Bert", {"padding_value": 1.0})])
def test_what_extractors_do_to_padding_is_not_heard(
    family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """A clip has none of its own, but for an odd 10 ms step of w2v-BERT, which is not valid there."""
    model = made(family, "Model")
    folder = saved(model, tmp_path / "model", preprocessor={"do_normalize": True, **options})
    kind = "SeamlessM4T" if family == "Wav2Vec2Bert" else "Wav2Vec2"
    extractor = getattr(transformers, f"{kind}FeatureExtractor").from_pretrained(folder)
    for samples in (8000, 8160):
        wave = noise(0.6)[:samples]
        prepared = extractor(wave, sampling_rate=16_000, return_tensors="pt")
        with torch.inference_mode():
            theirs = model(**prepared).last_hidden_state[0]
        ours = speech_ssl.load(folder).encode([wave])[0].frames
        np.testing.assert_allclose(ours, theirs[: len(ours)].numpy(), atol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_field_is_passed_over(family: str) -> None:
    assert not fields_of(family) - HEARD.keys() - UNHEARD.keys() - OTHERS
