"""Learning rate, optimizer, and gradients as a mean over all targets."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from speech_ssl.training.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """At step 0, 1, ...: linear warm-up to the peak, constant, then decay."""
    warmup = math.ceil(config.warmup * config.steps)
    if step < warmup:
        return config.peak_lr * (step + 1) / warmup
    level = warmup + round(config.hold * config.steps)
    if step < level:
        return config.peak_lr
    left = (config.steps - step) / max(config.steps - level, 1)
    if config.decay == "exponential":
        return config.peak_lr * math.exp(math.log(config.final_lr_scale) * (1 - left))
    return config.peak_lr * (config.final_lr_scale + (1 - config.final_lr_scale) * left)


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, config: TrainConfig) -> float:
    """Set the learning rate for this step and return it."""
    rate = learning_rate(step, config)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def build_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over all trainable parameters. Biases, norms and other vectors get no weight decay unless
    `decay_vectors` is set."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    vectors = config.weight_decay if config.decay_vectors else 0.0
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": vectors},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)
    numbers = [{name: group[name] for name in ("weight_decay", "eps")} for group in optimizer.param_groups]

    def keep_numbers(_: torch.optim.Optimizer) -> None:
        """Restore the config's numbers: a loaded state has those from before the resume."""
        for group, mine in zip(optimizer.param_groups, numbers, strict=True):
            group.update(mine)

    optimizer.register_load_state_dict_post_hook(keep_numbers)
    return optimizer


@torch.no_grad()
def scale_gradients(parameters: Iterable[nn.Parameter], factor: Tensor) -> None:
    """Multiply all gradients by a scalar tensor, without waiting for the device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    torch._foreach_mul_(gradients, factor)


def clip_gradients(parameters: Iterable[nn.Parameter], most: float | None) -> Tensor:
    """Clip the global norm to `most` (None: only measure it). Returns the norm before clipping."""
    return torch.nn.utils.clip_grad_norm_(list(parameters), math.inf if most is None else most)


def take_step(optimizer: torch.optim.AdamW, skip: Tensor) -> None:
    """Take a step, then free the gradients. skip: a bool on the device; if true, nothing changes, not even
    the optimizer's moments and counts. Does not wait for its value."""
    optimizer.found_inf = skip.float()  # type: ignore[attr-defined]  # as torch.amp.GradScaler does
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
