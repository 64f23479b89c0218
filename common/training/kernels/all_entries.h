/* Gradients of the loss from all entries of the tensor, with matrix products. Entries that are not observed have weight
   zero. */

typedef struct {
    real gradient[PADDED_ROWS][PADDED_COLS]; /* of the loss with respect to the tensor */
} Entries;

/* Prepares for an experiment. */
INLINE void prepare(Entries *entries, const real *targets, const real *weights) {
    (void)targets, (void)weights;
    memset(entries, 0, sizeof(Entries));
}

/* Computes the gradients of the factors from those of K_1 and K_2, where T = K_1 K_2^T: G K_2 and G^T K_1, where G is
   the gradient of T. */
static __attribute__((noinline)) void compute_gradients(Work *work, Entries *entries, const real *targets,
                                                        const real *weights) {
    forward(work);
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLS; j++)
            entries->gradient[i][j] = (work->output[i][j] - targets[i * COLS + j]) * weights[i * COLS + j];
    for (int64_t panel = 0; panel < PANELS; panel++) {
        Row *products = work->products[0];
        const Row *first = khatri_rao(work, panel, 0, SPLIT, products, MOST_ROWS);
        const Row *second = khatri_rao(work, panel, 1, ORDER, products, MOST_ROWS);
        Row *back = work->back[0];
        for (int i = 0; i < ROWS; i += TILE_ROWS)
            tile(COLS, entries->gradient[i], PADDED_COLS, 1, (const real *)second, PANEL, (real *)back[i], PANEL, 0);
        khatri_rao_backward(work, panel, 0, SPLIT, products, MOST_ROWS, ROWS, back);
        back = work->back[1];
        for (int j = 0; j < COLS; j += TILE_ROWS)
            tile(ROWS, &entries->gradient[0][j], 1, PADDED_COLS, (const real *)first, PANEL, (real *)back[j], PANEL, 0);
        khatri_rao_backward(work, panel, 1, ORDER, products, MOST_ROWS, COLS, back);
    }
}

/* Returns the loss of the last call of compute_gradients. */
INLINE real loss_of(const Work *work, const Entries *entries, const real *targets) {
    real loss = 0;
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLS; j++) loss += (work->output[i][j] - targets[i * COLS + j]) * entries->gradient[i][j];
    return loss / 2;
}
