// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What the assembler writes, against the bytes that GNU as gives (golden_encodings.inc, written by make_golden.py), and
// what it refuses to write.
#include <cstdint>
#include <stdexcept>
#include <string>

#include "base/jit/assembler.h"
#include "check.h"

namespace sparsekernels {
namespace tests {
namespace {

using x86::Gpr;
using x86::IndexedMem;
using x86::Mask;
using x86::Mem;
using x86::Zmm;

enum class Form {
  vmovups_load,
  vmovups_z,
  vmovups_indexed,
  vmovups_indexed_z,
  vbroadcastss,
  vmovups_store,
  vmovups_store_k,
  vaddps,
  vaddps_m,
  vaddps_mk,
  vaddps_bcst,
  vmulps,
  vmulps_bcst,
  vfmadd231ps,
  vfmadd231ps_m,
  vfmadd231ps_bcst,
  vmaxps,
  vminps,
  vpxord,
  vshufps,
  vshuff32x4,
  vblendmps,
  vzeroupper,
  kmovw_m,
  kmovw_r,
  mov,
  mov_m,
  imul32,
  movsxd,
  mov_imm64,
  mov32,
  add,
  add_m,
  add_imm,
  sub_imm,
  test,
  push,
  pop,
  prefetcht1,
  call_r,
  call_back,
  jnz_back,
  jz_ahead,
  jz_far,
  ret,
};

struct Golden {
  Form form;
  int64_t operands[5];
  const char* bytes;
  const char* text;
};

constexpr Golden kTable[] = {
#include "golden_encodings.inc"
};

void put_traps(Assembler& code, int64_t bytes) {
  for (int64_t i = 0; i < bytes; ++i) code.int3();
}

// Where in the code the instruction begins.
size_t write(const Golden& row, Assembler& code) {
  const auto& o = row.operands;
  const auto zmm = [&](size_t i) { return Zmm(o[i]); };
  const auto gpr = [&](size_t i) { return Gpr(o[i]); };
  const auto mask = [&](size_t i) { return Mask(o[i]); };
  const auto mem = [&](size_t i) { return Mem(gpr(i), o[i + 1]); };
  const auto mem_of = [&](size_t i) { return Mem(gpr(i), o[i + 1], static_cast<int>(o[i + 2])); };
  const auto places = [&] { return static_cast<uint8_t>(o[3]); };
  switch (row.form) {
    case Form::vmovups_load:
      code.vmovups(zmm(0), mem(1));
      break;
    case Form::vmovups_z:
      code.vmovups_z(zmm(0), mask(1), mem(2));
      break;
    case Form::vmovups_indexed:
      code.vmovups(zmm(0), IndexedMem(gpr(1), gpr(2)));
      break;
    case Form::vmovups_indexed_z:
      code.vmovups_z(zmm(0), mask(1), IndexedMem(gpr(2), gpr(3)));
      break;
    case Form::vbroadcastss:
      code.vbroadcastss(zmm(0), mem(1));
      break;
    case Form::vmovups_store:
      code.vmovups(mem(1), zmm(0));
      break;
    case Form::vmovups_store_k:
      code.vmovups(mem(2), mask(1), zmm(0));
      break;
    case Form::vaddps:
      code.vaddps(zmm(0), zmm(1), zmm(2));
      break;
    case Form::vaddps_m:
      code.vaddps(zmm(0), zmm(1), mem(2));
      break;
    case Form::vaddps_mk:
      code.vaddps(zmm(0), mask(1), zmm(2), mem(3));
      break;
    case Form::vaddps_bcst:
      code.vaddps_bcst(zmm(0), zmm(1), mem(2));
      break;
    case Form::vmulps:
      code.vmulps(zmm(0), zmm(1), zmm(2));
      break;
    case Form::vmulps_bcst:
      code.vmulps_bcst(zmm(0), zmm(1), mem(2));
      break;
    case Form::vfmadd231ps:
      code.vfmadd231ps(zmm(0), zmm(1), zmm(2));
      break;
    case Form::vfmadd231ps_m:
      code.vfmadd231ps(zmm(0), zmm(1), mem(2));
      break;
    case Form::vfmadd231ps_bcst:
      code.vfmadd231ps_bcst(zmm(0), zmm(1), mem(2));
      break;
    case Form::vmaxps:
      code.vmaxps(zmm(0), zmm(1), zmm(2));
      break;
    case Form::vminps:
      code.vminps(zmm(0), zmm(1), zmm(2));
      break;
    case Form::vpxord:
      code.vpxord(zmm(0), zmm(1), zmm(2));
      break;
    case Form::vshufps:
      code.vshufps(zmm(0), zmm(1), zmm(2), places());
      break;
    case Form::vshuff32x4:
      code.vshuff32x4(zmm(0), zmm(1), zmm(2), places());
      break;
    case Form::vblendmps:
      code.vblendmps(zmm(0), mask(1), zmm(2), zmm(3));
      break;
    case Form::vzeroupper:
      code.vzeroupper();
      break;
    case Form::kmovw_m:
      code.kmovw(mask(0), mem_of(1));
      break;
    case Form::kmovw_r:
      code.kmovw(mask(0), gpr(1));
      break;
    case Form::mov:
      code.mov(gpr(0), gpr(1));
      break;
    case Form::mov_m:
      code.mov(gpr(0), mem_of(1));
      break;
    case Form::imul32:
      code.imul32(gpr(0), mem(1), static_cast<int8_t>(o[3]));
      break;
    case Form::movsxd:
      code.movsxd(gpr(0), mem(1));
      break;
    case Form::mov_imm64:
      code.mov(gpr(0), static_cast<uint64_t>(o[1]));
      break;
    case Form::mov32:
      code.mov32(gpr(0), static_cast<uint32_t>(o[1]));
      break;
    case Form::add:
      code.add(gpr(0), gpr(1));
      break;
    case Form::add_m:
      code.add(gpr(0), mem(1));
      break;
    case Form::add_imm:
      code.add(gpr(0), o[1]);
      break;
    case Form::sub_imm:
      code.sub(gpr(0), static_cast<int8_t>(o[1]));
      break;
    case Form::test:
      code.test(gpr(0), gpr(1));
      break;
    case Form::push:
      code.push(gpr(0));
      break;
    case Form::pop:
      code.pop(gpr(0));
      break;
    case Form::prefetcht1:
      code.prefetcht1(mem(0));
      break;
    case Form::call_r:
      code.call(gpr(0));
      break;
    case Form::ret:
      code.ret();
      break;
    case Form::call_back:
    case Form::jnz_back: {
      put_traps(code, 3 + o[0]);
      const size_t start = code.size();
      row.form == Form::jnz_back ? code.jnz(3) : code.call(size_t{3});
      return start;
    }
    case Form::jz_ahead: {
      const size_t jump = code.jz();
      put_traps(code, o[0]);
      code.land(jump);
      return 0;
    }
    case Form::jz_far: {
      const size_t jump = code.jz_far();
      put_traps(code, o[0]);
      code.land_far(jump);
      return 0;
    }
  }
  return 0;
}

std::string encoded(const Golden& row) {
  Assembler code;
  const size_t start = write(row, code);
  const size_t end = row.form == Form::jz_ahead ? start + 2 : row.form == Form::jz_far ? start + 6 : code.size();
  std::string hex;
  for (size_t i = start; i < end; ++i)
    for (const int digit : {code.code()[i] >> 4, code.code()[i] & 15}) hex += "0123456789abcdef"[digit];
  return hex;
}

bool refuses(void (*body)(Assembler&)) {
  return throws<std::logic_error>([&] {
    Assembler code;
    body(code);
  });
}

}  // namespace

void test_encodings() {
  for (const Golden& row : kTable) {
    const std::string got = encoded(row);
    if (got != row.bytes) std::fprintf(stderr, "%s\n", row.text);
    CHECK_EQUAL(got, row.bytes);
  }
  CHECK(throws<std::logic_error>([] { Zmm(32); }));
  CHECK(throws<std::logic_error>([] { Zmm(-1); }));
  CHECK(throws<std::logic_error>([] { Mask(8); }));
  CHECK(throws<std::logic_error>([] { Gpr(16); }));
  CHECK(throws<std::logic_error>([] { IndexedMem(x86::rax, x86::rsp); }));
  CHECK(throws<std::logic_error>([] { Mem(x86::rax, int64_t{1} << 31); }));
  CHECK(throws<std::logic_error>([] { Mem(x86::rax, -(int64_t{1} << 31) - 1); }));
  CHECK(refuses([](Assembler& code) { code.add(x86::rax, int64_t{1} << 31); }));
  CHECK(refuses([](Assembler& code) { code.jnz(size_t{1} << 32); }));
  CHECK(refuses([](Assembler& code) {
    const size_t jump = code.jz();
    put_traps(code, 128);
    code.land(jump);
  }));
  Assembler code;
  code.ret();
  code.align();
  CHECK_EQUAL(code.size(), size_t{64});
  code.align();
  CHECK_EQUAL(code.size(), size_t{64});
}

void print_encodings() {
  for (const Golden& row : kTable) std::printf("%s\t%s\n", encoded(row).c_str(), row.text);
}

}  // namespace tests
}  // namespace sparsekernels
