"""What `--set` takes: names that may change, values of their kind."""

from __future__ import annotations

from typing import Any

import pytest

from speech_ssl.training.changes import CHANGEABLE, FIXED, changed, differing, parse_changes
from speech_ssl.training.config import TrainConfig

CONFIG = TrainConfig(steps=10, precision="fp32")


def test_every_number_either_may_change_or_may_not() -> None:
    assert CHANGEABLE.keys() | FIXED.keys() == set(TrainConfig.__dataclass_fields__)
    assert not CHANGEABLE.keys() & FIXED.keys()
    assert {"peak_lr", "clip_norm", "warmup", "patience", "log_every", "precision"} <= CHANGEABLE.keys()
    assert {"seed", "steps", "batches_per_step"} <= FIXED.keys()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("peak_lr=3e-4", 3e-4),
        ("clip_norm=1", 1.0),
        ("clip_norm=none", None),
        ("patience=None", None),
        ("patience=7", 7),
        ("save_every=20", 20),
        ("decay=exponential", "exponential"),
        ("precision=auto", "auto"),
        ("on_collapse=stop", "stop"),
        ("decay_vectors=true", True),
        ("decay_vectors=False", False),
    ],
)
def test_values_are_of_their_kind(text: str, value: Any) -> None:
    ((name, found),) = parse_changes([text]).items()
    assert text.startswith(f"{name}=") and found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("peak_lr", "--set takes NAME=VALUE, not 'peak_lr'"),
        ("seed=1", "--set seed: a run must keep it: all randomness in the run depends on it; start a new"),
        ("steps=9", "--set steps: a run must keep it"),
        ("batches_per_step=9", "--set batches_per_step: a run must keep it"),
        ("lr=1", "--set lr: no such number; choose from precision, peak_lr, "),
        ("__class__=1", "no such number"),
        ("peak_lr=fast", "--set peak_lr takes a number, not 'fast'"),
        ("peak_lr=none", "--set peak_lr takes a number, not 'none'"),
        ("peak_lr=", "--set peak_lr takes a number, not ''"),
        ("log_every=2.5", "--set log_every takes a whole number, not '2.5'"),
        ("precision=int8", "--set precision takes one of auto, bf16, fp16, fp32, not 'int8'"),
        ("decay_vectors=1", "--set decay_vectors takes true or false, not '1'"),
    ],
)
def test_what_it_does_not_take(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_changes(["clip_norm=1", text])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_that_make_no_run_are_refused() -> None:
    with pytest.raises(ValueError, match="warmup and hold are shares"):
        changed(CONFIG, {"warmup": 0.7, "hold": 0.5}, "fp32")
    with pytest.raises(ValueError, match="log_every must be at least 1"):
        changed(CONFIG, {"log_every": 0}, "fp32")


def test_auto_is_what_it_stands_for_and_differences_are_told() -> None:
    after = changed(CONFIG, {"precision": "auto", "clip_norm": 2.0}, "bf16")
    assert differing(CONFIG, after, 4) == [
        {"step": 4, "name": "precision", "was": "fp32", "now": "bf16"},
        {"step": 4, "name": "clip_norm", "was": None, "now": 2.0},
    ]
    assert differing(after, changed(after, {"clip_norm": 2.0}, "fp16"), 5) == []
