/* CP factorizations of ORDER modes of dimensions DIMS, with RANK components. The first SPLIT modes are the first group.
   The tensor as a ROWS x COLS matrix is the product of the groups' Khatri-Rao products. ALL_DIMS is the sum of the
   dimensions; SPLIT_DIM and LAST_DIM are the dimensions of the last modes of the two groups.

   Components are processed in panels that fit into the caches, one component in each lane. */

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
#define MOST_ROWS MAX(PADDED_ROWS, PADDED_COLS)
#define UNROLL _Pragma("GCC unroll 8")

typedef vec Row[TILE_VECTORS];
/* The factors, or their gradients, of a panel: the rows of all modes in sequence. */
typedef Row Factors[ALL_DIMS];

static const int dims[ORDER] = {DIMS};
static const int group_begin[3] = {0, SPLIT, ORDER};

typedef struct {
    Factors factors[PANELS], gradients[PANELS], momentum_buffer[PANELS], begin[PANELS], before[PANELS];
    /* For each mode, the Khatri-Rao product of the modes of its group up to it, of one panel. */
    Row products[ORDER][MOST_ROWS];
    /* The gradients of these products. */
    Row back[2][MOST_ROWS], other_back[MOST_ROWS];
    /* The transposed product of the second group: a row for each component of the panel. */
    real transposed[PANEL][PADDED_COLS];
    real output[PADDED_ROWS][PADDED_COLS];
} Work;

/* c[i] (+)= sum over p < n of a[i * a_row + p * a_step] b[p], for TILE_ROWS rows c[i] of TILE_VECTORS vectors. All
   matrix products use this tile of registers. */
INLINE void tile(int64_t n, const real *a, int64_t a_row, int64_t a_step, const real *b, int64_t b_row, real *c,
                 int64_t c_row, int accumulate) {
    vec sums[TILE_ROWS][TILE_VECTORS];
    for (int i = 0; i < TILE_ROWS; i++)
        for (int v = 0; v < TILE_VECTORS; v++)
            sums[i][v] = accumulate ? ((const vec *)(c + i * c_row))[v] : (vec){0};
    for (int64_t p = 0; p < n; p++) {
        vec row[TILE_VECTORS];
        memcpy(row, b + p * b_row, sizeof(row));
        for (int v = 0; v < TILE_VECTORS; v++) IN_REGISTER(row[v]);
        for (int i = 0; i < TILE_ROWS; i++)
            for (int v = 0; v < TILE_VECTORS; v++) sums[i][v] += a[i * a_row + p * a_step] * row[v];
    }
    for (int i = 0; i < TILE_ROWS; i++)
        for (int v = 0; v < TILE_VECTORS; v++) ((vec *)(c + i * c_row))[v] = sums[i][v];
}

/* Returns the row of `factors` where a mode begins. */
INLINE int mode_row(int mode) {
    int row = 0;
    for (int k = 0; k < mode; k++) row += dims[k];
    return row;
}

/* Computes the Khatri-Rao products in a panel of a group's modes before `end`: that of each mode and those before it at
   `products` + mode * stride. Returns the last one, of all these modes; NULL if there are none. */
INLINE Row *khatri_rao(Work *work, int64_t panel, int group, int end, Row *products, int64_t stride) {
    int rows = 1;
    Row *last = NULL;
    for (int mode = group_begin[group]; mode < end; mode++) {
        Row *factor = work->factors[panel] + mode_row(mode), *product = products + mode * stride;
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
    const Row *rest = ORDER - SPLIT > 1 ? work->products[ORDER - 2] : NULL;
    for (int r = 0; r < PANEL; r++) {
        real row[LAST_DIM];
        for (int b = 0; b < LAST_DIM; b++) row[b] = ((const real *)last[b])[r];
        for (int a = 0; a < COLS / LAST_DIM; a++) {
            const real scale = rest ? ((const real *)rest[a])[r] : 1;
            for (int b = 0; b < LAST_DIM; b++) work->transposed[r][a * LAST_DIM + b] = scale * row[b];
        }
    }
}

/* Computes the whole tensor, `output`. */
static __attribute__((noinline)) void forward(Work *work) {
    for (int64_t panel = 0; panel < PANELS; panel++) {
        const Row *first = khatri_rao(work, panel, 0, SPLIT, work->products[0], MOST_ROWS);
        khatri_rao(work, panel, 1, ORDER, work->products[0], MOST_ROWS);
        transpose(work, panel);
        for (int i = 0; i < ROWS; i += TILE_ROWS)
            for (int j = 0; j < COLS; j += PANEL)
                tile(PANEL, (const real *)first[i], PANEL, 1, &work->transposed[0][j], PADDED_COLS,
                     &work->output[i][j], PADDED_COLS, panel > 0);
    }
}

/* Computes the gradients of rows `begin` to `begin` + `count` - 1 of a factor, and adds to `rest_back`, the gradient of
   the product of the modes before it, from the gradient of their product. `count` is a constant of at most 8. */
INLINE void split_gradient(int count, int begin, int rows, int dim, const Row *back, const Row *factor,
                           const Row *product, Row *gradient, Row *rest_back) {
    for (int v = 0; v < TILE_VECTORS; v++) {
        vec values[8], sums[8];
        UNROLL for (int b = 0; b < count; b++) values[b] = factor[begin + b][v], sums[b] = (vec){0};
        for (int a = 0; a < rows; a++) {
            vec rest = begin ? rest_back[a][v] : (vec){0};
            UNROLL for (int b = 0; b < count; b++) {
                const vec one = back[a * dim + begin + b][v];
                rest += one * values[b];
                sums[b] += one * product[a][v];
            }
            rest_back[a][v] = rest;
        }
        UNROLL for (int b = 0; b < count; b++) gradient[begin + b][v] = sums[b];
    }
}

/* Computes the gradients of the factors of a group's modes before `end` from that of their product, `back`, of `rows`
   rows. `products` are those of khatri_rao. */
INLINE void khatri_rao_backward(Work *work, int64_t panel, int group, int end, const Row *products, int64_t stride,
                                int rows, Row *back) {
    Row *other = work->other_back;
    for (int mode = end - 1; mode > group_begin[group]; mode--) {
        const int dim = dims[mode];
        const Row *factor = work->factors[panel] + mode_row(mode), *product = products + (mode - 1) * stride;
        Row *gradient = work->gradients[panel] + mode_row(mode);
        rows /= dim;
        int b = 0;
        for (; b + 8 <= dim; b += 8) split_gradient(8, b, rows, dim, back, factor, product, gradient, other);
        for (; b + 2 <= dim; b += 2) split_gradient(2, b, rows, dim, back, factor, product, gradient, other);
        if (b < dim) split_gradient(1, b, rows, dim, back, factor, product, gradient, other);
        Row *swapped = back;
        back = other, other = swapped;
    }
    memcpy(work->gradients[panel] + mode_row(group_begin[group]), back, rows * sizeof(Row));
}
