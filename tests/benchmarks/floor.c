/* Lower bounds for the time of gradient descent: on 2x2 matrix completion with DEPTH factors, only the arithmetic, with
   sixteen experiments in the lanes of one vector and nothing recorded; on tensors, multiply-adds at the peak rate. */

#include <stdint.h>
#include <string.h>

typedef float vec __attribute__((vector_size(64)));
#define UNROLL _Pragma("GCC unroll 16")

/* Block of sixteen experiments: factors (DEPTH, 2, 2), targets (2, 2), weights (2, 2), learning rates. */
typedef struct {
    vec factors[DEPTH][2][2], targets[2][2], weights[2][2], lr;
} Block;

void steps(Block *block, int64_t count) {
    Block b = *block;
    while (count-- > 0) {
        vec prefix[DEPTH][2][2], back[2][2], next[2][2];
        memcpy(prefix[0], b.factors[0], sizeof(back));
        UNROLL for (int l = 1; l < DEPTH; l++)
            UNROLL for (int i = 0; i < 2; i++)
                UNROLL for (int j = 0; j < 2; j++)
                    prefix[l][i][j] = prefix[l - 1][i][0] * b.factors[l][0][j] + prefix[l - 1][i][1] * b.factors[l][1][j];
        UNROLL for (int i = 0; i < 2; i++)
            UNROLL for (int j = 0; j < 2; j++) back[i][j] = (prefix[DEPTH - 1][i][j] - b.targets[i][j]) * b.weights[i][j];
        UNROLL for (int l = DEPTH - 1; l > 0; l--) {
            UNROLL for (int i = 0; i < 2; i++)
                UNROLL for (int j = 0; j < 2; j++)
                    next[i][j] = back[i][0] * b.factors[l][j][0] + back[i][1] * b.factors[l][j][1];
            UNROLL for (int i = 0; i < 2; i++)
                UNROLL for (int j = 0; j < 2; j++)
                    b.factors[l][i][j] -= b.lr * (prefix[l - 1][0][i] * back[0][j] + prefix[l - 1][1][i] * back[1][j]);
            memcpy(back, next, sizeof(back));
        }
        UNROLL for (int i = 0; i < 2; i++) UNROLL for (int j = 0; j < 2; j++) b.factors[0][i][j] -= b.lr * back[i][j];
    }
    *block = b;
}

/* A vector that fits a register. */
#ifdef __AVX512F__
typedef float reg __attribute__((vector_size(64)));
#else
typedef float reg __attribute__((vector_size(32)));
#endif
enum { LANES = sizeof(reg) / sizeof(float) };

/* Takes `count` multiply-adds that do not wait for each other. Returns a number that depends on all. */
float multiply_adds(int64_t count) {
    reg sums[16] = {{0}}, factor = {0};
    for (count /= 16 * LANES; count > 0; count--)
        UNROLL for (int i = 0; i < 16; i++) {
            /* Otherwise the compiler could take several together. */
            __asm__("" : "+v"(factor));
            sums[i] = sums[i] * factor + factor;
        }
    float total = 0;
    for (int i = 0; i < 16; i++)
        for (int lane = 0; lane < LANES; lane++) total += sums[i][lane];
    return total;
}
