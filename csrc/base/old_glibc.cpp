// Lets a library that is compiled on a newer Linux run with glibc 2.28 and the libstdc++ of GCC 8, the oldest that
// torch's own wheels run with (manylinux_2_28). Headers of later versions refer to five symbols that are not there:
// three are defined here, and CMakeLists.txt has the linker send the calls of two functions of libc here (--wrap).
#include <new>
#include <sstream>

extern "C" {

double pow_of_any_glibc(double, double);
__asm__(".symver pow_of_any_glibc, pow@GLIBC_2.2.5");
__attribute__((visibility("hidden"))) double __wrap_pow(double base, double exponent) {
  return pow_of_any_glibc(base, exponent);
}

int pthread_once_of_any_glibc(int*, void (*)());
__asm__(".symver pthread_once_of_any_glibc, pthread_once@GLIBC_2.2.5");
__attribute__((visibility("hidden"))) int __wrap_pthread_once(int* control, void (*function)()) {
  return pthread_once_of_any_glibc(control, function);
}

// Read by std::shared_ptr. False means that it counts with atomic operations, as it must in a process with torch.
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}

namespace std {

#pragma GCC visibility push(hidden)
[[noreturn]] void __throw_bad_array_new_length() {
  throw bad_array_new_length();
}
#pragma GCC visibility pop

template basic_stringstream<char>::basic_stringstream();

}  // namespace std
