# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Writes golden_encodings.inc: the bytes that GNU as gives for every form of instruction that csrc's Assembler writes.

    python tests/cpp/make_golden.py > tests/cpp/golden_encodings.inc

The first and last register of each half that an encoding tells apart, and the displacements at which it changes.
"""

from __future__ import annotations

import itertools
import pathlib
import subprocess
import tempfile
from collections.abc import Iterator

GPRS = {
    0: "rax", 1: "rcx", 2: "rdx", 3: "rbx", 4: "rsp", 5: "rbp", 6: "rsi", 7: "rdi", **{i: f"r{i}" for i in range(8, 16)}
}  # fmt: skip
GPRS32 = {i: f"e{name[1:]}" if i < 8 else f"{name}d" for i, name in GPRS.items()}
SOME_GPRS = [0, 4, 5, 7, 8, 12, 13, 15]
SOME_ZMMS = [0, 7, 8, 15, 16, 31]
MASKS = [1, 7]
BYTE_PLACES = [0, 1, 127, 128, -128, -129, 2**31 - 1, -(2**31)]


def places(unit: int) -> list[int]:
    """Displacements where one byte, compressed by the operand's size, begins and ceases to hold them."""
    return [0, unit, 127 * unit, 128 * unit, -128 * unit, -129 * unit, 4 * unit + 1, 2**31 - 1, -(2**31)]


def triples() -> Iterator[tuple[int, int, int]]:
    """Each operand through all registers, and some of all three in one encoding."""
    for one in SOME_ZMMS:
        yield from ((one, 1, 2), (1, one, 2), (1, 2, one))
    yield from ((31, 31, 31), (16, 8, 0), (8, 16, 24))


def memory(base: int, displacement: int) -> str:
    return f"[{GPRS[base]}{displacement:+}]"


def cases() -> Iterator[tuple[str, list[int], str]]:
    """The name of a form, its operands (registers, mask, base, displacement, immediate), and its text."""

    def with_memory(name: str, text: str, unit: int, fields: str) -> Iterator[tuple[str, list[int], str]]:
        # all registers at one place, all bases and places with one register
        seen = [(zmm, 7, 64) for zmm in SOME_ZMMS] + [(31, base, unit) for base in SOME_GPRS]
        seen += [(17, base, 0) for base in SOME_GPRS] + [(1, base, at) for base in (0, 12) for at in places(unit)]
        for (zmm, base, at), second, mask in zip(
            seen, itertools.cycle(SOME_ZMMS), itertools.cycle(MASKS), strict=False
        ):
            values = {"to": zmm, "a": second, "k": mask, "base": base, "at": at}
            row = [values[field] for field in fields.split()]
            yield name, row, text.format(to=zmm, a=second, k=mask, m=memory(base, at))

    yield from with_memory("vmovups_load", "vmovups zmm{to}, zmmword ptr {m}", 64, "to base at")
    yield from with_memory("vmovups_z", "vmovups zmm{to}{{k{k}}}{{z}}, zmmword ptr {m}", 64, "to k base at")
    yield "vmovups_z", [3, 0, 7, 64], "vmovups zmm3, zmmword ptr [rdi+64]"
    yield from with_memory("vmovups_store", "vmovups zmmword ptr {m}, zmm{to}", 64, "to base at")
    yield from with_memory("vmovups_store_k", "vmovups zmmword ptr {m}{{k{k}}}, zmm{to}", 64, "to k base at")
    yield from with_memory("vaddps_m", "vaddps zmm{to}, zmm{a}, zmmword ptr {m}", 64, "to a base at")
    yield from with_memory("vaddps_mk", "vaddps zmm{to}{{k{k}}}, zmm{a}, zmmword ptr {m}", 64, "to k a base at")
    yield from with_memory("vaddps_bcst", "vaddps zmm{to}, zmm{a}, dword ptr {m}{{1to16}}", 4, "to a base at")
    yield from with_memory("vmulps_bcst", "vmulps zmm{to}, zmm{a}, dword ptr {m}{{1to16}}", 4, "to a base at")
    yield from with_memory("vfmadd231ps_m", "vfmadd231ps zmm{to}, zmm{a}, zmmword ptr {m}", 64, "to a base at")
    yield from with_memory("vfmadd231ps_bcst", "vfmadd231ps zmm{to}, zmm{a}, dword ptr {m}{{1to16}}", 4, "to a base at")
    yield from with_memory("vbroadcastss", "vbroadcastss zmm{to}, dword ptr {m}", 4, "to base at")
    for base, index, zmm in itertools.product(SOME_GPRS, SOME_GPRS, (0, 31)):
        if GPRS[index] != "rsp":
            pair = f"[{GPRS[base]}+{GPRS[index]}*1]"
            yield "vmovups_indexed", [zmm, base, index], f"vmovups zmm{zmm}, zmmword ptr {pair}"
            yield (
                "vmovups_indexed_z",
                [zmm, 5, base, index],
                f"vmovups zmm{zmm}{{k5}}{{z}}, zmmword ptr {pair}",
            )
    for to, a, b in triples():
        for name in ("vaddps", "vmulps", "vmaxps", "vminps", "vpxord", "vfmadd231ps"):
            yield name, [to, a, b], f"{name} zmm{to}, zmm{a}, zmm{b}"
        for name in ("vshufps", "vshuff32x4"):
            yield name, [to, a, b, 0x4E], f"{name} zmm{to}, zmm{a}, zmm{b}, 0x4e"
        for mask in MASKS:
            yield "vblendmps", [to, mask, a, b], f"vblendmps zmm{to}{{k{mask}}}, zmm{a}, zmm{b}"
    for base in SOME_GPRS:
        for mask, at in itertools.product((0, *MASKS), BYTE_PLACES):
            yield "kmovw_m", [mask, base, at, 0], f"kmovw k{mask}, word ptr {memory(base, at)}"
        yield "kmovw_m", [1, base, 0, 1], f"{{disp8}} kmovw k1, word ptr {memory(base, 0)}"
        for at in BYTE_PLACES:
            yield "mov_m", [15 - base, base, at, 0], f"mov {GPRS[15 - base]}, qword ptr {memory(base, at)}"
            yield "prefetcht1", [base, at], f"prefetcht1 byte ptr {memory(base, at)}"
            yield "add_m", [15 - base, base, at], f"add {GPRS[15 - base]}, qword ptr {memory(base, at)}"
            yield "imul32", [15 - base, base, at, 24], f"imul {GPRS32[15 - base]}, dword ptr {memory(base, at)}, 24"
            yield "movsxd", [15 - base, base, at], f"movsxd {GPRS[15 - base]}, dword ptr {memory(base, at)}"
        for at in (0, 1, -128):
            yield "mov_m", [15 - base, base, at, 4], f"{{disp32}} mov {GPRS[15 - base]}, qword ptr {memory(base, at)}"
        for mask in (0, *MASKS):
            yield "kmovw_r", [mask, base], f"kmovw k{mask}, {GPRS32[base]}"
        for other in SOME_GPRS:
            yield "mov", [base, other], f"mov {GPRS[base]}, {GPRS[other]}"
            yield "add", [base, other], f"add {GPRS[base]}, {GPRS[other]}"
            yield "test", [base, other], f"test {GPRS[base]}, {GPRS[other]}"
        yield "mov_imm64", [base, 0x123456789ABCDEF0], f"movabs {GPRS[base]}, 0x123456789abcdef0"
        for value in (0, 0xFF00, 2**32 - 1):
            yield "mov32", [base, value], f"mov {GPRS32[base]}, {value}"
        # its immediate always has four bytes; as takes one where it fits
        for value in (128, -129, 1024, 2**31 - 1, -(2**31)):
            if base != 0:  # that has a shorter form of its own, which as takes
                yield "add_imm", [base, value], f"add {GPRS[base]}, {value}"
        for value in (1, 127, -128):
            yield "sub_imm", [base, value], f"sub {GPRS[base]}, {value}"
        yield "push", [base], f"push {GPRS[base]}"
        yield "pop", [base], f"pop {GPRS[base]}"
        yield "call_r", [base], f"call {GPRS[base]}"
    yield "vzeroupper", [], "vzeroupper"
    yield "ret", [], "ret"
    # from where a jump begins
    yield "jnz_back", [64], "jnz .-64"
    yield "jnz_back", [4096], "jnz .-4096"
    yield "call_back", [4096], "call .-4096"
    yield "jz_ahead", [16], "jz .+18"
    yield "jz_ahead", [127], "jz .+129"
    yield "jz_far", [16], "{disp32} jz .+22"
    yield "jz_far", [4096], "{disp32} jz .+4102"


def assemble(texts: list[str]) -> list[str]:
    """The bytes of each, in hexadecimal. Each in 16 bytes of its own, so that lengths are known."""
    with tempfile.TemporaryDirectory() as folder:
        source, built, plain = (pathlib.Path(folder) / name for name in ("one.s", "one.o", "one.bin"))
        lines = [".intel_syntax noprefix"]
        for i, text in enumerate(texts):
            jump = text.startswith(("jnz", "call .", "jz"))
            prefix = "{disp32} " if text.startswith("jnz") else ""
            lines += [f"b{i}:", f"{prefix}{text}" if jump else text, f"e{i}:"]
        lines += [".section .lengths"] + [f".byte e{i}-b{i}" for i in range(len(texts))]
        source.write_text("\n".join(lines) + "\n")
        subprocess.run(["as", "-O0", "--64", "-o", built, source], check=True)
        contents = []
        for section in (".text", ".lengths"):
            extract = ["objcopy", "-O", "binary", "-j", section, "--set-section-flags", f"{section}=alloc,contents"]
            subprocess.run([*extract, built, plain], check=True)
            contents.append(plain.read_bytes())
        code, lengths = contents
        starts = itertools.accumulate(lengths, initial=0)
        return [code[start : start + length].hex() for start, length in zip(starts, lengths, strict=False)]


def golden() -> str:
    rows = list(cases())
    version = subprocess.run(["as", "--version"], check=True, capture_output=True, text=True).stdout.split("\n")[0]
    head = f"// Written by make_golden.py with {version}: form, operands, bytes, what as was given.\n"
    return head + "".join(
        f'{{Form::{name}, {{{", ".join(str(value) for value in operands)}}}, "{code}", "{text}"}},\n'
        for (name, operands, text), code in zip(rows, assemble([text for _, _, text in rows]), strict=True)
    )


if __name__ == "__main__":
    print(golden(), end="")
