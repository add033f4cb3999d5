"""The merge that tests/mean.rs pins, in Python's floats, which are IEEE 754 doubles. Prints the FNV-1a hash of its bits."""

import struct

ELEMENTS, WEIGHTS = 5000, [3, 17, 1, 2**53 + 1, 250]


def copies():
    """Finite f32s of all magnitudes, from a linear congruential generator (Knuth's MMIX constants)."""
    state = 1
    for _ in WEIGHTS:
        copy = []
        for _ in range(ELEMENTS):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            bits = (state >> 32) & 0xBFFFFFFF
            copy.append(struct.unpack("<f", struct.pack("<I", bits))[0])
        yield copy


fnv = 0xCBF29CE484222325
for values in zip(*copies()):
    total = -0.0
    for weight, value in zip(WEIGHTS, values):
        total += float(weight) * value
    for byte in struct.pack("<f", total / float(sum(WEIGHTS))):
        fnv = (fnv ^ byte) * 0x100000001B3 % 2**64
print(hex(fnv))
