// Writes the handful of AVX-512 instructions that kernels are made of. Encodings: Intel 64 and IA-32 Architectures
// Software Developer's Manual, volume 2, sections 2.7 (EVEX) and 2.7.5 (compressed displacements).
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace sparsekernels {

enum class Register { kRax, kRcx, kRdx, kRsi = 6, kRdi, kR8, kR9, kR10, kR11 };  // not all may stand for a base

// Vectors are zmm0 to zmm31, masks k1 to k7, by number.
class Assembler {
 public:
  // zmm = 16 floats at [base + displacement]; with a mask, zero where it has no bit, and what lies there is not
  // touched. Mask 0 is none.
  void load(int zmm, int mask, Register base, int32_t displacement) {
    memory(kMap0F, kNone, 0x10, zmm, 0, base, displacement, 64, mask == 0 ? 0 : mask | 0x80);
  }
  // mask = 16 bits at [base + displacement]
  void load_mask(int mask, Register base, int8_t displacement) {
    reserve();
    byte(0xc5);
    byte(0xf8);
    byte(0x90);
    byte(0x40 | mask << 3 | number(base));
    byte(displacement);
  }
  void store(int zmm, Register base, int32_t displacement) {
    memory(kMap0F, kNone, 0x11, zmm, 0, base, displacement, 64);
  }
  // The same where the mask has a bit; what lies elsewhere is not touched.
  void store(int zmm, int mask, Register base, int32_t displacement) {
    memory(kMap0F, kNone, 0x11, zmm, 0, base, displacement, 64, mask);
  }
  // sum = sum + 16 floats at [base + displacement]
  void add(int sum, Register base, int32_t displacement) {
    memory(kMap0F, kNone, 0x58, sum, sum, base, displacement, 64);
  }
  // The same where the mask has a bit; what lies elsewhere is not touched.
  void add(int sum, int mask, Register base, int32_t displacement) {
    memory(kMap0F, kNone, 0x58, sum, sum, base, displacement, 64, mask);
  }
  // sum = sum + the float at [base + displacement]
  void add_float(int sum, Register base, int32_t displacement) {
    memory(kMap0F, kNone, 0x58, sum, sum, base, displacement, 4);
  }
  // product = x * the float at [base + displacement]
  void multiply(int product, int x, Register base, int32_t displacement) {
    memory(kMap0F, kNone, 0x59, product, x, base, displacement, 4);
  }
  // sum = sum + x * the float at [base + displacement], rounded once
  void multiply_add(int sum, int x, Register base, int32_t displacement) {
    memory(kMap0F38, k66, 0xb8, sum, x, base, displacement, 4);
  }
  // sum = sum + x * 16 floats at [base + displacement], rounded once
  void multiply_add_line(int sum, int x, Register base, int32_t displacement) {
    memory(kMap0F38, k66, 0xb8, sum, x, base, displacement, 64);
  }
  void add(int sum, int a, int b) { registers(kMap0F, kNone, 0x58, sum, a, b); }
  // The larger, or smaller, of two; b where either is NaN.
  void maximum(int to, int a, int b) { registers(kMap0F, kNone, 0x5f, to, a, b); }
  void minimum(int to, int a, int b) { registers(kMap0F, kNone, 0x5d, to, a, b); }
  // Element by element: where the mask has a bit that of b, else that of a.
  void blend(int to, int a, int b, int mask) { registers(kMap0F38, k66, 0x65, to, a, b, mask); }
  // Of each quarter, or of the whole in quarters: two elements of a, then two of b. Each has two bits of `places`.
  void shuffle(int to, int a, int b, int places) {  // vshufps
    registers(kMap0F, kNone, 0xc6, to, a, b);
    byte(places);
  }
  void shuffle_quarters(int to, int a, int b, int places) {  // vshuff32x4
    registers(kMap0F3A, k66, 0x23, to, a, b);
    byte(places);
  }
  void clear(int zmm) {  // vpxord
    registers(kMap0F, k66, 0xef, zmm, zmm, zmm);
  }
  void set_mask(int mask, int32_t bits) {  // mov eax, imm32; kmovw k, eax
    reserve();
    byte(0xb8);
    word(bits);
    byte(0xc5);
    byte(0xf8);
    byte(0x92);
    byte(0xc0 | mask << 3);
  }
  void move(Register to, Register from) {  // mov r64, r64
    reserve();
    byte(0x48 | (number(from) >> 3) << 2 | number(to) >> 3);
    byte(0x89);
    byte(0xc0 | (number(from) & 7) << 3 | (number(to) & 7));
  }
  void load(Register to, Register base, int32_t displacement) {  // mov r64, [base + disp32]
    reserve();
    byte(0x48 | (number(to) >> 3) << 2 | number(base) >> 3);
    byte(0x8b);
    byte(0x80 | (number(to) & 7) << 3 | (number(base) & 7));
    word(displacement);
  }
  void add(Register to, Register from) {  // add r64, r64
    reserve();
    byte(0x48 | (number(from) >> 3) << 2 | number(to) >> 3);
    byte(0x01);
    byte(0xc0 | (number(from) & 7) << 3 | (number(to) & 7));
  }
  // Counts down, and goes back to `place` unless the counter is 0 now.
  void loop(Register counter, size_t place) {  // sub r64, 1; jnz rel32
    reserve();
    byte(0x48 | number(counter) >> 3);
    byte(0x83);
    byte(0xe8 | (number(counter) & 7));
    byte(1);
    byte(0x0f);
    byte(0x85);
    word(static_cast<int32_t>(static_cast<int64_t>(place) - static_cast<int64_t>(size_ + 4)));
  }
  void call(size_t place) {  // call rel32
    reserve();
    byte(0xe8);
    word(static_cast<int32_t>(static_cast<int64_t>(place) - static_cast<int64_t>(size_ + 4)));
  }
  void push(Register one) {
    reserve();
    if (number(one) >= 8) byte(0x41);
    byte(0x50 | (number(one) & 7));
  }
  void pop(Register one) {
    reserve();
    if (number(one) >= 8) byte(0x41);
    byte(0x58 | (number(one) & 7));
  }
  // address = what lies on the stack, `bytes` above its top
  void load_from_stack(Register address, int8_t bytes) {  // mov r64, [rsp + disp8]
    reserve();
    byte(0x48);
    byte(0x8b);
    byte(0x44 | number(address) << 3);
    byte(0x24);
    byte(bytes);
  }
  // Jumps to where `land` is told to, if the register is zero.
  size_t skip_if_zero(Register one) {  // test r64, r64; jz rel8
    reserve();
    byte(0x48);
    byte(0x85);
    byte(0xc0 | number(one) << 3 | number(one));
    byte(0x74);
    byte(0);
    return size_;
  }
  void land(size_t skip) {
    if (size_ - skip > 127) throw std::logic_error("Assembler: a jump of a byte does not reach");
    bytes_[skip - 1] = static_cast<uint8_t>(size_ - skip);
  }
  // A function of the process, by way of rax.
  template <class Argument>
  void call_function(void (*function)(Argument) noexcept) {  // mov rax, imm64; call rax
    reserve();
    static_assert(sizeof function == 8 || sizeof function == 4, "an address");
    uint64_t address = 0;
    std::memcpy(&address, &function, sizeof function);
    byte(0x48);
    byte(0xb8);
    std::memcpy(&bytes_[size_], &address, 8);
    size_ += 8;
    byte(0xff);
    byte(0xd0);
  }
  void finish_call() {  // ret
    reserve();
    byte(0xc3);
  }
  // The code that `bytes` behind the return address begins comes up to L2, so many lines. Changes rax.
  void fetch_code(int32_t bytes, int lines) {  // mov rax, [rsp]; prefetcht1 [rax + disp32]
    reserve();
    for (const int one : {0x48, 0x8b, 0x04, 0x24}) byte(one);
    for (int i = 0; i < lines; ++i) {
      reserve();
      byte(0x0f);
      byte(0x18);
      byte(0x90);
      word(bytes + 64 * i);
    }
  }
  void advance(Register address, int32_t bytes) {  // add r64, imm32
    reserve();
    byte(0x48);
    byte(0x81);
    byte(0xc0 | number(address));
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
  enum Map { kMap0F = 1, kMap0F38 = 2, kMap0F3A = 3 };
  enum Prefix { kNone = 0, k66 = 1 };

  static int number(Register one) { return static_cast<int>(one); }
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
  // `work_item`: of a displacement that fits one byte; 4 where the operand is one float for all lanes.
  void registers(Map map, Prefix prefix, int opcode, int reg, int second, int last, int masking = 0) {
    reserve();
    evex(map, prefix, reg, second, (last & 8) == 0, (last & 16) == 0, false, masking);
    byte(opcode);
    byte(0xc0 | (reg & 7) << 3 | (last & 7));
  }
  void memory(
      Map map, Prefix prefix, int opcode, int reg, int second, Register base, int32_t displacement, int32_t work_item,
      int masking = 0) {
    reserve();
    evex(map, prefix, reg, second, number(base) < 8, true, work_item == 4, masking);
    byte(opcode);
    const int fields = (reg & 7) << 3 | (number(base) & 7);
    if (displacement == 0) {
      byte(fields);
    } else if (displacement % work_item == 0 && displacement / work_item >= -128 && displacement / work_item <= 127) {
      byte(0x40 | fields);
      byte(displacement / work_item);
    } else {
      byte(0x80 | fields);
      word(displacement);
    }
  }

  std::vector<uint8_t> bytes_;
  size_t size_ = 0;
};

}  // namespace sparsekernels
