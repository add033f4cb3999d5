#!/usr/bin/env python3
"""Compiles the kernels for A100 and H100 cards, on a machine that needs no card and no CUDA toolkit, and prints what each
takes. Fails if one does not compile or spills registers.

    pip install nvidia-cuda-nvrtc          # CUDA's run-time compiler alone, 90 MB
    python crates/iota-cuda/check_kernels.py [--nvrtc FILE] [--save FOLDER]

With --save it leaves the compiled kernels in the folder. A miner that is given the folder (--cuda-kernels FOLDER) needs no
NVRTC, only the driver and cuBLAS. With --nvrtc that version compiles: versions differ in what they fit into registers.
"""

import argparse
import ctypes
import pathlib
import re
import site
import sys

ARCHITECTURES = ["sm_80", "sm_90"]
FOLDER = pathlib.Path(__file__).resolve().parent / "src"


def source():
    """The sources in the order in which the crate joins them."""
    names = re.findall(r'include_str!\("(kernels/.*?)"\)', (FOLDER / "kernels.rs").read_text())
    return "".join((FOLDER / name).read_text() for name in names)


def digest(data):
    """FNV-1a, as in src/card/kernels.rs: kernels are found by the sources that they were made from."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def find_nvrtc():
    roots = [*site.getsitepackages(), site.getusersitepackages(), "/usr/local/cuda/lib64"]
    found = [path for root in roots for path in pathlib.Path(root).rglob("libnvrtc.so.*")]
    if not found:
        sys.exit("there is no libnvrtc: pip install nvidia-cuda-nvrtc")
    return ctypes.CDLL(str(found[0]))


class Compiler:
    def __init__(self, library):
        self.library = library
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    def call(self, name, *arguments):
        return getattr(self.library, name)(*arguments)

    def text(self, program, what):
        size = ctypes.c_size_t()
        self.call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self.call(f"nvrtcGet{what}", program, buffer)
        return buffer.raw

    def compile(self, architecture):
        program = ctypes.c_void_p()
        self.call("nvrtcCreateProgram", ctypes.byref(program), source().encode(), b"kernels.cu", 0, None, None)
        options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17", b"--ptxas-options=-v"]
        failed = self.call("nvrtcCompileProgram", program, len(options), (ctypes.c_char_p * len(options))(*options))
        log = self.text(program, "ProgramLog").rstrip(b"\0").decode()
        if failed:
            sys.exit(f"{architecture}: {log}")
        return self.text(program, "CUBIN"), log


def report(architecture, cubin, log):
    """Prints a line for each kernel. Returns those that spill."""
    spilling = []
    print(f"{architecture}: {len(cubin)} bytes")
    print(f"  {'kernel':<34} registers  shared bytes  stack bytes  spilled bytes")
    for entry in log.split("Compiling entry function '")[1:]:
        name = entry.split("'")[0]
        number = lambda pattern: int((re.search(pattern, entry) or [0, 0])[1])
        registers = number(r"Used (\d+) registers")
        shared = number(r"(\d+) bytes smem")
        stack = number(r"(\d+) bytes stack frame")
        spilled = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
        print(f"  {name:<34} {registers:>9}  {shared:>12}  {stack:>11}  {spilled:>13}")
        if spilled:
            spilling.append(name)
    return spilling


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=pathlib.Path, metavar="FOLDER")
    parser.add_argument("--nvrtc", metavar="FILE", help="another libnvrtc than the one that is installed")
    arguments = parser.parse_args()
    compiler = Compiler(ctypes.CDLL(arguments.nvrtc) if arguments.nvrtc else find_nvrtc())
    print(f"NVRTC {compiler.version}")
    spilling = []
    for architecture in ARCHITECTURES:
        cubin, log = compiler.compile(architecture)
        spilling += report(architecture, cubin, log)
        if arguments.save:
            arguments.save.mkdir(parents=True, exist_ok=True)
            name = f"iota-{digest(source().encode()):016x}-{architecture}.cubin"
            (arguments.save / name).write_bytes(cubin)
    sys.exit(f"these spill registers: {', '.join(spilling)}" if spilling else 0)


if __name__ == "__main__":
    main()
