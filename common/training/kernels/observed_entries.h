/* Gradients of the loss from the observed entries only, for tensors of which few entries are observed. */

/* Entries are sorted by their row in the outer group, the one with more rows. Its last mode is LAST_OUTER, of OUTER_DIM
   rows; the product of its other modes has REST_ROWS rows. */
#define INNER (ROWS > COLS)
#define OUTER (!INNER)
#define INNER_ROWS MIN(ROWS, COLS)
#define OUTER_ROWS MAX(ROWS, COLS)
#define LAST_OUTER (OUTER ? ORDER - 1 : SPLIT - 1)
#define OUTER_DIM (OUTER ? LAST_DIM : SPLIT_DIM)
#define REST_ROWS (OUTER_ROWS / OUTER_DIM)
#define KEPT_ROWS MAX(INNER_ROWS, REST_ROWS)

/* Where the entries of each outer row begin, and for each entry: its row in the inner group, its target and weight, the
   model's value, the gradient of the loss, and sums whose total is the model's value; then the Khatri-Rao products, which
   are formed once a step. */
typedef struct {
    int64_t begins[OUTER_ROWS + 1];
    int32_t inner_rows[ROWS * COLS];
    real targets[ROWS * COLS], weights[ROWS * COLS], values[ROWS * COLS], residuals[ROWS * COLS];
    vec sums[ROWS * COLS];
    Row products[PANELS][ORDER][KEPT_ROWS];
} Entries;

/* Finds the observed entries, those whose weight is not zero. */
INLINE void prepare(Entries *entries, const real *targets, const real *weights) {
    int64_t count = 0;
    for (int64_t outer = 0; outer < OUTER_ROWS; outer++) {
        entries->begins[outer] = count;
        for (int64_t inner = 0; inner < INNER_ROWS; inner++) {
            const int64_t entry = OUTER ? inner * COLS + outer : outer * COLS + inner;
            if (weights[entry] == 0) continue;
            entries->inner_rows[count] = (int32_t)inner;
            entries->targets[count] = targets[entry];
            entries->weights[count++] = weights[entry];
        }
    }
    entries->begins[OUTER_ROWS] = count;
}

/* Returns the sum of the lanes. */
INLINE real total(vec values) {
    typedef real half __attribute__((vector_size(VECTOR_BYTES / 2)));
    half halves[2];
    memcpy(halves, &values, sizeof(vec));
    halves[0] += halves[1];
    real sums[LANES / 2];
    memcpy(sums, halves, sizeof(half));
    for (int64_t width = LANES / 4; width; width /= 2)
        for (int64_t lane = 0; lane < width; lane++) sums[lane] += sums[lane + width];
    return sums[0];
}

/* Computes row (a, b) of the outer Khatri-Rao product: row a of `rest`, the product of all modes but the last, times
   row b of `last`. */
INLINE void outer_row(const Row *rest, const Row *last, int a, int b, Row row) {
    for (int v = 0; v < TILE_VECTORS; v++) row[v] = rest ? rest[a][v] * last[b][v] : last[b][v];
}

/* Computes the observed entries, and the gradient of the loss with respect to them. */
INLINE void compute_residuals(Work *work, Entries *entries) {
    for (int64_t panel = 0; panel < PANELS; panel++) {
        Row *products = entries->products[panel][0];
        const Row *inner = khatri_rao(work, panel, INNER, group_begin[INNER + 1], products, KEPT_ROWS);
        const Row *rest = khatri_rao(work, panel, OUTER, LAST_OUTER, products, KEPT_ROWS);
        const Row *last = work->factors[panel] + mode_row(LAST_OUTER);
        for (int a = 0; a < REST_ROWS; a++)
            for (int b = 0; b < OUTER_DIM; b++) {
                int64_t e = entries->begins[a * OUTER_DIM + b];
                const int64_t end = entries->begins[a * OUTER_DIM + b + 1];
                if (e == end) continue;
                Row outer;
                outer_row(rest, last, a, b, outer);
                for (; e < end; e++) {
                    vec sum = panel ? entries->sums[e] : (vec){0};
                    for (int v = 0; v < TILE_VECTORS; v++) sum += inner[entries->inner_rows[e]][v] * outer[v];
                    entries->sums[e] = sum;
                }
            }
    }
    for (int64_t e = 0; e < entries->begins[OUTER_ROWS]; e++) {
        entries->values[e] = total(entries->sums[e]);
        entries->residuals[e] = (entries->values[e] - entries->targets[e]) * entries->weights[e];
    }
}

/* Computes the gradients of a panel from those of the observed entries. */
INLINE void panel_backward(Work *work, const Entries *entries, int64_t panel) {
    const Row *products = entries->products[panel][0];
    const Row *inner = products + (group_begin[INNER + 1] - 1) * KEPT_ROWS;
    const Row *rest = LAST_OUTER > group_begin[OUTER] ? products + (LAST_OUTER - 1) * KEPT_ROWS : NULL;
    const Row *last = work->factors[panel] + mode_row(LAST_OUTER);
    Row *last_gradient = work->gradients[panel] + mode_row(LAST_OUTER);
    Row *back = work->back[INNER];
    memset(back, 0, INNER_ROWS * sizeof(Row));
    memset(last_gradient, 0, OUTER_DIM * sizeof(Row));
    for (int a = 0; a < REST_ROWS; a++) {
        Row rest_sum = {0};
        for (int b = 0; b < OUTER_DIM; b++) {
            int64_t e = entries->begins[a * OUTER_DIM + b];
            const int64_t end = entries->begins[a * OUTER_DIM + b + 1];
            if (e == end) continue;
            Row outer, sum = {0};
            outer_row(rest, last, a, b, outer);
            for (; e < end; e++) {
                /* A copy, because the compiler must assume that `back` overlaps with the residuals. */
                const real residual = entries->residuals[e];
                const int64_t row = entries->inner_rows[e];
                for (int v = 0; v < TILE_VECTORS; v++) {
                    sum[v] += residual * inner[row][v];
                    back[row][v] += residual * outer[v];
                }
            }
            for (int v = 0; v < TILE_VECTORS; v++) {
                last_gradient[b][v] += rest ? sum[v] * rest[a][v] : sum[v];
                rest_sum[v] += sum[v] * last[b][v];
            }
        }
        memcpy(work->back[OUTER][a], rest_sum, sizeof(Row));
    }
    khatri_rao_backward(work, panel, INNER, group_begin[INNER + 1], products, KEPT_ROWS, INNER_ROWS, back);
    if (rest) khatri_rao_backward(work, panel, OUTER, LAST_OUTER, products, KEPT_ROWS, REST_ROWS, work->back[OUTER]);
}

/* Computes the gradients of the factors. */
static __attribute__((noinline)) void compute_gradients(Work *work, Entries *entries, const real *targets,
                                                        const real *weights) {
    (void)targets, (void)weights;
    compute_residuals(work, entries);
    for (int64_t panel = 0; panel < PANELS; panel++) panel_backward(work, entries, panel);
}

/* Returns the loss of the last call of compute_gradients. */
INLINE real loss_of(const Work *work, const Entries *entries, const real *targets) {
    (void)work, (void)targets;
    real loss = 0;
    for (int64_t e = 0; e < entries->begins[OUTER_ROWS]; e++)
        loss += (entries->values[e] - entries->targets[e]) * entries->residuals[e];
    return loss / 2;
}
