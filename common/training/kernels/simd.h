/* Vectors of the processor's width, and the interface of every kernel.

   A kernel is compiled for one shape and one precision: REAL is float or double, and INTEGER the signed integer of the
   same size. The compiler contracts multiplications and additions into fused operations in the same way for every lane
   and every step. An experiment's bits therefore do not depend on the rest of the batch, nor on the number of steps in
   a call. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

typedef REAL real;
typedef real vec __attribute__((vector_size(VECTOR_BYTES)));
/* The result of comparing vectors: 0 or -1 in each lane. */
typedef INTEGER mask __attribute__((vector_size(VECTOR_BYTES)));

#define LANES ((int64_t)(VECTOR_BYTES / sizeof(real)))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
/* The smallest multiple of `unit` that is at least `size`. */
#define PADDED(size, unit) (((size) + (unit) - 1) / (unit) * (unit))
/* Keeps a value in a register. Otherwise GCC loads it from memory again for each use. */
#if defined(__x86_64__)
#define IN_REGISTER(value) __asm__("" : "+v"(value))
#else
#define IN_REGISTER(value) (void)(value)
#endif
#define INLINE static inline __attribute__((always_inline))

/* A batch of experiments. Factor k of experiment b begins at values[offsets[k] + b * strides[k]], the targets and
   weights of experiment b begin at targets[b * entry_stride] and weights[b * entry_stride]. The fields from `lrs` on are
   hyper-parameters and state of the optimizer: one number per experiment, and `momentum_buffers`, laid out as `values`.
   Those that the optimizer does not have are not read.

   The caller passes this struct and the next one as arrays of 64-bit integers, one for each field: all fields must have
   64 bits. */
typedef struct {
    int64_t batch_size;
    real *values;
    const int64_t *offsets, *strides;
    const real *targets, *weights;
    int64_t entry_stride;
    const real *lrs, *weight_decays, *momenta;
    real *momentum_buffers, *square_avgs;
    int64_t num_steps;
} Batch;

/* What is observed at the end of each of `count` intervals of steps: losses and moved (batch_size, count), outputs
   (batch_size, count, rows * cols). `moved` says whether a parameter changed from the beginning of the interval to its
   end, or in its last step. */
typedef struct {
    int64_t count;
    const int64_t *intervals;
    real *losses, *outputs;
    uint8_t *moved;
} Observations;

/* Takes all steps of the experiments `first` to `last` - 1. Returns 0, or 1 if there is not enough memory. */
int advance(int64_t first, int64_t last, const Batch *batch, const Observations *observed);

/* Returns the number of experiments that are advanced together at the cost of one. */
int64_t experiments_at_once(void);
