// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Fibers: a stack for each thread, and the change from one to another. Of x86-64, as the way in which the compiler asks
// where a thread_local variable lies.
#include <sys/mman.h>

#include <cstdlib>

#include "state.h"

namespace emulated {

uintptr_t stacks_begin = 0, stacks_end = 0;

namespace {

constexpr size_t kStackBytes = size_t{1} << 17;

uintptr_t stack_of(size_t index) {
  if (stacks_begin == 0) {
    void* stacks = mmap(
        nullptr, kStackBytes * kMaxThreads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) std::abort();
    stacks_begin = reinterpret_cast<uintptr_t>(stacks);
    stacks_end = stacks_begin + kStackBytes * kMaxThreads;
  }
  return stacks_begin + index * kStackBytes;
}

}  // namespace

static void* scheduler_stack = nullptr;

extern "C" void emulated_switch(void** save, void* load);
asm(R"(
.text
.globl emulated_switch
.type emulated_switch, @function
emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulated_switch, .-emulated_switch
)");

static void enter() {
  thread_body();
  std::abort();
}

void prepare(Thread& thread, size_t stack) {
  void** top = reinterpret_cast<void**>(stack_of(stack) + kStackBytes) - 1;
  *top = nullptr;                                // where enter would return to: it does not
  *--top = reinterpret_cast<void*>(&enter);      // popped by ret, which leaves the stack as after a call
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // the registers that a call keeps
  thread.stack_pointer = top;
}

void resume(Thread& thread) {
  current = &thread;
  emulated_switch(&scheduler_stack, thread.stack_pointer);
  current = nullptr;
}

void suspend() {
  emulated_switch(&current->stack_pointer, scheduler_stack);
}

}  // namespace emulated
