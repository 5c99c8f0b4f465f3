# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0

# Lets a library that is compiled on a newer Linux run with glibc 2.28 and the libstdc++ of GCC 8, the oldest that torch's
# own wheels run with (manylinux_2_28).
#
# The linker binds a function to the newest version that the libc of this machine has. So it is shown, before libc,
# libraries of the names, versions and functions of that time, which hold nothing and are not there when the library
# runs. What newer C++ headers refer to and old libraries lack is in csrc/base/old_libstdcxx.cpp.
include(CheckCXXSymbolExists)

function(declare_old_library soname)
  set(source "")
  foreach(name ${ARGN})
    string(APPEND source "extern \"C\" void ${name}() {}\n")
  endforeach()
  list(REMOVE_ITEM ARGN dlmopen)  # all others are as old as glibc for x86-64
  list(JOIN ARGN "; " names)
  set(folder "${CMAKE_BINARY_DIR}/old_glibc")
  file(WRITE "${folder}/${soname}.cpp" "${source}")
  file(WRITE "${folder}/${soname}.map" "GLIBC_2.2.5 { ${names}; };\nGLIBC_2.3.4 { dlmopen; } GLIBC_2.2.5;\n")
  add_library(old_${soname} SHARED "${folder}/${soname}.cpp")
  set_target_properties(
    old_${soname} PROPERTIES NO_SONAME ON LIBRARY_OUTPUT_DIRECTORY "${folder}" CXX_VISIBILITY_PRESET default
  )
  target_compile_options(old_${soname} PRIVATE -fno-builtin -w)
  target_link_options(
    old_${soname} PRIVATE -nostdlib "LINKER:-soname,${soname}" "LINKER:--version-script=${folder}/${soname}.map"
  )
endfunction()

function(run_with_old_glibc)
  check_cxx_symbol_exists(__GLIBCXX__ "string" SPARSEKERNELS_HAS_LIBSTDCXX)
  check_cxx_symbol_exists(__GLIBC__ "features.h" SPARSEKERNELS_HAS_GLIBC)
  if(NOT SPARSEKERNELS_HAS_LIBSTDCXX OR NOT SPARSEKERNELS_HAS_GLIBC)
    return()
  endif()
  declare_old_library(libm.so.6 pow)
  declare_old_library(
    libpthread.so.0
    pthread_condattr_setpshared pthread_create pthread_detach pthread_getspecific pthread_join pthread_key_create
    pthread_key_delete pthread_kill pthread_mutex_trylock pthread_mutexattr_destroy pthread_mutexattr_init
    pthread_mutexattr_setpshared pthread_mutexattr_settype pthread_once pthread_rwlock_destroy pthread_rwlock_init
    pthread_rwlock_rdlock pthread_rwlock_timedrdlock pthread_rwlock_timedwrlock pthread_rwlock_tryrdlock
    pthread_rwlock_trywrlock pthread_rwlock_unlock pthread_rwlock_wrlock pthread_rwlockattr_destroy
    pthread_rwlockattr_init pthread_rwlockattr_setpshared pthread_setspecific pthread_spin_destroy pthread_spin_init
    pthread_spin_lock pthread_spin_trylock pthread_spin_unlock sem_destroy sem_init sem_post sem_timedwait sem_trywait
    sem_wait
  )
  declare_old_library(libdl.so.2 dlclose dlerror dlmopen dlopen dlsym dlvsym)
  declare_old_library(librt.so.1 shm_open shm_unlink)
  set(sparsekernels_cpu_needs libm.so.6 libpthread.so.0)
  set(sparsekernels_cuda_needs libpthread.so.0 libdl.so.2 librt.so.1)  # CUDA's static runtime
  foreach(library ${ARGN})
    target_sources(${library} PRIVATE csrc/base/old_libstdcxx.cpp)
    foreach(soname ${${library}_needs})
      # Named in front of everything else: a function is bound to the first library that has it.
      target_link_options(
        ${library} BEFORE PRIVATE
        "SHELL:LINKER:--push-state,--no-as-needed $<TARGET_FILE:old_${soname}> LINKER:--pop-state"
      )
      add_dependencies(${library} old_${soname})
    endforeach()
  endforeach()
endfunction()
