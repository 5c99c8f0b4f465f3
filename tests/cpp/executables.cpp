// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Pages of code: what is in them, and that they are given back.
#include "base/jit/executable.h"

#include <atomic>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#if __has_include(<sys/wait.h>)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "base/jit/assembler.h"
#include "check.h"

namespace sparsekernels {
namespace tests {
namespace {

constexpr size_t kPage = 4096;

// Two sections: the first returns the number, the second has that many pages.
std::unique_ptr<Executable> code_of(uint32_t number, size_t pages = 0) {
  std::vector<Assembler> sections(2);
  sections[0].mov32(x86::rax, number);
  sections[0].ret();
  while (sections[1].size() < pages * kPage) sections[1].align(), sections[1].int3();
  return Executable::make(sections);
}

bool returns(const Executable& code, uint32_t number) {
#if defined(__x86_64__)
  uint32_t (*function)();
  const uint8_t* const entry = code.section(0);
  std::memcpy(&function, &entry, sizeof entry);
  return function() == number;
#else
  return code.size() > 0 && number > 0;
#endif
}

#if defined(__linux__)
// A line of /proc/self/status, in kB; lines of /proc/self/maps.
int64_t status(const std::string& name) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);)
    if (line.compare(0, name.size(), name) == 0) return std::stoll(line.substr(name.size() + 1));
  return -1;
}
int64_t mappings() {
  std::ifstream file("/proc/self/maps");
  int64_t count = 0;
  for (std::string line; std::getline(file, line);) ++count;
  return count;
}
#endif

// Every other one of very many goes: its memory as well, and the process does not run out of mappings.
void check_given_back() {
  constexpr uint32_t kMany = 8192;
  std::vector<std::unique_ptr<Executable>> codes;
  for (uint32_t i = 0; i < kMany; ++i) codes.push_back(code_of(i));
#if defined(__linux__)
  const int64_t bytes = status("RssAnon:"), before = mappings();
#endif
  for (uint32_t i = 0; i < kMany; i += 2) codes[i].reset();
#if defined(__linux__)
  CHECK(status("RssAnon:") <= bytes - static_cast<int64_t>(kMany / 2 * kPage / 1024) * 3 / 4);
  CHECK(mappings() <= before + 16);
#endif
  for (uint32_t i = 1; i < kMany; i += 2) CHECK(returns(*codes[i], i));
  for (uint32_t i = 0; i < kMany; i += 2) codes[i] = code_of(i);  // where others were
#if defined(__linux__)
  CHECK(mappings() <= before + 16);
  const int64_t addresses = status("VmSize:");
#endif
  for (uint32_t i = 0; i < kMany; ++i) CHECK(returns(*codes[i], i));
  codes.clear();
#if defined(__linux__)
  CHECK(status("VmSize:") <= addresses - static_cast<int64_t>(kMany * kPage / 1024) * 3 / 4);
#endif
}

void check_sizes() {
  std::mt19937 random(0);
  std::vector<std::unique_ptr<Executable>> codes(64);
  std::vector<uint32_t> numbers(codes.size());
  for (uint32_t i = 1; i < 1000; ++i) {
    const size_t place = random() % codes.size();
    if (codes[place] != nullptr) CHECK(returns(*codes[place], numbers[place]));
    // in an arena, or beside
    codes[place] = code_of(numbers[place] = i, random() % 8 == 0 ? random() % 200 : random() % 20);
    CHECK_EQUAL(reinterpret_cast<uintptr_t>(codes[place]->section(0)) % kPage, size_t{0});
    for (size_t at = 0; at < codes.size(); ++at) {
      if (at == place || codes[at] == nullptr) continue;
      const uint8_t* const one = codes[at]->section(0);
      const uint8_t* const other = codes[place]->section(0);
      CHECK(one + codes[at]->size() <= other || other + codes[place]->size() <= one);
    }
  }
  for (size_t at = 0; at < codes.size(); ++at) CHECK(codes[at] == nullptr || returns(*codes[at], numbers[at]));
}

// Threads make and destroy code while children of the process do.
void check_threads() {
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  const auto work = [&](uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<std::unique_ptr<Executable>> codes(16);
    std::vector<uint32_t> numbers(codes.size());
    for (int i = 0; i < 500; ++i) {
      const size_t place = random() % codes.size();
      if (codes[place] != nullptr && !returns(*codes[place], numbers[place])) ++wrong;
      codes[place] = code_of(numbers[place] = static_cast<uint32_t>(random()) | 1, random() % 4);
    }
  };
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 3; ++t)
    threads.emplace_back([&, t] {
      for (uint32_t turn = 0; !stop; ++turn) work(t + 100 * turn);
    });
  int failed = 0;
#if __has_include(<sys/wait.h>)
  for (uint32_t i = 0; i < 30; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);
      wrong = 0;
      work(1000 + i);
      _exit(wrong == 0 ? 0 : 1);
    }
    int code = 1;
    waitpid(child, &code, 0);
    failed += code != 0;
  }
#else
  work(1000);
#endif
  stop = true;
  for (std::thread& thread : threads) thread.join();
  CHECK_EQUAL(failed, 0);
  CHECK_EQUAL(wrong.load(), 0);
}

}  // namespace

void test_executables() {
  if (code_of(1) == nullptr) return;  // this system has no executable memory for us
  check_given_back();
  check_sizes();
  check_threads();
}

}  // namespace tests
}  // namespace sparsekernels
