// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Writes the instructions that generated kernels are made of. A method is an instruction under Intel's mnemonic,
// operands in Intel's order, so that a kernel's source can be compared with a disassembler's listing; `_bcst` is a
// memory operand of one float for all lanes, `_z` zeroing where a mask has no bit. tests/cpp compares every form with
// an assembler's bytes. Encodings: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, chapter 2
// (REX, ModRM and SIB in 2.1 and 2.2, VEX in 2.3, EVEX in 2.7, compressed displacements in 2.7.5).
//
// Operands are checked where they are made, in every build: a register that does not exist or a displacement that does
// not fit would be another valid instruction. That costs less than what is saved by writing an instruction's bytes at
// once (docs/decisions.md).
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace sparsekernels {
namespace x86 {

[[noreturn]] inline void throw_operand(const char* what, int64_t most, int64_t got) {
  throw std::logic_error(
      std::string("Assembler: expected ") + what + " of at most " + std::to_string(most) + ", got " +
      std::to_string(got));
}

// A register by its number.
template <class Kind>
class NumberedRegister {
 public:
  explicit constexpr NumberedRegister(int64_t number) : number_(static_cast<uint8_t>(number)) {
    if (number < 0 || number > Kind::kMost) throw_operand(Kind::kName, Kind::kMost, number);
  }
  constexpr int number() const { return number_; }

 private:
  uint8_t number_;
};

struct GprKind {
  static constexpr int64_t kMost = 15;
  static constexpr const char* kName = "a general-purpose register";
};
struct ZmmKind {
  static constexpr int64_t kMost = 31;
  static constexpr const char* kName = "a zmm register";
};
struct MaskKind {
  static constexpr int64_t kMost = 7;
  static constexpr const char* kName = "a mask register";
};
using Gpr = NumberedRegister<GprKind>;    // 64 bits, or their lower 32 where the mnemonic ends in 32
using Zmm = NumberedRegister<ZmmKind>;    // 16 floats
using Mask = NumberedRegister<MaskKind>;  // as what an instruction is masked by, k0 is none

inline constexpr Gpr rax{0}, rcx{1}, rdx{2}, rbx{3}, rsp{4}, rbp{5}, rsi{6}, rdi{7};
inline constexpr Gpr r8{8}, r9{9}, r10{10}, r11{11}, r12{12}, r13{13}, r14{14}, r15{15};

// The memory at [base + displacement]. The displacement takes no byte, one or four: as few as hold it, or at least
// `least_bytes`.
struct Mem {
  constexpr Mem(Gpr base, int64_t displacement, int least_bytes = 0)
      : base(base), displacement(static_cast<int32_t>(displacement)), least_bytes(least_bytes) {
    if (displacement != this->displacement) throw_operand("a displacement", INT32_MAX, displacement);
  }

  Gpr base;
  int32_t displacement;
  int least_bytes;
};

// The memory at [base + index].
struct IndexedMem {
  constexpr IndexedMem(Gpr base, Gpr index) : base(base), index(index) {
    if (index.number() == rsp.number()) throw_operand("an index other than rsp, number", 0, index.number());
  }

  Gpr base, index;
};

}  // namespace x86

class Assembler {
 public:
  using Gpr = x86::Gpr;
  using Zmm = x86::Zmm;
  using Mask = x86::Mask;
  using Mem = x86::Mem;
  using IndexedMem = x86::IndexedMem;

  // Loads and stores. Where a mask has no bit, memory is not touched.
  void vmovups(Zmm to, Mem from) { evex(kVmovupsLoad, to, kUnused, from, 64); }
  void vmovups_z(Zmm to, Mask mask, Mem from) { evex(kVmovupsLoad, to, kUnused, from, 64, mask, kZeroing); }
  void vmovups(Zmm to, IndexedMem from) { evex(kVmovupsLoad, to, from, kNoMask); }
  void vmovups_z(Zmm to, Mask mask, IndexedMem from) { evex(kVmovupsLoad, to, from, mask); }
  void vbroadcastss(Zmm to, Mem from) {
    evex_prefix(kVbroadcastss, to, kUnused, from.base.number() < 8, true, false, kNoMask, 0);
    memory(to.number(), from, 4);
  }
  void vmovups(Mem to, Zmm from) { evex(kVmovupsStore, from, kUnused, to, 64); }
  void vmovups(Mem to, Mask mask, Zmm from) { evex(kVmovupsStore, from, kUnused, to, 64, mask); }

  void vaddps(Zmm to, Zmm a, Zmm b) { evex(kVaddps, to, a, b); }
  void vaddps(Zmm to, Zmm a, Mem b) { evex(kVaddps, to, a, b, 64); }
  void vaddps(Zmm to, Mask mask, Zmm a, Mem b) { evex(kVaddps, to, a, b, 64, mask); }
  void vaddps_bcst(Zmm to, Zmm a, Mem b) { evex(kVaddps, to, a, b, 4); }
  void vmulps(Zmm to, Zmm a, Zmm b) { evex(kVmulps, to, a, b); }
  void vmulps_bcst(Zmm to, Zmm a, Mem b) { evex(kVmulps, to, a, b, 4); }
  void vfmadd231ps(Zmm sum, Zmm a, Zmm b) { evex(kVfmadd231ps, sum, a, b); }
  void vfmadd231ps(Zmm sum, Zmm a, Mem b) { evex(kVfmadd231ps, sum, a, b, 64); }
  void vfmadd231ps_bcst(Zmm sum, Zmm a, Mem b) { evex(kVfmadd231ps, sum, a, b, 4); }
  // Where either is NaN, these give b.
  void vmaxps(Zmm to, Zmm a, Zmm b) { evex(kVmaxps, to, a, b); }
  void vminps(Zmm to, Zmm a, Zmm b) { evex(kVminps, to, a, b); }

  void vblendmps(Zmm to, Mask mask, Zmm a, Zmm b) { evex(kVblendmps, to, a, b, mask); }  // b where the mask has a bit
  void vshufps(Zmm to, Zmm a, Zmm b, uint8_t places) {
    evex(kVshufps, to, a, b);
    byte(places);
  }
  void vshuff32x4(Zmm to, Zmm a, Zmm b, uint8_t places) {
    evex(kVshuff32x4, to, a, b);
    byte(places);
  }
  void vpxord(Zmm to, Zmm a, Zmm b) { evex(kVpxord, to, a, b); }

  void kmovw(Mask to, Mem from) {
    reserve();
    if (from.base.number() < 8) {
      vex2(to.number());
    } else {
      vex3(to.number(), from.base.number());
    }
    byte(0x90);
    memory(to.number(), from);
  }
  void kmovw(Mask to, Gpr from) {
    reserve();
    if (from.number() < 8) {
      vex2(to.number());
    } else {
      vex3(to.number(), from.number());
    }
    byte(0x92);
    both(to.number(), from.number());
  }
  void vzeroupper() {
    reserve();
    vex2(0);
    byte(0x77);
  }

  void mov(Gpr to, Gpr from) { rex_both(0x89, from.number(), to); }
  void mov(Gpr to, Mem from) {
    reserve();
    rex(true, to.number(), from.base.number());
    byte(0x8b);
    memory(to.number(), from);
  }
  void movsxd(Gpr to, Mem from) {  // 32 bits, their sign extended
    reserve();
    rex(true, to.number(), from.base.number());
    byte(0x63);
    memory(to.number(), from);
  }
  void imul32(Gpr to, Mem from, int8_t factor) {  // clears the upper half
    reserve();
    rex(false, to.number(), from.base.number());
    byte(0x6b);
    memory(to.number(), from);
    put(factor);
  }
  void mov(Gpr to, uint64_t value) {
    reserve();
    rex(true, 0, to.number());
    byte(0xb8 | (to.number() & 7));
    put(value);
  }
  void mov32(Gpr to, uint32_t value) {  // clears the upper half
    reserve();
    rex(false, 0, to.number());
    byte(0xb8 | (to.number() & 7));
    put(value);
  }
  void add(Gpr to, Gpr from) { rex_both(0x01, from.number(), to); }
  void add(Gpr to, Mem from) {
    reserve();
    rex(true, to.number(), from.base.number());
    byte(0x03);
    memory(to.number(), from);
  }
  void add(Gpr to, int64_t value) {
    const int32_t immediate = static_cast<int32_t>(value);
    if (immediate != value) x86::throw_operand("an immediate", INT32_MAX, value);
    rex_both(0x81, 0, to);
    put(immediate);
  }
  void sub(Gpr to, int8_t value) {
    rex_both(0x83, 5, to);
    put(value);
  }
  void test(Gpr a, Gpr b) { rex_both(0x85, b.number(), a); }
  void push(Gpr one) {
    reserve();
    rex(false, 0, one.number());
    byte(0x50 | (one.number() & 7));
  }
  void pop(Gpr one) {
    reserve();
    rex(false, 0, one.number());
    byte(0x58 | (one.number() & 7));
  }
  void prefetcht1(Mem line) {
    reserve();
    rex(false, 0, line.base.number());
    byte(0x0f);
    byte(0x18);
    memory(2, line);
  }

  // To code that is written already. `place`: size() before it.
  void jnz(size_t place) {
    reserve();
    byte(0x0f);
    byte(0x85);
    relative(place);
  }
  void call(size_t place) {
    reserve();
    byte(0xe8);
    relative(place);
  }
  void call(Gpr function) {
    reserve();
    rex(false, 0, function.number());
    byte(0xff);
    both(2, function.number());
  }
  void ret() {
    reserve();
    byte(0xc3);
  }
  void int3() {  // traps
    reserve();
    byte(0xcc);
  }
  // Forward jump of at most 127 bytes. Takes its target from `land`, which is given what this returns.
  size_t jz() {
    reserve();
    byte(0x74);
    byte(0);
    return size_;
  }
  void land(size_t jump) {
    if (size_ - jump > 127) x86::throw_operand("a short jump", 127, static_cast<int64_t>(size_ - jump));
    bytes_[jump - 1] = static_cast<uint8_t>(size_ - jump);
  }
  // The same, of any distance; for `land_far`.
  size_t jz_far() {
    reserve();
    byte(0x0f);
    byte(0x84);
    put(int32_t{0});
    return size_;
  }
  void land_far(size_t jump) {
    const int64_t distance = static_cast<int64_t>(size_) - static_cast<int64_t>(jump);
    const int32_t near = static_cast<int32_t>(distance);
    if (near != distance) x86::throw_operand("a jump", INT32_MAX, distance);
    std::memcpy(&bytes_[jump - sizeof near], &near, sizeof near);
  }
  // To the next multiple of 64 bytes, with instructions that trap.
  void align() {
    while (size_ % 64 != 0) int3();
  }

  const uint8_t* code() const { return bytes_.data(); }
  size_t size() const { return size_; }

 private:
  // What names an EVEX instruction: the opcode and its map, the prefix that is part of it, whether elements have 64
  // bits.
  enum Map { kMap0F = 1, kMap0F38 = 2, kMap0F3A = 3 };
  enum Prefix { kNone = 0, k66 = 1 };
  struct Form {
    Map map;
    Prefix prefix;
    uint8_t opcode;
  };
  static constexpr Form kVmovupsLoad{kMap0F, kNone, 0x10}, kVmovupsStore{kMap0F, kNone, 0x11};
  static constexpr Form kVaddps{kMap0F, kNone, 0x58}, kVmulps{kMap0F, kNone, 0x59};
  static constexpr Form kVminps{kMap0F, kNone, 0x5d}, kVmaxps{kMap0F, kNone, 0x5f};
  static constexpr Form kVshufps{kMap0F, kNone, 0xc6}, kVpxord{kMap0F, k66, 0xef};
  static constexpr Form kVbroadcastss{kMap0F38, k66, 0x18};
  static constexpr Form kVblendmps{kMap0F38, k66, 0x65}, kVfmadd231ps{kMap0F38, k66, 0xb8};
  static constexpr Form kVshuff32x4{kMap0F3A, k66, 0x23};
  static constexpr int kZeroing = 0x80;
  static constexpr Zmm kUnused{0};
  static constexpr Mask kNoMask{0};

  void reserve() {
    constexpr size_t kLongestInstruction = 16;
    if (size_ + kLongestInstruction > bytes_.size()) bytes_.resize(2 * bytes_.size() + 4096);
  }
  void byte(int value) { bytes_[size_++] = static_cast<uint8_t>(value); }
  template <class T>
  void put(T value) {  // little-endian, as the processor is
    std::memcpy(&bytes_[size_], &value, sizeof value);
    size_ += sizeof value;
  }
  void relative(size_t place) {  // from the end of the four bytes
    const int64_t distance = static_cast<int64_t>(place) - static_cast<int64_t>(size_ + 4);
    const int32_t near = static_cast<int32_t>(distance);
    if (near != distance) x86::throw_operand("a jump", INT32_MAX, distance);
    put(near);
  }

  // Fourth bits of ModRM's two fields, where there are any or operands have 64 bits.
  void rex(bool wide, int reg, int last) {
    const int bits = wide << 3 | reg >> 3 << 2 | last >> 3;
    if (bits != 0) byte(0x40 | bits);
  }
  void both(int reg, int last) { byte(0xc0 | (reg & 7) << 3 | (last & 7)); }
  void rex_both(int opcode, int reg, Gpr last) {
    reserve();
    rex(true, reg, last.number());
    byte(opcode);
    both(reg, last.number());
  }
  // Of 128 bits, map 0F, no prefix, no second source.
  void vex2(int reg) {
    byte(0xc5);
    byte((reg < 8) << 7 | 0x78);
  }
  void vex3(int reg, int last) {
    byte(0xc4);
    byte((reg < 8) << 7 | 1 << 6 | (last < 8) << 5 | kMap0F);
    byte(0x78);
  }
  // ModRM, SIB and displacement. `unit`: of a displacement of one byte.
  void memory(int reg, Mem at, int32_t unit = 1) {
    const int base = at.base.number() & 7;
    const int fields = (reg & 7) << 3 | base;
    constexpr int kRsp = 4, kRbp = 5;  // and r12, r13
    const bool fits = at.displacement % unit == 0 && at.displacement / unit >= -128 && at.displacement / unit <= 127;
    const int bytes = at.least_bytes > 1 || !fits                                  ? 4
                      : at.least_bytes > 0 || at.displacement != 0 || base == kRbp ? 1
                                                                                   : 0;
    byte((bytes == 4 ? 0x80 : bytes == 1 ? 0x40 : 0) | fields);
    if (base == kRsp) byte(0x24);
    if (bytes == 1) byte(at.displacement / unit);
    if (bytes == 4) put(at.displacement);
  }
  // Four bytes and the opcode of a 512-bit instruction with 32-bit elements. `b` and `x` are the inverted high bits of
  // the last operand, `broadcast` that it is one element.
  void evex_prefix(Form form, Zmm reg, Zmm second, bool b, bool x, bool broadcast, Mask mask, int zeroing) {
    reserve();
    const int r = reg.number(), v = second.number();
    const uint32_t prefix =
        0x62u | static_cast<uint32_t>(((r & 8) == 0) << 7 | x << 6 | b << 5 | ((r & 16) == 0) << 4 | form.map) << 8 |
        static_cast<uint32_t>((~v & 15) << 3 | 4 | form.prefix) << 16 |
        static_cast<uint32_t>(
            mask.number() | (mask.number() == 0 ? 0 : zeroing) | 2 << 5 | broadcast << 4 | ((v & 16) == 0) << 3)
            << 24;
    put(prefix);
    byte(form.opcode);
  }
  void evex(Form form, Zmm reg, Zmm second, Zmm last, Mask mask = kNoMask) {
    evex_prefix(form, reg, second, (last.number() & 8) == 0, (last.number() & 16) == 0, false, mask, 0);
    both(reg.number(), last.number());
  }
  // `unit`: bytes that the operand has; 4 where it is one float for all lanes.
  void evex(Form form, Zmm reg, Zmm second, Mem last, int32_t unit, Mask mask = kNoMask, int zeroing = 0) {
    evex_prefix(form, reg, second, last.base.number() < 8, true, unit == 4, mask, zeroing);
    memory(reg.number(), last, unit);
  }

  // 64 bytes at [base + index]; lanes that `mask` has not are zeros.
  void evex(Form form, Zmm reg, IndexedMem last, Mask mask) {
    const int base = last.base.number(), index = last.index.number();
    evex_prefix(form, reg, kUnused, base < 8, index < 8, false, mask, kZeroing);
    constexpr int kSib = 4, kRbp = 5;  // and r13: without a displacement they are none
    const bool has_byte = (base & 7) == kRbp;
    byte((has_byte ? 0x40 : 0) | (reg.number() & 7) << 3 | kSib);
    byte((index & 7) << 3 | (base & 7));
    if (has_byte) byte(0);
  }

  std::vector<uint8_t> bytes_;
  size_t size_ = 0;
};

}  // namespace sparsekernels
