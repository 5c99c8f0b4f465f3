// Writes the handful of AVX-512 instructions that programs are made of. Encodings: Intel 64 and IA-32 Architectures
// Software Developer's Manual, volume 2, sections 2.7 (EVEX) and 2.7.5 (compressed displacements).
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace sparsekernels {

enum class Register { kRcx = 1, kRdx = 2, kRsi = 6, kRdi = 7 };  // that hold addresses

// Vectors are zmm0 to zmm31, masks k1 to k7, by number.
class Assembler {
 public:
  // zmm = 16 floats at [base + displacement]
  void load(int zmm, Register base, int32_t displacement) {
    memory(kMap0F, kNone, 0x10, zmm, 0, base, displacement, 64);
  }
  // The same where the mask has a bit, else zero; what lies elsewhere is not touched.
  void load(int zmm, int mask, Register base, int32_t displacement) {
    memory(kMap0F, kNone, 0x10, zmm, 0, base, displacement, 64, mask | 0x80);
  }
  // mask = 16 bits at [base + displacement]
  void load_mask(int mask, Register base, int8_t displacement) {
    reserve();
    byte(0xc5);
    byte(0xf8);
    byte(0x90);
    byte(0x40 | mask << 3 | static_cast<int>(base));
    byte(displacement);
  }
  void store(int zmm, Register base, int32_t displacement) {
    memory(kMap0F, kNone, 0x11, zmm, 0, base, displacement, 64);
  }
  // sum = sum + 16 floats at [base + displacement]
  void add(int sum, Register base, int32_t displacement) {
    memory(kMap0F, kNone, 0x58, sum, sum, base, displacement, 64);
  }
  // product = x * the float at [base + displacement]
  void multiply(int product, int x, Register base, int32_t displacement) {
    memory(kMap0F, kNone, 0x59, product, x, base, displacement, 4);
  }
  // sum = sum + x * the float at [base + displacement], rounded once
  void multiply_add(int sum, int x, Register base, int32_t displacement) {
    memory(kMap0F38, k66, 0xb8, sum, x, base, displacement, 4);
  }
  void clear(int zmm) {  // vpxord
    reserve();
    evex(kMap0F, k66, zmm, zmm, (zmm & 8) == 0, (zmm & 16) == 0, false);
    byte(0xef);
    byte(0xc0 | (zmm & 7) << 3 | (zmm & 7));
  }
  void advance(Register address, int32_t bytes) {  // add r64, imm32
    reserve();
    byte(0x48);
    byte(0x81);
    byte(0xc0 | static_cast<int>(address));
    word(bytes);
  }
  void leave() {  // vzeroupper; ret
    reserve();
    byte(0xc5);
    byte(0xf8);
    byte(0x77);
    byte(0xc3);
  }
  // To the next multiple of 64 bytes, with instructions that trap.
  void align() {
    while (size_ % 64 != 0) {
      reserve();
      byte(0xcc);
    }
  }

  const uint8_t* code() const { return bytes_.data(); }
  size_t size() const { return size_; }

 private:
  enum Map { kMap0F = 1, kMap0F38 = 2 };
  enum Prefix { kNone = 0, k66 = 1 };

  void byte(int value) { bytes_[size_++] = static_cast<uint8_t>(value); }
  void word(int32_t value) {
    std::memcpy(&bytes_[size_], &value, 4);
    size_ += 4;
  }
  void reserve() {
    constexpr size_t kLongestInstruction = 16;
    if (size_ + kLongestInstruction > bytes_.size()) bytes_.resize(2 * bytes_.size() + 4096);
  }
  // The four bytes before the opcode of a 512-bit instruction with 32-bit elements. `b` and `x` are the inverted high
  // bits of the last operand, `broadcast` that it is one element, `masking` the number of a mask and the bit that makes
  // the rest zero.
  void evex(Map map, Prefix prefix, int reg, int second, bool b, bool x, bool broadcast, int masking = 0) {
    byte(0x62);
    byte(((reg & 8) == 0) << 7 | x << 6 | b << 5 | ((reg & 16) == 0) << 4 | map);
    byte((~second & 15) << 3 | 4 | prefix);
    byte(masking | 2 << 5 | broadcast << 4 | ((second & 16) == 0) << 3);
  }
  // `unit`: of a displacement that fits one byte; 4 where the operand is one float for all lanes.
  void memory(
      Map map, Prefix prefix, int opcode, int reg, int second, Register base, int32_t displacement, int32_t unit,
      int masking = 0) {
    reserve();
    evex(map, prefix, reg, second, true, true, unit == 4, masking);
    byte(opcode);
    const int fields = (reg & 7) << 3 | static_cast<int>(base);
    if (displacement == 0) {
      byte(fields);
    } else if (displacement % unit == 0 && displacement / unit >= -128 && displacement / unit <= 127) {
      byte(0x40 | fields);
      byte(displacement / unit);
    } else {
      byte(0x80 | fields);
      word(displacement);
    }
  }

  std::vector<uint8_t> bytes_;
  size_t size_ = 0;
};

}  // namespace sparsekernels
