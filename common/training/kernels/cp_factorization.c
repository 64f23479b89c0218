/* Gradient descent (or with ADAPTIVE, GroupRMSprop) on CP factorizations of ORDER modes of dimensions DIMS, with RANK
   components. The first SPLIT modes are the first group. The tensor as a ROWS x COLS matrix is the product of the
   groups' Khatri-Rao products. ALL_DIMS is the sum of the dimensions, LAST_DIM the last one.

   Components are processed in panels that fit into the caches, one component in each lane. All matrix products use one
   tile of registers. Experiments are advanced one by one. */

#if VECTOR_BYTES == 64
#define TILE_VECTORS 4
#else
#define TILE_VECTORS 2
#endif
#define TILE_ROWS 4
#define PANEL (TILE_VECTORS * LANES)
#define PANELS (PADDED(RANK, PANEL) / PANEL)
#define PADDED_ROWS PADDED(ROWS, TILE_ROWS)
#define PADDED_COLS PADDED(COLS, PANEL)

typedef vec Row[TILE_VECTORS];
/* The factors, or their gradients, of a panel: the rows of all modes in sequence. */
typedef Row Factors[ALL_DIMS];

static const int dims[ORDER] = {DIMS};
static const int group_begin[3] = {0, SPLIT, ORDER};

typedef struct {
    Factors factors[PANELS], gradients[PANELS], begin[PANELS], before[PANELS];
    /* For each group, the Khatri-Rao products of its first mode, its first two modes, ..., all its modes. */
    Row products[2][ORDER][MAX(PADDED_ROWS, PADDED_COLS)];
    Row back[2][MAX(PADDED_ROWS, PADDED_COLS)];
    /* The transposed product of the second group: a row for each component of the panel. */
    real transposed[PANEL][PADDED_COLS];
    real output[PADDED_ROWS][PADDED_COLS], gradient[PADDED_ROWS][PADDED_COLS];
} Work;

/* c[i] (+)= sum over p < n of a[i * a_row + p * a_step] b[p], for TILE_ROWS rows c[i] of TILE_VECTORS vectors. */
INLINE void tile(int64_t n, const real *a, int64_t a_row, int64_t a_step, const real *b, int64_t b_row, real *c,
                 int64_t c_row, int accumulate) {
    vec sums[TILE_ROWS][TILE_VECTORS];
    for (int i = 0; i < TILE_ROWS; i++)
        for (int v = 0; v < TILE_VECTORS; v++)
            sums[i][v] = accumulate ? ((const vec *)(c + i * c_row))[v] : (vec){0};
    for (int64_t p = 0; p < n; p++)
        for (int i = 0; i < TILE_ROWS; i++)
            for (int v = 0; v < TILE_VECTORS; v++)
                sums[i][v] += a[i * a_row + p * a_step] * ((const vec *)(b + p * b_row))[v];
    for (int i = 0; i < TILE_ROWS; i++)
        for (int v = 0; v < TILE_VECTORS; v++) ((vec *)(c + i * c_row))[v] = sums[i][v];
}

/* Returns the row of `factors` where a mode begins. */
INLINE int mode_row(int mode) {
    int row = 0;
    for (int k = 0; k < mode; k++) row += dims[k];
    return row;
}

/* Computes the Khatri-Rao products of a group in a panel. Returns the last one, of all its modes. */
INLINE Row *khatri_rao(Work *work, int64_t panel, int group) {
    int rows = 1;
    Row *last = NULL;
    for (int mode = group_begin[group]; mode < group_begin[group + 1]; mode++) {
        Row *factor = work->factors[panel] + mode_row(mode), *product = work->products[group][mode];
        for (int a = 0; a < rows; a++)
            for (int b = 0; b < dims[mode]; b++)
                for (int v = 0; v < TILE_VECTORS; v++)
                    product[a * dims[mode] + b][v] = last ? last[a][v] * factor[b][v] : factor[b][v];
        rows *= dims[mode];
        last = product;
    }
    return last;
}

/* Computes `transposed` from the product of all modes of the second group but the last. */
INLINE void transpose(Work *work, int64_t panel) {
    const Row *last = work->factors[panel] + ALL_DIMS - LAST_DIM;
    const Row *rest = ORDER - SPLIT > 1 ? work->products[1][ORDER - 2] : NULL;
    for (int r = 0; r < PANEL; r++) {
        real row[LAST_DIM];
        for (int b = 0; b < LAST_DIM; b++) row[b] = ((const real *)last[b])[r];
        for (int a = 0; a < COLS / LAST_DIM; a++) {
            const real scale = rest ? ((const real *)rest[a])[r] : 1;
            for (int b = 0; b < LAST_DIM; b++) work->transposed[r][a * LAST_DIM + b] = scale * row[b];
        }
    }
}

static __attribute__((noinline)) void forward(Work *work) {
    for (int64_t panel = 0; panel < PANELS; panel++) {
        const Row *first = khatri_rao(work, panel, 0);
        khatri_rao(work, panel, 1);
        transpose(work, panel);
        for (int i = 0; i < ROWS; i += TILE_ROWS)
            for (int j = 0; j < COLS; j += PANEL)
                tile(PANEL, (const real *)first[i], PANEL, 1, &work->transposed[0][j], PADDED_COLS,
                     &work->output[i][j], PADDED_COLS, panel > 0);
    }
}

/* Computes the gradients of a group's factors from that of its product, in work->back. */
INLINE void khatri_rao_backward(Work *work, int64_t panel, int group) {
    Row *back = work->back[group];
    int rows = group ? COLS : ROWS;
    for (int mode = group_begin[group + 1] - 1; mode > group_begin[group]; mode--) {
        const int dim = dims[mode];
        const Row *factor = work->factors[panel] + mode_row(mode), *product = work->products[group][mode - 1];
        Row *gradient = work->gradients[panel] + mode_row(mode);
        rows /= dim;
        for (int b = 0; b < dim; b++) {
            Row sum = {0};
            for (int a = 0; a < rows; a++)
                for (int v = 0; v < TILE_VECTORS; v++) sum[v] += back[a * dim + b][v] * product[a][v];
            memcpy(gradient[b], sum, sizeof(Row));
        }
        for (int a = 0; a < rows; a++) {
            Row sum = {0};
            for (int b = 0; b < dim; b++)
                for (int v = 0; v < TILE_VECTORS; v++) sum[v] += back[a * dim + b][v] * factor[b][v];
            memcpy(back[a], sum, sizeof(Row));
        }
    }
    memcpy(work->gradients[panel] + mode_row(group_begin[group]), back, rows * sizeof(Row));
}

/* Computes the gradients of K_1 and K_2, where T = K_1 K_2^T: G K_2 and G^T K_1, where G is the gradient of T. */
static __attribute__((noinline)) void backward(Work *work) {
    for (int64_t panel = 0; panel < PANELS; panel++) {
        const Row *first = khatri_rao(work, panel, 0), *second = khatri_rao(work, panel, 1);
        for (int i = 0; i < ROWS; i += TILE_ROWS)
            tile(COLS, work->gradient[i], PADDED_COLS, 1, (const real *)second, PANEL, (real *)work->back[0][i], PANEL, 0);
        for (int j = 0; j < COLS; j += TILE_ROWS)
            tile(ROWS, &work->gradient[0][j], 1, PADDED_COLS, (const real *)first, PANEL, (real *)work->back[1][j], PANEL, 0);
        khatri_rao_backward(work, panel, 0);
        khatri_rao_backward(work, panel, 1);
    }
}

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

static void advance_one(Work *work, int64_t experiment, const Batch *batch, const Observations *observed) {
    const real *targets = batch->targets + experiment * batch->entry_stride;
    const real *weights = batch->weights + experiment * batch->entry_stride;
    int64_t num_steps = batch->num_steps;
    load(work, experiment, batch);
    for (int64_t k = 0; k < observed->count; k++) {
        const int64_t row = experiment * observed->count + k;
        if (!ADAPTIVE) memcpy(work->begin, work->factors, sizeof(work->factors));
        for (int64_t remaining = observed->intervals[k]; remaining > 0; remaining--) {
            forward(work);
            for (int i = 0; i < ROWS; i++)
                for (int j = 0; j < COLS; j++)
                    work->gradient[i][j] = (work->output[i][j] - targets[i * COLS + j]) * weights[i * COLS + j];
            backward(work);
            const real size = step_size(work, batch->lrs[experiment], batch->square_avgs + experiment, ++num_steps);
            batch->adjusted_lrs[experiment] = size;
            if (!ADAPTIVE && remaining == 1) memcpy(work->before, work->factors, sizeof(work->factors));
            vec *factors = (vec *)work->factors;
            const vec *gradients = (const vec *)work->gradients;
            for (size_t e = 0; e < sizeof(work->factors) / sizeof(vec); e++) factors[e] -= size * gradients[e];
        }
        real loss = 0;
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < COLS; j++) loss += (work->output[i][j] - targets[i * COLS + j]) * work->gradient[i][j];
        observed->losses[row] = loss / 2;
        observed->moved[row] =
            ADAPTIVE || differ(work->factors, work->begin) || differ(work->factors, work->before);
        forward(work);
        for (int i = 0; i < ROWS; i++)
            memcpy(observed->outputs + (row * ROWS + i) * COLS, work->output[i], COLS * sizeof(real));
    }
    store(work, experiment, batch);
}

int advance(int64_t first, int64_t last, const Batch *batch, const Observations *observed) {
    Work *work = aligned_alloc(VECTOR_BYTES, sizeof(Work));
    if (!work) return 1;
    memset(work, 0, sizeof(Work));
    for (; first < last; first++) advance_one(work, first, batch, observed);
    free(work);
    return 0;
}

int64_t experiments_at_once(void) { return 1; }
