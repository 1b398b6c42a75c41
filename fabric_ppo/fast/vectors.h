/* Numbers of the type REAL, and vectors of them that fill the processor's registers. */

#ifndef VECTORS_H
#define VECTORS_H

#include <stdint.h>

typedef REAL real;
typedef int64_t count;

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define LANES (VECTOR_BYTES / (count)sizeof(real))

typedef real vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real))));

static inline count least(count a, count b) { return a < b ? a : b; }

#endif
