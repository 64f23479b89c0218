/* Gradient descent (with MOMENTUM: with momentum) on deep matrix factorizations of ROWS x COLS with DEPTH factors, of
   hidden width HIDDEN. With WEIGHT_DECAY, weight decay is added to the gradients. Each experiment is in its own lane. */

#if ADAPTIVE
#error "GroupRMSprop has no kernel for deep matrix factorizations"
#endif

#define ROWS_OF(layer) ((layer) == 0 ? ROWS : HIDDEN)
#define COLS_OF(layer) ((layer) == DEPTH - 1 ? COLS : HIDDEN)
#define LARGEST (MAX(ROWS, HIDDEN) * MAX(COLS, HIDDEN))

/* Small problems fit into the registers: with all loops unrolled, a step consists of its arithmetic only. */
#if LARGEST * DEPTH <= 36
#define UNROLL _Pragma("GCC unroll 16")
#else
#define UNROLL
#endif

typedef vec Factors[DEPTH][LARGEST];

/* The factors, the momentum of each parameter, the factors at the beginning of the interval and before its last step,
   and for each l the products W_1 ... W_{l+1} and G (W_{l+2} ... W_L)^T. */
typedef struct {
    Factors w, momentum_buffer, begin, before, prefixes, back;
} Work;

typedef struct {
    vec lr, weight_decay, momentum;
} Rates;

/* Whether the work arrays fit on a thread's stack. There the compiler knows that nothing else refers to them. */
#define ON_STACK (DEPTH * LARGEST * VECTOR_BYTES <= 65536)

/* c (m, n) = a (m, k) b (k, n) */
INLINE void multiply(int m, int k, int n, const vec *a, const vec *b, vec *c) {
    UNROLL for (int i = 0; i < m; i++) UNROLL for (int j = 0; j < n; j++) {
        vec sum = a[i * k] * b[j];
        UNROLL for (int p = 1; p < k; p++) sum += a[i * k + p] * b[p * n + j];
        c[i * n + j] = sum;
    }
}

/* c (m, n) = a (m, k) b (n, k)^T */
INLINE void multiply_transposed(int m, int k, int n, const vec *a, const vec *b, vec *c) {
    UNROLL for (int i = 0; i < m; i++) UNROLL for (int j = 0; j < n; j++) {
        vec sum = a[i * k] * b[j * k];
        UNROLL for (int p = 1; p < k; p++) sum += a[i * k + p] * b[j * k + p];
        c[i * n + j] = sum;
    }
}

/* Updates a parameter from its gradient. */
INLINE void update(vec gradient, Rates rates, vec *w, vec *buffer) {
    if (WEIGHT_DECAY) gradient += rates.weight_decay * *w;
    if (MOMENTUM) gradient = *buffer = rates.momentum * *buffer + gradient;
    *w -= rates.lr * gradient;
}

/* Updates w (k, n), whose gradient is a (m, k)^T b (m, n). */
INLINE void descend(int m, int k, int n, Rates rates, const vec *a, const vec *b, vec *w, vec *buffer) {
    UNROLL for (int i = 0; i < k; i++) UNROLL for (int j = 0; j < n; j++) {
        vec sum = a[i] * b[j];
        UNROLL for (int p = 1; p < m; p++) sum += a[p * k + i] * b[p * n + j];
        update(sum, rates, &w[i * n + j], &buffer[i * n + j]);
    }
}

/* Computes the prefixes W_1 ... W_{l+1}. The last one is the product matrix. */
INLINE void forward(Factors w, Factors prefixes) {
    UNROLL for (int e = 0; e < ROWS * COLS_OF(0); e++) prefixes[0][e] = w[0][e];
    UNROLL for (int l = 1; l < DEPTH; l++) multiply(ROWS, HIDDEN, COLS_OF(l), prefixes[l - 1], w[l], prefixes[l]);
}

/* Takes one step. The gradient of W_l is (W_1 ... W_{l-1})^T G (W_{l+1} ... W_L)^T, where G is that of the product. */
INLINE void step(Factors w, Factors buffer, const vec *targets, const vec *weights, Rates rates, vec *residuals,
                 Work *restrict work) {
#if ON_STACK
    Factors prefixes, back;
    (void)work;
#else
    vec(*prefixes)[LARGEST] = work->prefixes, (*back)[LARGEST] = work->back;
#endif
    forward(w, prefixes);
    UNROLL for (int e = 0; e < ROWS * COLS; e++) {
        residuals[e] = prefixes[DEPTH - 1][e] - targets[e];
        back[DEPTH - 1][e] = residuals[e] * weights[e];
    }
    UNROLL for (int l = DEPTH - 1; l > 0; l--) {
        multiply_transposed(ROWS, COLS_OF(l), HIDDEN, back[l], w[l], back[l - 1]);
        descend(ROWS, HIDDEN, COLS_OF(l), rates, prefixes[l - 1], back[l], w[l], buffer[l]);
    }
    UNROLL for (int e = 0; e < ROWS * COLS_OF(0); e++) update(back[0][e], rates, &w[0][e], &buffer[0][e]);
}

/* Copies `count` numbers of each experiment to its lane, or back. Consecutive experiments are `stride` apart. */
INLINE void gather(int64_t count, const real *source, int64_t stride, int64_t lanes, vec *target) {
    for (int64_t e = 0; e < count; e++)
        /* Unused lanes repeat the last experiment. */
        for (int64_t b = 0; b < LANES; b++) target[e][b] = source[MIN(b, lanes - 1) * stride + e];
}

INLINE void scatter(int64_t count, const vec *source, int64_t stride, int64_t lanes, real *target) {
    for (int64_t e = 0; e < count; e++)
        for (int64_t b = 0; b < lanes; b++) target[b * stride + e] = source[e][b];
}

static void advance_lanes(int64_t first, int64_t lanes, const Batch *batch, const Observations *observed,
                          Work *restrict work) {
#if ON_STACK
    Work on_stack;
    work = &on_stack;
#endif
    vec(*w)[LARGEST] = work->w, (*buffer)[LARGEST] = work->momentum_buffer;
    vec targets[ROWS * COLS], weights[ROWS * COLS], residuals[ROWS * COLS] = {{0}}, loss;
    Rates rates;
    const int64_t entry_stride = batch->entry_stride;
    for (int l = 0; l < DEPTH; l++) {
        const int64_t size = ROWS_OF(l) * COLS_OF(l), stride = batch->strides[l];
        const int64_t begin = batch->offsets[l] + first * stride;
        gather(size, batch->values + begin, stride, lanes, w[l]);
        if (MOMENTUM) gather(size, batch->momentum_buffers + begin, stride, lanes, buffer[l]);
    }
    gather(ROWS * COLS, batch->targets + first * entry_stride, entry_stride, lanes, targets);
    gather(ROWS * COLS, batch->weights + first * entry_stride, entry_stride, lanes, weights);
    gather(1, batch->lrs + first, 1, lanes, &rates.lr);
    if (WEIGHT_DECAY) gather(1, batch->weight_decays + first, 1, lanes, &rates.weight_decay);
    if (MOMENTUM) gather(1, batch->momenta + first, 1, lanes, &rates.momentum);

    for (int64_t k = 0; k < observed->count; k++) {
        memcpy(work->begin, w, sizeof(Factors));
        for (int64_t remaining = observed->intervals[k]; remaining > 0; remaining--) {
            if (remaining == 1) memcpy(work->before, w, sizeof(Factors));
            step(w, buffer, targets, weights, rates, residuals, work);
        }
        loss = residuals[0] * residuals[0] * weights[0];
        for (int e = 1; e < ROWS * COLS; e++) loss += residuals[e] * residuals[e] * weights[e];
        loss = loss / 2;
        forward(w, work->prefixes);
        const vec *output = work->prefixes[DEPTH - 1];
        const int64_t count = observed->count, row = first * count + k;
        scatter(1, &loss, count, lanes, observed->losses + row);
        scatter(ROWS * COLS, output, count * ROWS * COLS, lanes, observed->outputs + row * ROWS * COLS);
        mask moved = {0};
        for (int l = 0; l < DEPTH; l++)
            for (int e = 0; e < ROWS_OF(l) * COLS_OF(l); e++)
                moved |= (w[l][e] != work->begin[l][e]) | (w[l][e] != work->before[l][e]);
        for (int64_t b = 0; b < lanes; b++) observed->moved[row + b * count] = MOMENTUM || moved[b] != 0;
    }
    for (int l = 0; l < DEPTH; l++) {
        const int64_t size = ROWS_OF(l) * COLS_OF(l), stride = batch->strides[l];
        const int64_t begin = batch->offsets[l] + first * stride;
        scatter(size, w[l], stride, lanes, batch->values + begin);
        if (MOMENTUM) scatter(size, buffer[l], stride, lanes, batch->momentum_buffers + begin);
    }
}

int advance(int64_t first, int64_t last, const Batch *batch, const Observations *observed) {
    Work *work = ON_STACK ? NULL : aligned_alloc(VECTOR_BYTES, sizeof(Work));
    if (!ON_STACK && !work) return 1;
    if (!ON_STACK) memset(work, 0, sizeof(Work));
    for (; first < last; first += LANES) advance_lanes(first, MIN(LANES, last - first), batch, observed, work);
    free(work);
    return 0;
}

int64_t experiments_at_once(void) { return LANES; }
