/* Gradient descent, or with ADAPTIVE GroupRMSprop, on CP factorizations. Experiments are advanced one by one. */

/* Returns the step size of step `num_steps`, counted from 1. */
static real step_size(const Work *work, real lr, real *square_avg, int64_t num_steps) {
#if ADAPTIVE
    const vec *gradients = (const vec *)work->gradients;
    vec squares = {0};
    for (int64_t e = 0; e < (int64_t)(sizeof(work->gradients) / sizeof(vec)); e++) squares += gradients[e] * gradients[e];
    real sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += squares[lane];
    *square_avg = (real)BETA * *square_avg + (real)(1 - BETA) * sum;
    const real mean = *square_avg / (real)(1 - pow(BETA, (double)num_steps));
    return lr / ((real)sqrt(mean) + (real)EPS);
#else
    (void)work, (void)square_avg, (void)num_steps;
    return lr;
#endif
}

/* Copies an experiment's factors, rows of RANK components, to the panels, or back. */
INLINE void load(Work *work, int64_t experiment, const Batch *batch) {
    for (int mode = 0; mode < ORDER; mode++)
        for (int64_t d = 0; d < dims[mode]; d++)
            for (int64_t r = 0; r < RANK; r++)
                ((real *)work->factors[r / PANEL][mode_row(mode) + d])[r % PANEL] =
                    batch->values[batch->offsets[mode] + experiment * batch->strides[mode] + d * RANK + r];
}

INLINE void store(const Work *work, int64_t experiment, const Batch *batch) {
    for (int mode = 0; mode < ORDER; mode++)
        for (int64_t d = 0; d < dims[mode]; d++)
            for (int64_t r = 0; r < RANK; r++)
                batch->values[batch->offsets[mode] + experiment * batch->strides[mode] + d * RANK + r] =
                    ((const real *)work->factors[r / PANEL][mode_row(mode) + d])[r % PANEL];
}

/* Returns whether any number of `a` differs from that of `b`. */
INLINE uint8_t differ(const Factors *a, const Factors *b) {
    uint8_t different = 0;
    for (int64_t e = 0; e < (int64_t)(sizeof(Factors[PANELS]) / sizeof(real)); e++)
        different |= ((const real *)a)[e] != ((const real *)b)[e];
    return different;
}

static void advance_one(Work *work, Entries *entries, int64_t experiment, const Batch *batch,
                        const Observations *observed) {
    const real *targets = batch->targets + experiment * batch->entry_stride;
    const real *weights = batch->weights + experiment * batch->entry_stride;
    int64_t num_steps = batch->num_steps;
    load(work, experiment, batch);
    prepare(entries, targets, weights);
    for (int64_t k = 0; k < observed->count; k++) {
        const int64_t row = experiment * observed->count + k;
        if (!ADAPTIVE) memcpy(work->begin, work->factors, sizeof(work->factors));
        for (int64_t remaining = observed->intervals[k]; remaining > 0; remaining--) {
            compute_gradients(work, entries, targets, weights);
            const real size = step_size(work, batch->lrs[experiment], batch->square_avgs + experiment, ++num_steps);
            batch->adjusted_lrs[experiment] = size;
            if (!ADAPTIVE && remaining == 1) memcpy(work->before, work->factors, sizeof(work->factors));
            vec *factors = (vec *)work->factors;
            const vec *gradients = (const vec *)work->gradients;
            for (size_t e = 0; e < sizeof(work->factors) / sizeof(vec); e++) factors[e] -= size * gradients[e];
        }
        observed->losses[row] = loss_of(work, entries, targets);
        observed->moved[row] =
            ADAPTIVE || differ(work->factors, work->begin) || differ(work->factors, work->before);
        forward(work);
        for (int i = 0; i < ROWS; i++)
            memcpy(observed->outputs + (row * ROWS + i) * COLS, work->output[i], COLS * sizeof(real));
    }
    store(work, experiment, batch);
}

int advance(int64_t first, int64_t last, const Batch *batch, const Observations *observed) {
    Work *work = aligned_alloc(VECTOR_BYTES, PADDED(sizeof(Work), VECTOR_BYTES));
    Entries *entries = aligned_alloc(VECTOR_BYTES, PADDED(sizeof(Entries), VECTOR_BYTES));
    const int failed = !work || !entries;
    if (!failed) {
        memset(work, 0, sizeof(Work));
        for (; first < last; first++) advance_one(work, entries, first, batch, observed);
    }
    free(entries);
    free(work);
    return failed;
}

int64_t experiments_at_once(void) { return 1; }
