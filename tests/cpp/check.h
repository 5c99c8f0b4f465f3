// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Checks that count, and go on: a test's function calls CHECK, main.cpp calls the functions.
#pragma once

#include <cstdio>
#include <sstream>

namespace sparsekernels {
namespace tests {

inline int failures = 0, checks = 0;

template <class A, class B>
void check_equal(const A& got, const B& expected, const char* text, const char* file, int line) {
  ++checks;
  if (got == expected) return;
  std::ostringstream words;
  words << file << ":" << line << ": " << text << ": expected " << expected << ", got " << got;
  constexpr int kMostPrinted = 50;
  if (++failures <= kMostPrinted) std::fprintf(stderr, "%s\n", words.str().c_str());
}

// Holds where an expression throws what is asked for.
template <class Exception, class Body>
bool throws(Body body) {
  try {
    body();
  } catch (const Exception&) {
    return true;
  }
  return false;
}

#define CHECK(condition) ::sparsekernels::tests::check_equal(bool(condition), true, #condition, __FILE__, __LINE__)
#define CHECK_EQUAL(got, expected) ::sparsekernels::tests::check_equal(got, expected, #got, __FILE__, __LINE__)

// One for each file.
void test_encodings();
void test_lattices();
void test_layouts();
void test_caches();
void test_plans();
void test_rows_alike();
void test_engines();
void test_executables();

// Writes what the assembler makes of each row of the golden table: its bytes and its text, tab between.
void print_encodings();

}  // namespace tests
}  // namespace sparsekernels
