/* Metrics of 2x2 matrices, computed in float64 by the formulas of common/metrics/matrix.py. */

#include <float.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

/* Multiplications and additions are not contracted, so that |ad - bc| is 0 where ad = bc. */
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif

/* As many matrices at once as a vector has numbers of 64 bits. */
#define WIDTH (VECTOR_BYTES / 8)
typedef double doubles __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t integers __attribute__((vector_size(VECTOR_BYTES)));
typedef real reals __attribute__((vector_size(WIDTH * sizeof(real))));

#define UNROLL _Pragma("GCC unroll 16")
#define SIGN_BIT INT64_MIN
#define EXPONENT_BITS 0x7ff0000000000000
#define LN2 0x1.62e42fefa39efp-1
#define SQRT_HALF_BITS 0x3fe6a09e667f3bcd

INLINE doubles broadcast(double x) { return (doubles){0} + x; }

INLINE doubles choose(integers condition, doubles yes, doubles no) {
    return (doubles)((condition & (integers)yes) | (~condition & (integers)no));
}

INLINE doubles absolute(doubles x) { return (doubles)((integers)x & ~SIGN_BIT); }

INLINE doubles maximum(doubles x, doubles y) { return choose(x > y, x, y); }

INLINE doubles minimum(doubles x, doubles y) { return choose(x < y, x, y); }

INLINE doubles square_root(doubles x) {
#if defined(__AVX512F__)
    return (doubles)_mm512_sqrt_pd((__m512d)x);
#elif defined(__AVX__)
    return (doubles)_mm256_sqrt_pd((__m256d)x);
#else
    for (int l = 0; l < WIDTH; l++) x[l] = sqrt(x[l]);
    return x;
#endif
}

INLINE doubles norm(doubles x, doubles y) { return square_root(x * x + y * y); }

/* Returns log x = log m + e log 2 where x = m 2^e, from e and s = (m - 1) / (m + 1):
   log m = 2 artanh s = 2 (s + s^3 / 3 + s^5 / 5 + ...), and |s| < 0.172 for m in [1/sqrt(2), sqrt(2)). */
INLINE doubles logarithm(integers exponents, doubles s) {
    const doubles square = s * s;
    doubles sum = broadcast(1. / 21);
    UNROLL for (int n = 19; n > 1; n -= 2) sum = sum * square + 1. / n;
    return __builtin_convertvector(exponents, doubles) * LN2 + 2 * (s + s * (square * sum));
}

/* Returns -x log x - y log y for numbers >= 0. One division serves both logarithms. Those of denormal numbers are wrong,
   but their terms do not matter. */
INLINE doubles entropy_of(doubles x, doubles y) {
    const integers e = ((integers)x - SQRT_HALF_BITS) >> 52, f = ((integers)y - SQRT_HALF_BITS) >> 52;
    const doubles m = (doubles)((integers)x - (e << 52)), n = (doubles)((integers)y - (f << 52));
    const doubles inverse = 1 / ((m + 1) * (n + 1));
    return -(x * logarithm(e, (m - 1) * (n + 1) * inverse) + y * logarithm(f, (n - 1) * (m + 1) * inverse));
}

/* Returns exp x for x in [0, log 2], as exp r or 2 exp r with |r| <= log(2) / 2: 1 + r (1 + r/2 (1 + r/3 (1 + ...))). */
INLINE doubles exponential(doubles x) {
    const doubles twice = choose(x > LN2 / 2, broadcast(1), broadcast(0)), r = x - twice * LN2;
    doubles sum = broadcast(1);
    UNROLL for (int n = 13; n > 0; n--) sum = sum * (r * (1. / n)) + 1;
    return sum + twice * sum;
}

/* Returns powers of two. Dividing the entries by them is exact unless it underflows, and then their products do not
   overflow. Products of float32 numbers do not overflow in float64. */
INLINE doubles scale_of(const doubles entries[4]) {
    if (sizeof(real) < sizeof(double)) return broadcast(1);
    doubles largest = broadcast(DBL_MIN);
    for (int e = 0; e < 4; e++) largest = maximum(largest, absolute(entries[e]));
    return (doubles)((integers)largest & EXPONENT_BITS);
}

INLINE doubles rounded(doubles x) { return __builtin_convertvector(__builtin_convertvector(x, reals), doubles); }

INLINE void store(doubles values, int64_t number, double *target) {
    memcpy(target, &values, number * sizeof(double));
}

/* Computes metrics of `number` matrices of one experiment; those of one metric are `stride` apart from the next. */
INLINE void measure(int64_t number, int64_t stride, const real *losses, const real *matrices, const double *target,
                    double target_norm, double num_samples, double eps, int64_t num_others, const int64_t *others,
                    double *results) {
    doubles loss = {0}, entries[4] = {{0}};
    for (int64_t l = 0; l < number; l++) {
        loss[l] = losses[l];
        for (int e = 0; e < 4; e++) entries[e][l] = matrices[4 * l + e];
    }
    const doubles scale = scale_of(entries), inverse = 1 / scale;
    const doubles a = entries[0] * inverse, b = entries[1] * inverse, c = entries[2] * inverse, d = entries[3] * inverse;
    /* NaN if an entry is not finite. */
    const doubles first = (norm(a + d, c - b) + norm(a - d, c + b)) * 0.5 + (a + b + c + d) * 0;
    const doubles second = minimum(absolute(a * d - b * c) / maximum(first, broadcast(DBL_MIN)), first);
    const doubles sum = first + second, inverse_sum = 1 / maximum(sum, broadcast(DBL_MIN));
    const doubles entropy = entropy_of(first * inverse_sum, second * inverse_sum);
    const doubles threshold = first * (2 * eps);
    const integers rank = -(first > threshold) - (second > threshold);
    store(rounded(loss * (2 / num_samples)), number, results);
    store(loss, number, results + stride);
    store(norm(first, second) * scale, number, results + 2 * stride);
    store(sum * scale, number, results + 3 * stride);
    store(exponential(entropy), number, results + 4 * stride);
    store(second * scale, number, results + 5 * stride);
    store(__builtin_convertvector(rank, doubles) + first * 0, number, results + 6 * stride);
    for (int64_t k = 0; k < num_others; k++) {
        doubles values;
        if (others[k] < 4) {
            values = entries[others[k]];
        } else if (others[k] < 6) {
            values = (others[k] == 4 ? first : second) * scale;
        } else if (others[k] == 6) {
            doubles differences[4], squares = {0}, total = {0};
            for (int e = 0; e < 4; e++) differences[e] = entries[e] - target[e];
            const doubles power = scale_of(differences), inverse_power = 1 / power;
            for (int e = 0; e < 4; e++) {
                const doubles scaled = differences[e] * inverse_power;
                squares += scaled * scaled;
                total += scaled;
            }
            values = (square_root(squares) + total * 0) * power / target_norm;
        } else {
            values = (sum + 2 * square_root(first * second)) * scale;
        }
        store(values, number, results + (7 + k) * stride);
    }
}

/* Computes metrics (7 + num_others, batch_size, count) from losses (batch_size, count) and matrices (batch_size, count,
   2, 2): the mean squared error, the loss, Frobenius norm, nuclear norm, effective rank, second singular value and rank.
   `others` selects what follows: an entry of the matrix (0 to 3), a singular value (4 and 5), the distance from the
   experiment's target in `targets` (batch_size, 2, 2) in units of its norm (6), or the Schatten-1/2 quasi-norm (7). `eps`
   is that of REAL. */
void metrics(int64_t batch_size, int64_t count, const real *losses, const real *matrices, const double *targets,
             const double *target_norms, double num_samples, double eps, int64_t num_others, const int64_t *others,
             double *results) {
    const int64_t stride = batch_size * count;
    for (int64_t b = 0; b < batch_size; b++)
        for (int64_t begin = b * count, i = begin; i < begin + count; i += WIDTH) {
            const int64_t rest = begin + count - i;
            if (rest >= WIDTH) /* The compiler knows the number. */
                measure(WIDTH, stride, losses + i, matrices + 4 * i, targets + 4 * b, target_norms[b], num_samples, eps,
                        num_others, others, results + i);
            else
                measure(rest, stride, losses + i, matrices + 4 * i, targets + 4 * b, target_norms[b], num_samples, eps,
                        num_others, others, results + i);
        }
}
