"""Writes crates/iota-compute/tests/data/optimizers.safetensors: what PyTorch's optimizers make of the same gradients.

The tensors are those of a small model that is cut into two stages; weights and gradients are noise. For each stage the
script does what a stage's step does: it takes the mean of the gradients, clips it to the stage's share of the norm,
and lets torch.optim step, with weight decay for matrices only, all in f64, so that the file is a reference for any f32
implementation. It holds

    metadata "model"            the configuration, as iota-model's JSON
    metadata "learning_rates"   one for each step, as JSON
    metadata "backwards"        backward passes that each gradient is the sum of
    weight.NAME                 before the first step
    gradient.STEP.NAME          the sum of the gradients at a step, from 0
    RULE.NAME                   after the last step of the rule: see RULES

torch.optim.Muon orthogonalises in bf16. `muon_*` are made with its one function for that replaced by the same one in
f64; `torch_muon` is made with torch's own, in f32, and holds the matrices inside blocks only.

Run from the repository root, with `pip install torch safetensors`:

    python benches/peers/golden_optimizers.py
"""

import json
import math

import torch
from safetensors.torch import save_file
from torch.optim import _muon

MODEL = {
    "vocabulary": 10,
    "width": 12,
    "blocks": 2,
    "heads": 2,
    "key_value_heads": 1,
    "feed_forward": 20,
    "context": 8,
    "rope": {"base": 10000.0, "scaling": None},
    "norm_epsilon": 1e-5,
    "boundary": {"iota": {"channels": 5}},
}
STAGES = 2
LEARNING_RATES = [0.05, 0.05, 0.03, 0.01]
# The third gradient is not clipped, all others are.
GRADIENT_SIZES = [1.0, 3.0, 0.01, 0.5]
BACKWARDS = 2
WEIGHT_DECAY = 0.1
CLIP_NORM = 1.0
OUT = "crates/iota-compute/tests/data/optimizers.safetensors"


def shapes(stage):
    """Names and shapes of a stage's tensors. Each stage holds one block."""
    d, ff = MODEL["width"], MODEL["feed_forward"]
    b = MODEL["boundary"]["iota"]["channels"]
    kv = d // MODEL["heads"] * MODEL["key_value_heads"]
    block = {"attention_norm": (d,), "query": (d, d), "key": (kv, d), "value": (kv, d), "attention_output": (d, d)}
    block |= {"feed_forward_norm": (d,), "gate": (ff, d), "up": (ff, d), "down": (d, ff)}
    block |= {"encoder": (b, d)} if stage == 0 else {"decoder": (d, b)}
    named = {f"blocks.{stage}.{name}": shape for name, shape in block.items()}
    table = (MODEL["vocabulary"], d)
    return named | ({"embedding": table} if stage == 0 else {"final_norm": (d,), "projection": table})


def is_hidden_matrix(name, tensor):
    return name.startswith("blocks.") and tensor.ndim == 2


def decaying_apart(parameters):
    """Parameter groups: matrices decay, vectors do not."""
    return [
        {"params": [p for p in parameters if p.ndim == 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]


def adamw(weights, stage):
    return [(torch.optim.AdamW(decaying_apart(weights.values()), betas=(0.9, 0.95), eps=1e-8), 1.0)]


def nadam(beta1, momentum_decay):
    def make(weights, stage):
        groups = decaying_apart(weights.values())
        betas = (beta1(stage), 0.95)
        return [
            (
                torch.optim.NAdam(
                    groups, betas=betas, eps=1e-8, momentum_decay=momentum_decay, decoupled_weight_decay=True
                ),
                1.0,
            )
        ]

    return make


def muon(scale, nesterov, rest_rate):
    def make(weights, stage):
        hidden = [p for name, p in weights.items() if is_hidden_matrix(name, p)]
        rest = [p for name, p in weights.items() if not is_hidden_matrix(name, p)]
        matrices = torch.optim.Muon(
            hidden, weight_decay=WEIGHT_DECAY, momentum=0.95, nesterov=nesterov, adjust_lr_fn=scale
        )
        return [(matrices, 1.0), (torch.optim.AdamW(decaying_apart(rest), betas=(0.9, 0.95), eps=1e-8), rest_rate)]

    return make


# Each makes a stage's optimizers, with what their learning rates are multiplied by.
RULES = {
    "adamw": adamw,
    "nadam_by_stage": nadam(lambda i: 0.9 + (STAGES - (i + 1)) / STAGES * 0.09, momentum_decay=1.0),
    "nadam_fixed": nadam(lambda i: 0.8, momentum_decay=4e-3),
    "muon_match_rms": muon("match_rms_adamw", nesterov=True, rest_rate=1.0),
    "muon_original": muon("original", nesterov=False, rest_rate=0.5),
}


def newton_schulz_in_f64(gradient, coefficients, steps, epsilon):
    a, b, c = coefficients
    x = gradient.double() / gradient.double().norm().clamp(min=epsilon)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.to(gradient.dtype)


def train(make, weights, gradients, dtype):
    """All weights after all steps."""
    out = {}
    elements = sum(tensor.numel() for tensor in weights.values())
    for stage in range(STAGES):
        held = {name: weights[name].to(dtype, copy=True).requires_grad_() for name in shapes(stage)}
        optimizers = make(held, stage)
        share = sum(tensor.numel() for tensor in held.values()) / elements
        for rate, gradient in zip(LEARNING_RATES, gradients):
            for name, tensor in held.items():
                tensor.grad = gradient[name].to(dtype) / BACKWARDS
            torch.nn.utils.clip_grad_norm_(held.values(), CLIP_NORM * math.sqrt(share))
            for optimizer, factor in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate * factor
                optimizer.step()
        out |= {name: tensor.detach().float() for name, tensor in held.items()}
    return out


def main():
    generator = torch.Generator().manual_seed(0)
    named = {name: shape for stage in range(STAGES) for name, shape in shapes(stage).items()}
    normal = lambda shape, size: size * torch.randn(shape, generator=generator)
    weights = {name: normal(shape, 0.3) for name, shape in named.items()}
    gradients = [{name: normal(shape, size) for name, shape in named.items()} for size in GRADIENT_SIZES]
    tensors = {f"weight.{name}": tensor for name, tensor in weights.items()}
    for step, gradient in enumerate(gradients):
        tensors |= {f"gradient.{step}.{name}": tensor for name, tensor in gradient.items()}

    after = train(RULES["muon_match_rms"], weights, gradients, torch.float32)
    tensors |= {f"torch_muon.{name}": t for name, t in after.items() if is_hidden_matrix(name, t)}
    _muon._zeropower_via_newtonschulz = newton_schulz_in_f64
    for rule, make in RULES.items():
        after = train(make, weights, gradients, torch.float64)
        tensors |= {f"{rule}.{name}": tensor for name, tensor in after.items()}

    metadata = {
        "model": json.dumps(MODEL),
        "learning_rates": json.dumps(LEARNING_RATES),
        "backwards": json.dumps(BACKWARDS),
        "torch": torch.__version__,
    }
    save_file(tensors, OUT, metadata)
    print(f"{len(RULES) + 1} rules, {len(named)} tensors, torch {torch.__version__}: {OUT}")


if __name__ == "__main__":
    main()
