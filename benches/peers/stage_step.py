"""Training steps of one model by iota-compute and by PyTorch, beside each other: tokens per second and peak memory.

Both train the same model from the same weights on the same tokens with the same threads and the same optimizer (AdamW
without clipping; iota-compute computes the gradient's norm nevertheless). Every run is a process of its own. Runs
alternate, so that whatever else the machine does meets both alike; the script fails if their first losses are not equal
to 1e-4. A last run of iota-compute says where its time goes, beside a large matrix product of the same library on the same
threads.

PyTorch gets query, key and value, and gate and up, as one matrix each, its own attention and norms, and its fused AdamW.
`--compile` adds a column for torch.compile (it needs a C++ compiler), `--bf16` two: bf16 autocast, and our own products of bf16.

Run from the repository root, with `pip install torch`; it builds the Rust program with cargo:

    python benches/peers/stage_step.py [--models wide,testnet] [--threads 2] [--rounds 5] [--bf16] [--compile] [--program FILE] [--out FILE]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

SEQUENCES = {"wide": 8, "testnet": 4}
STEPS = {"wide": 4, "testnet": 40}
WARM_UP = 2
COMPARED_LOSSES = 4
LEARNING_RATE = 1e-4
MIB = 1 << 20


def peak_memory_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


# ---------------------------------------------------------------------------------------------- PyTorch, in a child process


def read_weights(path):
    """The tensors and the metadata of a safetensors file."""
    import torch

    types = {"F32": torch.float32, "I64": torch.int64}
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        metadata, start, tensors = header.pop("__metadata__"), file.tell(), {}
        for name, entry in header.items():
            first, end = entry["data_offsets"]
            file.seek(start + first)
            raw = bytearray(file.read(end - first))
            tensors[name] = torch.frombuffer(raw, dtype=types[entry["dtype"]]).reshape(entry["shape"]).clone()
    return tensors, {name: json.loads(text) for name, text in metadata.items()}


def torch_model(w, model):
    """The parameters, and the loss as a function of tokens and targets."""
    import torch
    import torch.nn.functional as F

    width, heads, shared = model["width"], model["heads"], model["key_value_heads"]
    head = width // heads
    assert model["rope"]["scaling"] is None, "rotations are written down without scaling"
    frequencies = model["rope"]["base"] ** (-torch.arange(0, head, 2, dtype=torch.float64) / head)
    angles = torch.outer(torch.arange(model["context"], dtype=torch.float64), frequencies)
    cosines, sines = angles.cos().float(), angles.sin().float()

    p = {name: w[name] for name in ["embedding", "final_norm", "projection"]}
    for i in range(model["blocks"]):
        t = lambda name: w[f"blocks.{i}.{name}"]
        p[f"{i}.packed"] = torch.cat([t("query"), t("key"), t("value")])
        p[f"{i}.gate_up"] = torch.cat([t("gate"), t("up")])
        for name in ["attention_norm", "attention_output", "feed_forward_norm", "down"]:
            p[f"{i}.{name}"] = t(name)
    p = {name: tensor.clone().requires_grad_() for name, tensor in p.items()}

    def rotate(x):
        a, b = x.chunk(2, -1)
        return torch.cat([a * cosines - b * sines, b * cosines + a * sines], -1)

    def loss(tokens, targets):
        x = F.embedding(tokens, p["embedding"])
        for i in range(model["blocks"]):
            t = lambda name: p[f"{i}.{name}"]
            n = F.rms_norm(x, (width,), t("attention_norm"), model["norm_epsilon"])
            packed = F.linear(n, t("packed")).unflatten(-1, (-1, head)).transpose(1, 2)
            q, k, v = packed.split([heads, shared, shared], 1)
            a = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True, enable_gqa=True)
            x = x + F.linear(a.transpose(1, 2).flatten(2), t("attention_output"))
            n = F.rms_norm(x, (width,), t("feed_forward_norm"), model["norm_epsilon"])
            gate, up = F.linear(n, t("gate_up")).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, t("down"))
        logits = F.linear(F.rms_norm(x, (width,), p["final_norm"], model["norm_epsilon"]), p["projection"])
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    return p, loss


def torch_run(arguments):
    """Prints the same keys as `examples/throughput.rs --json`."""
    import torch

    torch.set_num_threads(arguments.threads)
    loaded = peak_memory_bytes()
    weights, metadata = read_weights(arguments.weights)
    model, settings = metadata["model"], metadata["optimizer"]
    text = weights.pop("tokens")
    shape = (-1, model["context"])
    tokens, targets = text[:-1].reshape(shape).contiguous(), text[1:].reshape(shape).contiguous()
    p, loss_of = torch_model(weights, model)
    del weights
    groups = [
        {"params": [t for t in p.values() if t.dim() == 2], "weight_decay": settings["weight_decay"]},
        {"params": [t for t in p.values() if t.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=LEARNING_RATE, betas=(settings["beta1"], settings["beta2"]), eps=settings["epsilon"], fused=True
    )
    if arguments.peer == "torch-compile":
        loss_of = torch.compile(loss_of)
    bf16 = arguments.peer == "torch-bf16"
    losses, step_seconds, optimizer_seconds = [], [], []
    for step in range(WARM_UP + arguments.steps):
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = loss_of(tokens, targets)
        loss.backward()
        passes = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        end = time.perf_counter()
        losses.append(loss.item())
        if step >= WARM_UP:
            step_seconds.append(end - start)
            optimizer_seconds.append(end - passes)
    report = {
        "parameters": sum(t.numel() for t in p.values()),
        "tokens": tokens.numel(),
        "losses": losses,
        "step_seconds": step_seconds,
        "optimizer_seconds": statistics.median(optimizer_seconds),
        "peak_memory_bytes": peak_memory_bytes(),
        "loaded_bytes": loaded,
        "version": torch.__version__,
    }
    print(json.dumps(report))


# ---------------------------------------------------------------------------------------------------------- the comparison


def build():
    command = ["cargo", "build", "--release", "-p", "iota-compute", "--example", "throughput", "--message-format=json"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    messages = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "throughput")


def run_json(command):
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def assert_equal_losses(a, b, tolerance):
    for step, (x, y) in enumerate(zip(a[:COMPARED_LOSSES], b[:COMPARED_LOSSES])):
        if abs(x - y) > tolerance * abs(y):
            sys.exit(f"the losses of step {step} are {x} and {y}: this is not the same model")


def share_of_matmuls(run):
    """Seconds of the fastest step, and what is inside matrix products: `(step, products, flops of them)`.

    The products of the loss are inside of one operation with its softmax; they are taken for as long as they take alone.
    """
    step = min(run["step_seconds"])
    products = [o for o in run["operations"] if o["operation"] == "matmul"]
    loss = next(o for o in run["operations"] if o["operation"] == "cross_entropy")
    alone = min(run["loss_products_seconds"], loss["seconds"])
    seconds = sum(o["seconds"] for o in products) + alone
    return step, seconds, sum(o["operations"] for o in products) + loss["operations"]


def print_operations(name, run):
    step, inside, operations = share_of_matmuls(run)
    peak = run["peak_flops"]
    print(f"\n  {name}: the fastest step with a clock on each operation: {step * 1e3:.1f} ms, of which {100 * inside / step:.0f} % inside")
    print(f"  matrix products (attention's not counted) at {operations / inside / 1e9:.0f} GFLOP/s, {operations / inside / peak:.2f} of the")
    print(f"  {peak / 1e9:.0f} GFLOP/s of a 2048 x 2048 x 2048 product\n")
    rows = {}
    for o in run["operations"]:
        name = o["operation"] + (" " + o["shape"].rsplit(" ", 1)[0] if o["shape"] else "")
        row = rows.setdefault(name, {"calls": 0, "seconds": 0.0, "operations": 0, "operand_bytes": 0})
        for key in row:
            row[key] += o[key]
    timed = sum(row["seconds"] for row in rows.values())
    rows["outside of operations"] = {"calls": 1, "seconds": step - timed, "operations": 0, "operand_bytes": 0}
    print(f"  {'operation':<24}{'calls':>6}{'ms':>9}{'share':>8}{'GFLOP/s':>9}{'of peak':>9}{'GB/s':>7}")
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["seconds"]):
        if row["seconds"] < 0.001 * step:
            continue
        rate = row["operations"] / row["seconds"]
        arithmetic = f"{rate / 1e9:>9.0f}{rate / peak:>9.2f}" if row["operations"] else " " * 18
        print(
            f"  {name:<24}{row['calls']:>6}{row['seconds'] * 1e3:>9.2f}{100 * row['seconds'] / step:>7.1f}%{arithmetic}"
            f"{row['operand_bytes'] / row['seconds'] / 1e9:>7.1f}"
        )


def summary(runs):
    seconds = [second for run in runs for second in run["step_seconds"]]
    tokens = runs[0]["tokens"]
    return {
        "tokens_per_second_median": tokens / statistics.median(seconds),
        "tokens_per_second_best": tokens / min(seconds),
        "optimizer_ms": 1e3 * statistics.median(run["optimizer_seconds"] for run in runs),
        "peak_memory_bytes": max(run["peak_memory_bytes"] for run in runs),
        "loaded_bytes": max(run.get("loaded_bytes", 0) for run in runs),
        "losses": runs[0]["losses"][:COMPARED_LOSSES],
    }


def compare(model, arguments, program, folder):
    weights = os.path.join(folder, f"{model}.safetensors")
    steps = arguments.steps or STEPS.get(model, 10)
    ours = [program, "--model", model, "--threads", str(arguments.threads), "--sequences", str(SEQUENCES.get(model, 4))]
    ours += ["--steps", str(steps), "--learning-rate", str(LEARNING_RATE), "--json"]
    subprocess.run(ours + ["--weights", weights], check=True)
    commands = {"iota-compute": ours}
    if arguments.bf16:
        commands["iota-bf16"] = ours + ["--precision", "bf16"]
    for peer in ["torch"] + ["torch-bf16"] * arguments.bf16 + ["torch-compile"] * arguments.compile:
        child = [sys.executable, __file__, "--peer", peer, "--weights", weights]
        commands[peer] = child + ["--threads", str(arguments.threads), "--steps", str(steps)]
    runs = {name: [] for name in commands}
    for _ in range(arguments.rounds):
        for name, command in commands.items():
            runs[name].append(run_json(command))
            # bf16 rounds to 8 bits: the same model, if not the same numbers.
            tolerance = 1e-2 if name.endswith("bf16") else 1e-4
            assert_equal_losses(runs["iota-compute"][0]["losses"], runs[name][-1]["losses"], tolerance)
    broken_down = {name: run_json(command + ["--operations"]) for name, command in commands.items() if name.startswith("iota")}
    results = {name: summary(of) for name, of in runs.items()}

    first, base = runs["torch"][0], results["torch"]
    print(f"\n{model}: {first['parameters']:,} parameters, {first['tokens']} tokens a step, {arguments.threads} threads, f32, ")
    print(f"  {arguments.rounds} alternating rounds of {steps} steps, torch {first['version']}\n")
    print(f"  {'':<16}{'tokens/s':>10}{'ratio':>7}{'best':>9}{'ratio':>7}{'step ms':>9}{'optimizer':>11}{'peak MiB':>10}{'ratio':>7}")
    for name, r in results.items():
        median, best = r["tokens_per_second_median"], r["tokens_per_second_best"]
        print(
            f"  {name:<16}{median:>10.0f}{median / base['tokens_per_second_median']:>7.2f}{best:>9.0f}"
            f"{best / base['tokens_per_second_best']:>7.2f}{1e3 * first['tokens'] / median:>9.1f}{r['optimizer_ms']:>11.1f}"
            f"{r['peak_memory_bytes'] / MIB:>10.0f}{r['peak_memory_bytes'] / base['peak_memory_bytes']:>7.2f}"
        )
    print(f"  (of torch's peak, {base['loaded_bytes'] / MIB:.0f} MiB are the library itself, before the first tensor)")
    ours_losses, torch_losses = results["iota-compute"]["losses"], base["losses"]
    print("  first losses: " + ", ".join(f"{x:.5f} and {y:.5f}" for x, y in zip(ours_losses, torch_losses)))
    for name, run in broken_down.items():
        print_operations(name, run)
    return {"runs": runs, "summary": results, "operations": broken_down}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="wide,testnet", help="'wide', or presets of iota-model without a scaled RoPE")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="counted steps of each run")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--program", help="the example throughput of iota-compute, if it is built already")
    parser.add_argument("--out", help="where to write all numbers as JSON")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        return torch_run(arguments)
    program = arguments.program or build()
    load = os.getloadavg()[0]
    print(f"{platform.machine()}, {os.cpu_count()} cores, load before the start: {load:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        models = {model: compare(model, arguments, program, folder) for model in arguments.models.split(",")}
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump({"cores": os.cpu_count(), "load_before": load, "models": models}, file, indent=1)


if __name__ == "__main__":
    main()
