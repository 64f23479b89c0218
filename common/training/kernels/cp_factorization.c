/* Gradient descent (with MOMENTUM: with momentum; with ADAPTIVE: GroupRMSprop) on CP factorizations. With WEIGHT_DECAY,
   weight decay is added to the gradients. Experiments are advanced one by one. */

/* Whether steps depend on the parameters alone. */
#define STATELESS (!ADAPTIVE && !MOMENTUM)

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

/* Copies an experiment's factors, or a buffer laid out as these, from rows of RANK components to panels, or back. */
INLINE void load(Factors *panels, const real *values, int64_t experiment, const Batch *batch) {
    for (int mode = 0; mode < ORDER; mode++)
        for (int64_t d = 0; d < dims[mode]; d++)
            for (int64_t r = 0; r < RANK; r++)
                ((real *)panels[r / PANEL][mode_row(mode) + d])[r % PANEL] =
                    values[batch->offsets[mode] + experiment * batch->strides[mode] + d * RANK + r];
}

INLINE void store(const Factors *panels, real *values, int64_t experiment, const Batch *batch) {
    for (int mode = 0; mode < ORDER; mode++)
        for (int64_t d = 0; d < dims[mode]; d++)
            for (int64_t r = 0; r < RANK; r++)
                values[batch->offsets[mode] + experiment * batch->strides[mode] + d * RANK + r] =
                    ((const real *)panels[r / PANEL][mode_row(mode) + d])[r % PANEL];
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
    load(work->factors, batch->values, experiment, batch);
    if (MOMENTUM) load(work->momentum_buffer, batch->momentum_buffers, experiment, batch);
    prepare(entries, targets, weights);
    for (int64_t k = 0; k < observed->count; k++) {
        const int64_t row = experiment * observed->count + k;
        if (STATELESS) memcpy(work->begin, work->factors, sizeof(work->factors));
        for (int64_t remaining = observed->intervals[k]; remaining > 0; remaining--) {
            compute_gradients(work, entries, targets, weights);
            vec *factors = (vec *)work->factors, *gradients = (vec *)work->gradients;
            const size_t count = sizeof(work->factors) / sizeof(vec);
            if (WEIGHT_DECAY)
                for (size_t e = 0; e < count; e++) gradients[e] += batch->weight_decays[experiment] * factors[e];
            const real size = step_size(work, batch->lrs[experiment], batch->square_avgs + experiment, ++num_steps);
            if (STATELESS && remaining == 1) memcpy(work->before, work->factors, sizeof(work->factors));
            if (MOMENTUM) {
                vec *buffer = (vec *)work->momentum_buffer;
                for (size_t e = 0; e < count; e++)
                    gradients[e] = buffer[e] = batch->momenta[experiment] * buffer[e] + gradients[e];
            }
            for (size_t e = 0; e < count; e++) factors[e] -= size * gradients[e];
        }
        observed->losses[row] = loss_of(work, entries, targets);
        observed->moved[row] =
            !STATELESS || differ(work->factors, work->begin) || differ(work->factors, work->before);
        forward(work);
        for (int i = 0; i < ROWS; i++)
            memcpy(observed->outputs + (row * ROWS + i) * COLS, work->output[i], COLS * sizeof(real));
    }
    store(work->factors, batch->values, experiment, batch);
    if (MOMENTUM) store(work->momentum_buffer, batch->momentum_buffers, experiment, batch);
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
