// Whether there is code for AVX2 beside the portable one; GEMMA_PORTABLE leaves it out, for tests.

#ifndef GEMMA_SERVER_NATIVE_INSTRUCTIONS_H_
#define GEMMA_SERVER_NATIVE_INSTRUCTIONS_H_

#if defined(__x86_64__) && !defined(GEMMA_PORTABLE)
#include <immintrin.h>
#define GEMMA_AVX2 1
#define AVX2 __attribute__((target("avx2,fma,f16c")))
inline bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
#else
#define GEMMA_AVX2 0
#endif

#endif  // GEMMA_SERVER_NATIVE_INSTRUCTIONS_H_
