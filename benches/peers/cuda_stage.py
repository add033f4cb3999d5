"""Steps of body stages on a card by iota-cuda, by PyTorch, and by torch.compile, beside each other: tokens per second and MFU.

Runs `cuda_check` first (unless --report names what it has saved), then takes the same stages, batches and optimizer through
PyTorch, eager and compiled block by block: f32 master weights, bf16 autocast, fused AdamW, `scaled_dot_product_attention` by
FlashAttention or cuDNN and by nothing slower. Activations come from and go to the host, as they do for a miner. Where
iota-cuda's batch does not fit, three quarters of it are tried, and so on. The stage begins with the decoder of a bottleneck
and ends with its encoder; how residuals meet them is left out on PyTorch's side, which takes no time that could be seen.

On a machine with a card and PyTorch, from the repository root:

    cargo build --release -p iota-cuda --features cuda --example cuda_check
    python benches/peers/cuda_stage.py [--program FILE | --report FILE] [--budget SECONDS] [--out FILE]

Each half has half of the time and is ended when it has had it; what it had found by then is saved, and the table at the end
shows it. PyTorch takes all stages eagerly before it compiles the first, which takes longer than steps do. Without PyTorch,
or with one that sees no card, its columns stay empty, and why is said. Exit code: 0 if all that was tried worked, 1 if
something did not, 2 if there is no card to work on.
"""

import argparse
import gc
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

try:
    import torch
    import torch.nn.functional as F
except ImportError as error:
    torch, missing = None, str(error)
else:
    missing = None if torch.cuda.is_available() else "it sees no card"

WARM_UP, STEPS = 3, 5
LEARNING_RATE = 1e-5
# Beyond its share of the time, before a half is ended: it may be in the middle of something.
GRACE_S = 20

Module = torch.nn.Module if torch else object


class Block(Module):
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

    def norm(self, x, norm):
        # For numbers and weights of two types PyTorch has no kernel of its own.
        return F.rms_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.eps)

    def rotate(self, x, cosines, sines):
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cosines - second * sines, first * sines + second * cosines], dim=-1).to(x.dtype)

    def forward(self, x, cosines, sines):
        rows, tokens, width = x.shape
        packed = self.packed(self.norm(x, self.attention_norm)).view(rows, tokens, -1, self.head).transpose(1, 2)
        q, k, v = packed.split([self.heads, self.shared, self.shared], dim=1)
        q, k = self.rotate(q, cosines, sines), self.rotate(k, cosines, sines)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.attention_output(attended.transpose(1, 2).reshape(rows, tokens, width))
        gate, up = self.gate_up(self.norm(x, self.feed_forward_norm)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Body(Module):
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
    if compiled:
        # Blocks are alike: what is compiled for one serves all.
        for block in body.blocks:
            block.compile()
    shape = (sequences, stage["tokens"], stage["boundary_width"])
    boundary, gradient = torch.randn(shape).pin_memory(), (1e-3 * torch.randn(shape)).pin_memory()
    times = []
    for step in range(WARM_UP + STEPS):
        start = time.perf_counter()
        x = boundary.cuda(non_blocking=True).requires_grad_()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out = body(x)
        out.float().cpu()
        out.backward(gradient.cuda(non_blocking=True).to(out.dtype))
        x.grad.cpu()
        torch.nn.utils.clip_grad_norm_(body.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        if step >= WARM_UP:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def largest_batch(stage, compiled):
    """Seconds per step, and the batch: that of iota-cuda, or three quarters of it, and so on, until it fits."""
    sequences = stage["sequences"]
    while sequences:
        try:
            return seconds_per_step(stage, sequences, compiled), sequences
        except torch.cuda.OutOfMemoryError:
            sequences = sequences * 3 // 4
        finally:
            torch._dynamo.reset()
            gc.collect()
            torch.cuda.empty_cache()
    return None, 0


def library_path():
    """With the folders of the libraries that PyTorch came with."""
    roots = [pathlib.Path(path) / "nvidia" for path in sys.path]
    folders = {str(library.parent) for root in roots for library in root.rglob("lib*.so.*")}
    return ":".join(filter(None, [os.environ.get("LD_LIBRARY_PATH"), *sorted(folders)]))


def ended_after(seconds, command, **options):
    """Runs a command, for so long; its exit code, or None if it was ended."""
    try:
        return subprocess.run(command, timeout=seconds, check=False, **options).returncode
    except subprocess.TimeoutExpired:
        print(f"ended after {seconds:.0f} s: {command[0]}", flush=True)
        return None


def save(path, found):
    partly = path + ".part"
    with open(partly, "w") as file:
        json.dump(found, file, indent=1)
    os.replace(partly, path)


def load(path):
    try:
        with open(path) as file:
            return json.load(file)
    except FileNotFoundError:
        return {}


def time_torch(checked, budget, out):
    """PyTorch's half: every stage that iota-cuda has timed, eager, then compiled. Saves after each."""
    start, stages = time.monotonic(), checked.get("stages") or []
    found = {"torch": torch.__version__, "stages": [{} for _ in stages], "failures": []}
    # What would be slow is a failure, not a result.
    torch.backends.cuda.enable_math_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    for name, compiled in [("eager", False), ("compile", True)]:
        for stage, results in zip(stages, found["stages"]):
            if time.monotonic() - start > budget:
                break
            try:
                step_s, sequences = largest_batch(stage, compiled)
            except Exception as error:  # One that PyTorch cannot do is no reason to leave out the others.
                found["failures"].append(f"{stage['model']} T={stage['tokens']} {name}: {type(error).__name__}: {error}"[:2000])
                step_s = None
            if step_s:
                work = stage["arithmetic"] * sequences / stage["sequences"]
                results[name] = {
                    "sequences": sequences,
                    "step_s": step_s,
                    "tokens_per_s": sequences * stage["tokens"] / step_s,
                    "mfu": work / step_s / checked["ceilings"]["peak_per_s"],
                }
            save(out, found)


def table(checked, beside):
    print(f"\n{checked['card']}; PyTorch {beside.get('torch', '-')}; tokens/s, MFU in %, batch")
    print(f"{'stage':<22} {'iota-cuda':>22} {'PyTorch eager':>22} {'torch.compile':>22}")
    cell = lambda it: f"{it['tokens_per_s']:.0f} {100 * it['mfu']:.1f} {it['sequences']}" if it else "-"
    stages = checked.get("stages") or []
    for stage, results in zip(stages, beside.get("stages", []) + [{}] * len(stages)):
        name = f"{stage['model']} body, T={stage['tokens']}"
        print(f"{name:<22} " + " ".join(f"{cell(it):>22}" for it in [stage, results.get("eager"), results.get("compile")]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/release/examples/cuda_check")
    parser.add_argument("--report", help="what cuda_check has saved; it is not run again")
    parser.add_argument("--kernels", help="a folder with compiled kernels, for machines without NVRTC")
    parser.add_argument("--budget", type=float, default=460.0, help="seconds, for both halves")
    parser.add_argument("--out", default="cuda_stage.json")
    parser.add_argument("--only-torch", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    report = arguments.report or os.path.splitext(arguments.out)[0] + "_check.json"
    if arguments.only_torch:
        return time_torch(load(report), arguments.only_torch, arguments.out)

    start, half, failures = time.monotonic(), arguments.budget / 2, []
    if not arguments.report:
        pathlib.Path(report).unlink(missing_ok=True)
        command = [arguments.program, "--out", report, "--budget", str(max(1, int(half - GRACE_S)))]
        command += ["--kernels", arguments.kernels] if arguments.kernels else []
        environment = {**os.environ, "LD_LIBRARY_PATH": library_path()}
        try:
            code = ended_after(half + GRACE_S, command, env=environment)
        except OSError as error:
            print(f"cuda_stage: {arguments.program}: {error.strerror}; build it as this file's first lines say", file=sys.stderr)
            return 2
        if code != 0:
            failures.append("cuda_check was ended" if code is None else f"cuda_check ended with exit code {code}")
    checked = load(report)
    if not checked.get("card"):
        print(f"cuda_stage: nothing is in {report}: there is no card that could be checked", file=sys.stderr)
        return 2
    failures += checked.get("failures") or []
    beside, own = {}, arguments.out + ".torch"
    if missing:
        print(f"PyTorch is left out: {missing}", flush=True)
    elif not checked.get("stages"):
        print("PyTorch is left out: no stage was timed to set it beside", flush=True)
    else:
        pathlib.Path(own).unlink(missing_ok=True)
        left = arguments.budget - (time.monotonic() - start)
        command = [sys.executable, __file__, "--report", report, "--out", own, "--only-torch", str(max(1.0, left - GRACE_S))]
        if ended_after(max(1.0, left) + GRACE_S, command) != 0:
            failures.append("PyTorch's half did not end well")
        beside = load(own)
        failures += beside.get("failures", [])
    save(arguments.out, {"checked": checked, "beside": beside, "failures": failures})
    table(checked, beside)
    for failure in failures:
        print(f"WRONG: {failure}")
    print(f"{time.monotonic() - start:.0f} s; all numbers are in {arguments.out} and {report}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
