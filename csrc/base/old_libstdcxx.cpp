// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What headers of newer compilers refer to and the libstdc++ of GCC 8 and glibc 2.28 do not have: see
// cmake/old_glibc.cmake.
#include <new>
#include <sstream>
#include <string>

// Read by std::shared_ptr. False means that it counts with atomic operations, as it must in a process with torch.
extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}

namespace std {

#pragma GCC visibility push(hidden)
void __throw_bad_array_new_length() {
  throw bad_array_new_length();
}
#pragma GCC visibility pop

template basic_stringstream<char>::basic_stringstream();
template string basic_stringbuf<char>::str() &&;

}  // namespace std
