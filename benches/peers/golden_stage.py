"""Writes crates/iota-compute/tests/data/pytorch_*.safetensors: small models, their losses and gradients, by PyTorch.

The models are written from the definitions (Llama 3 blocks; one has IOTA's bottleneck boundaries, one ResBM's) with
torch's own operations, in f64, so that the files are references for any f32 implementation. Each holds

    metadata "model"        the configuration, as iota-model's JSON
    metadata "boundaries"   the blocks behind a boundary, as JSON
    weight.NAME, gradient.NAME   f32, for every tensor of the model
    tokens, targets         i64, [sequences, context]
    loss                    f32, mean nats per token

Run from the repository root, with `pip install torch safetensors`:

    python benches/peers/golden_stage.py
"""

import json
import math

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

MODEL = {
    "vocabulary": 40,
    "width": 24,
    "blocks": 3,
    "heads": 4,
    "key_value_heads": 2,
    "feed_forward": 40,
    "context": 20,
    "rope": {
        "base": 500.0,
        "scaling": {
            "factor": 8.0,
            "low_frequency_factor": 1.0,
            "high_frequency_factor": 4.0,
            "original_context": 64,
        },
    },
    "norm_epsilon": 1e-5,
}
CHANNELS = 8
BOUNDARIES = [1, 2]
SEQUENCES = 3
OUT = "crates/iota-compute/tests/data/pytorch_{kind}.safetensors"


def weights(model, kind):
    """All tensors by name; larger than initial weights, so that nothing is nearly linear."""
    generator = torch.Generator().manual_seed(2026)

    def normal(*shape):
        # Rounded to f32, which the file holds.
        return (torch.randn(*shape, generator=generator) * 0.15).double()

    d, b, ff = model["width"], CHANNELS, model["feed_forward"]
    hidden = max(4 * b, 64)
    kv = d // model["heads"] * model["key_value_heads"]
    w = {"embedding": normal(model["vocabulary"], d)}
    for i in range(model["blocks"]):
        p = f"blocks.{i}."
        if kind == "iota" and i in BOUNDARIES:
            w[p + "decoder"] = normal(d, b)
        if kind == "iota" and i + 1 in BOUNDARIES:
            w[p + "encoder"] = normal(b, d)
        if kind == "resbm" and i in BOUNDARIES:
            w[p + "decoder_hidden"] = normal(hidden, b)
            w[p + "decoder_output"] = normal(d, hidden)
        if kind == "resbm" and i + 1 in BOUNDARIES:
            w[p + "encoder_hidden"] = normal(hidden, d)
            w[p + "encoder_output"] = normal(b, hidden)
        for name, shape in [
            ("query", (d, d)),
            ("key", (kv, d)),
            ("value", (kv, d)),
            ("attention_output", (d, d)),
            ("gate", (ff, d)),
            ("up", (ff, d)),
            ("down", (d, ff)),
        ]:
            w[p + name] = normal(*shape)
        w[p + "attention_norm"] = (1 + normal(d)).float().double()
        w[p + "feed_forward_norm"] = (1 + normal(d)).float().double()
    w["final_norm"] = (1 + normal(d)).float().double()
    w["projection"] = normal(model["vocabulary"], d)
    return {name: tensor.requires_grad_() for name, tensor in w.items()}


def rope_frequencies(model):
    """Llama 3.1's scaled frequencies, case by case as its authors wrote it down."""
    pairs = model["width"] // model["heads"] // 2
    s = model["rope"]["scaling"]
    out = []
    for i in range(pairs):
        frequency = model["rope"]["base"] ** (-i / pairs)
        wavelength = 2 * math.pi / frequency
        if wavelength < s["original_context"] / s["high_frequency_factor"]:
            out.append(frequency)
        elif wavelength > s["original_context"] / s["low_frequency_factor"]:
            out.append(frequency / s["factor"])
        else:
            smooth = (s["original_context"] / wavelength - s["low_frequency_factor"]) / (
                s["high_frequency_factor"] - s["low_frequency_factor"]
            )
            out.append((1 - smooth) * frequency / s["factor"] + smooth * frequency)
    return torch.tensor(out, dtype=torch.float64)


def rotate(x, frequencies):
    """x: [sequences, heads, tokens, head_width]; pairs are a channel of the first half with one of the second."""
    angles = torch.outer(torch.arange(x.shape[2], dtype=torch.float64), frequencies)
    turned = torch.view_as_complex(torch.stack(x.chunk(2, -1), -1)) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], -1)


def forward(model, kind, w, tokens):
    d, b, h = model["width"], CHANNELS, model["heads"]
    identity = torch.eye(b, d, dtype=torch.float64)
    frequencies = rope_frequencies(model)
    split = lambda x, heads: x.unflatten(-1, (heads, d // h)).transpose(1, 2)
    norm = lambda x, scale: F.rms_norm(x, (d,), scale, model["norm_epsilon"])
    x = F.embedding(tokens, w["embedding"])
    for i in range(model["blocks"]):
        t = lambda name: w[f"blocks.{i}.{name}"]
        received, iota = x, kind == "iota" and i in BOUNDARIES
        if iota:
            x = F.relu(F.linear(received, t("decoder")))
        if kind == "resbm" and i in BOUNDARIES:
            x = F.linear(F.silu(F.linear(x, t("decoder_hidden"))), t("decoder_output")) + x @ identity
        n = norm(x, t("attention_norm"))
        q = rotate(split(F.linear(n, t("query")), h), frequencies)
        k = rotate(split(F.linear(n, t("key")), model["key_value_heads"]), frequencies)
        v = split(F.linear(n, t("value")), model["key_value_heads"])
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        a = F.linear(a.transpose(1, 2).flatten(2), t("attention_output"))
        x = torch.cat([a[..., :b] + received, a[..., b:]], -1) if iota else x + a
        n = norm(x, t("feed_forward_norm"))
        f = F.linear(F.silu(F.linear(n, t("gate"))) * F.linear(n, t("up")), t("down"))
        if kind == "iota" and i + 1 in BOUNDARIES:
            x = F.linear(F.silu(f), t("encoder")) + x[..., :b]
        else:
            x = x + f
        if kind == "resbm" and i + 1 in BOUNDARIES:
            x = F.linear(F.silu(F.linear(x, t("encoder_hidden"))), t("encoder_output")) + x @ identity.T
    return F.linear(norm(x, w["final_norm"]), w["projection"])


def write(kind):
    w = weights(MODEL, kind)
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(0, MODEL["vocabulary"], (SEQUENCES, MODEL["context"] + 1), generator=generator)
    tokens, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    loss = F.cross_entropy(forward(MODEL, kind, w, tokens).flatten(0, 1), targets.flatten())
    loss.backward()
    tensors = {f"weight.{name}": tensor.detach().float() for name, tensor in w.items()}
    tensors |= {f"gradient.{name}": tensor.grad.float() for name, tensor in w.items()}
    tensors |= {"tokens": tokens, "targets": targets, "loss": loss.detach().float().reshape(1)}
    model = MODEL | {"boundary": {kind: {"channels": CHANNELS}}}
    metadata = {"model": json.dumps(model), "boundaries": json.dumps(BOUNDARIES), "torch": torch.__version__}
    out = OUT.format(kind=kind)
    save_file(tensors, out, metadata)
    print(f"loss {loss.item():.6f}, {len(w)} tensors, torch {torch.__version__}: {out}")


if __name__ == "__main__":
    for kind in ["iota", "resbm"]:
        write(kind)
