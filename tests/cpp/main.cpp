// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Runs every test; prints the assembler's encodings instead with --encodings, for a disassembler.
#include <cstring>

#include "check.h"

int main(int count, char** arguments) {
  using namespace sparsekernels::tests;
  if (count == 2 && std::strcmp(arguments[1], "--encodings") == 0) {
    print_encodings();
    return 0;
  }
  const struct {
    const char* name;
    void (*run)();
  } tests[] = {
      {"encodings", test_encodings},     {"lattices", test_lattices},     {"layouts", test_layouts},
      {"caches", test_caches},           {"plans", test_plans},           {"engines", test_engines},
      {"executables", test_executables}, {"rows alike", test_rows_alike},
  };
  for (const auto& test : tests) {
    const int before = checks;
    test.run();
    std::printf("%s: %d checks\n", test.name, checks - before);
  }
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
