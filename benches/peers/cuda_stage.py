"""Steps of body stages on a card by iota-cuda, by PyTorch, and by torch.compile, beside each other: tokens per second and MFU.

Runs `cuda_check` first (unless --report names what it has saved), then takes the same stages, batches and optimizer through
PyTorch, eager and compiled: f32 master weights, bf16 autocast, fused AdamW, `scaled_dot_product_attention`. Activations come
from and go to the host, as they do for a miner. The stage begins with the decoder of a bottleneck and ends with its encoder;
how residuals meet them is left out on PyTorch's side, which takes no time that could be seen.

On a machine with a card and PyTorch, from the repository root:

    cargo build --release -p iota-cuda --features cuda --example cuda_check
    python benches/peers/cuda_stage.py [--program FILE | --report FILE] [--budget SECONDS] [--out FILE]
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

WARM_UP, STEPS = 3, 5
LEARNING_RATE = 1e-5


class Block(torch.nn.Module):
    def __init__(self, stage):
        super().__init__()
        width, self.heads, self.shared = stage["width"], stage["heads"], stage["key_value_heads"]
        self.head = width // self.heads
        linear = lambda inputs, outputs: torch.nn.Linear(inputs, outputs, bias=False)
        self.attention_norm, self.feed_forward_norm = torch.nn.RMSNorm(width, eps=1e-5), torch.nn.RMSNorm(width, eps=1e-5)
        self.packed = linear(width, (self.heads + 2 * self.shared) * self.head)
        self.attention_output = linear(width, width)
        self.gate_up = linear(width, 2 * stage["feed_forward"])
        self.down = linear(stage["feed_forward"], width)

    def rotate(self, x, cosines, sines):
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cosines - second * sines, first * sines + second * cosines], dim=-1).to(x.dtype)

    def forward(self, x, cosines, sines):
        rows, tokens, width = x.shape
        packed = self.packed(self.attention_norm(x)).view(rows, tokens, -1, self.head).transpose(1, 2)
        q, k, v = packed.split([self.heads, self.shared, self.shared], dim=1)
        q, k = self.rotate(q, cosines, sines), self.rotate(k, cosines, sines)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.attention_output(attended.transpose(1, 2).reshape(rows, tokens, width))
        gate, up = self.gate_up(self.feed_forward_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Body(torch.nn.Module):
    def __init__(self, stage):
        super().__init__()
        self.decoder = torch.nn.Linear(stage["boundary_width"], stage["width"], bias=False)
        self.blocks = torch.nn.ModuleList(Block(stage) for _ in range(stage["blocks"]))
        self.encoder = torch.nn.Linear(stage["width"], stage["boundary_width"], bias=False)
        half = stage["width"] // stage["heads"] // 2
        frequencies = 5e5 ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.outer(torch.arange(stage["tokens"], dtype=torch.float64), frequencies)
        self.register_buffer("cosines", angles.cos().float())
        self.register_buffer("sines", angles.sin().float())
        self.recompute = stage["recompute"] != "Nothing"

    def forward(self, boundary):
        x = F.relu(self.decoder(boundary))
        for block in self.blocks:
            if self.recompute:
                x = torch.utils.checkpoint.checkpoint(block, x, self.cosines, self.sines, use_reentrant=False)
            else:
                x = block(x, self.cosines, self.sines)
        return self.encoder(F.silu(x))


def seconds_per_step(stage, sequences, compiled):
    torch.manual_seed(1)
    with torch.device("cuda"):
        body = Body(stage)
    optimizer = torch.optim.AdamW(body.parameters(), lr=LEARNING_RATE, fused=True)
    run = torch.compile(body) if compiled else body
    shape = (sequences, stage["tokens"], stage["boundary_width"])
    boundary, gradient = torch.randn(shape).pin_memory(), (1e-3 * torch.randn(shape)).pin_memory()
    times = []
    for step in range(WARM_UP + STEPS):
        start = time.perf_counter()
        x = boundary.cuda(non_blocking=True).requires_grad_()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out = run(x)
        out.float().cpu()
        out.backward(gradient.cuda(non_blocking=True).to(out.dtype))
        x.grad.cpu()
        torch.nn.utils.clip_grad_norm_(body.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        torch.cuda.synchronize()
        if step >= WARM_UP:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def largest_batch(stage, compiled):
    """Seconds per step, and the batch: that of iota-cuda, or the largest half of it, and so on, that fits."""
    sequences = stage["sequences"]
    while sequences:
        try:
            return seconds_per_step(stage, sequences, compiled), sequences
        except torch.cuda.OutOfMemoryError:
            sequences //= 2
        finally:
            torch._dynamo.reset()
            torch.cuda.empty_cache()
    return None, 0


def library_path():
    """With the folders of the libraries that PyTorch came with."""
    roots = [pathlib.Path(path) / "nvidia" for path in sys.path]
    folders = {str(library.parent) for root in roots for library in root.rglob("lib*.so.*")}
    return ":".join(filter(None, [os.environ.get("LD_LIBRARY_PATH"), *sorted(folders)]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/release/examples/cuda_check")
    parser.add_argument("--report", help="what cuda_check has saved; it is not run again")
    parser.add_argument("--budget", type=float, default=460.0, help="seconds; what has not begun by then is left out")
    parser.add_argument("--out", default="cuda_stage.json")
    arguments = parser.parse_args()
    start = time.monotonic()
    report = arguments.report or "cuda_check.json"
    if not arguments.report:
        environment = {**os.environ, "LD_LIBRARY_PATH": library_path()}
        budget = str(int(arguments.budget / 2))
        subprocess.run([arguments.program, "--out", report, "--budget", budget], env=environment, check=False)
    with open(report) as file:
        checked = json.load(file)
    results = []
    for stage in checked["stages"]:
        tokens, peak = stage["tokens"], checked["ceilings"]["peak_per_s"]
        result = {"stage": stage, "torch": {}}
        for name, compiled in [("eager", False), ("compile", True)]:
            if time.monotonic() - start > arguments.budget:
                continue
            step_s, sequences = largest_batch(stage, compiled)
            if step_s:
                work = stage["arithmetic"] * sequences / stage["sequences"]
                result["torch"][name] = {
                    "sequences": sequences,
                    "step_s": step_s,
                    "tokens_per_s": sequences * tokens / step_s,
                    "mfu": work / step_s / peak,
                }
        results.append(result)
        with open(arguments.out, "w") as file:
            json.dump({"card": checked["card"], "torch": torch.__version__, "results": results}, file, indent=1)
    print(f"\n{checked['card']}; PyTorch {torch.__version__}; tokens/s, MFU in %, batch")
    print(f"{'stage':<22} {'iota-cuda':>22} {'PyTorch eager':>22} {'torch.compile':>22}")
    cell = lambda it: f"{it['tokens_per_s']:.0f} {100 * it['mfu']:.1f} {it['sequences']}" if it else "-"
    for result in results:
        stage, torch_results = result["stage"], result["torch"]
        cells = [stage, torch_results.get("eager"), torch_results.get("compile")]
        name = f"{stage['model']} body, T={stage['tokens']}"
        print(f"{name:<22} " + " ".join(f"{cell(it):>22}" for it in cells))
    print(f"{time.monotonic() - start:.0f} s; all numbers are in {arguments.out}")


if __name__ == "__main__":
    main()
