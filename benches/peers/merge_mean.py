"""The weighted mean of eight bf16 copies as IOTA's published code computes it, in PyTorch, beside iota-merge's.

IOTA merges a chunk like this: each copy is widened to f32, multiplied by its weight and added to a sum, the sum is divided
by the sum of the weights, and the quotient is rounded to bf16. That is what runs here, and also the same with the in-place
operations that a careful author would use. Ours reads the same bytes, sums in f64 and writes f32 (`cargo run --release -p
iota-merge --example speed`), which also says how fast memory can be read. Rounds alternate, so that whatever else the
machine does meets both alike; each number is the best of all rounds. PyTorch works on the same pieces of eight copies, which
are elsewhere in memory each time.

Run from the repository root, with `pip install torch`; it builds the Rust program with cargo:

    python benches/peers/merge_mean.py [--rounds 3] [--program FILE]
"""

import argparse
import json
import subprocess
import time

import torch

COPIES = 8
ELEMENTS = 1 << 23
# Elements of a pass: few for one thread, so that it is seldom interrupted; more for two.
PIECE = {1: 1 << 18, 2: 1 << 22}
SECONDS = 0.5
WEIGHTS = list(range(1, COPIES + 1))


def as_iota_has_it(copies):
    total, divisor = None, 0
    for copy, weight in zip(copies, WEIGHTS):
        part = copy.to(torch.float32) * weight
        total = part if total is None else total + part
        divisor += weight
    return (total / divisor).to(torch.bfloat16)


def in_place(copies):
    total = torch.zeros(len(copies[0]), dtype=torch.float32)
    for copy, weight in zip(copies, WEIGHTS):
        total.add_(copy, alpha=weight)
    return total.div_(sum(WEIGHTS)).to(torch.bfloat16)


def bytes_per_second(mean, copies, threads):
    torch.set_num_threads(threads)
    piece, best, turn, begin = PIECE[threads], float("inf"), 0, time.perf_counter()
    while time.perf_counter() - begin < SECONDS or turn < 4:
        start = turn * piece % ELEMENTS
        pieces = [copy[start : start + piece] for copy in copies]
        at = time.perf_counter()
        mean(pieces)
        best = min(best, time.perf_counter() - at)
        turn += 1
    return COPIES * piece * 2 / best


def ours(program):
    output = subprocess.run(program + ["--json", "WeightedMean, 8 x bf16"], check=True, capture_output=True, text=True).stdout
    return [json.loads(line) for line in output.splitlines()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--program", help="the example, if it is built already")
    arguments = parser.parse_args()
    if arguments.program:
        program = [arguments.program]
    else:
        build = ["cargo", "run", "--release", "-q", "-p", "iota-merge", "--example", "speed", "--"]
        program = build
    copies = [torch.randn(ELEMENTS).mul_(1e-3).to(torch.bfloat16) for _ in range(COPIES)]
    assert torch.allclose(as_iota_has_it(copies).float(), in_place(copies).float(), rtol=1e-2, atol=1e-6)

    best = {}
    for _ in range(arguments.rounds):
        for threads in (1, 2):
            for name, mean in (("PyTorch, as IOTA has it", as_iota_has_it), ("PyTorch, in place", in_place)):
                rate = bytes_per_second(mean, copies, threads)
                best[name, threads] = max(best.get((name, threads), 0), rate)
        for row in ours(program):
            key = row["name"], row["threads"]
            best[key] = max(best.get(key, 0), row["bytes_per_second"])

    print(f"PyTorch {torch.__version__}; GB/s of copies, best of {arguments.rounds} rounds\n")
    print("| | threads | GB/s | of memory | times PyTorch |")
    print("|---|---:|---:|---:|---:|")
    for (name, threads), rate in sorted(best.items(), key=lambda item: (item[0][1], item[1])):
        memory, peer = best["memory, read", threads], best["PyTorch, as IOTA has it", threads]
        print(f"| {name} | {threads} | {rate / 1e9:.2f} | {100 * rate / memory:.0f} % | {rate / peer:.1f} |")


if __name__ == "__main__":
    main()
