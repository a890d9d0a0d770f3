// A step of weights that are their own codes (engines/masters.py, _move). What is one number a row
// is computed by torch between the two passes, in the same code for either way of running.

// Largest magnitude and mean square of each row of a gradient's sums. A block per row.
extern "C" __global__ void gradient_rows(const int *values, float *reach, float *mean_square,
                                         int columns) {
    __shared__ float shared[THREADS];
    const int *row = values + (size_t)blockIdx.x * columns;
    float largest = 0.0f, squares = 0.0f;
    for (int c = threadIdx.x; c < columns; c += THREADS) {
        float v = (float)row[c];
        largest = larger(largest, fabsf(v));
        squares = squares + v * v;
    }
    largest = block_largest(largest, shared);
    squares = block_sum(squares, shared);
    if (threadIdx.x == 0) {
        reach[blockIdx.x] = largest;
        mean_square[blockIdx.x] = squares / (float)columns;
    }
}

// Sum of squares of each column, over `rows_each` rows a part. Grid: columns, parts.
extern "C" __global__ void gradient_columns(const int *values, const float *row_scales,
                                            float *sums, int rows, int columns, int rows_each) {
    int c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= columns) return;
    int first = blockIdx.y * rows_each, end = first + rows_each < rows ? first + rows_each : rows;
    float sum = 0.0f;
    for (int r = first; r < end; r++) {
        float g = (float)values[(size_t)r * columns + c] * row_scales[r];
        sum = sum + g * g;
    }
    sums[(size_t)blockIdx.y * columns + c] = sum;
}

// New momentum and new weights, and how large a row's are: in steps of the new codes, and in codes
// of the momentum. `remainder` and `new_remainder` are null for weights that have none, whose codes
// are then the steps themselves; `column_factors` is null for SGD. A block per row.
extern "C" __global__ void move_rows(const int *values, const int8 *codes, const int8 *remainder,
                                     const int8 *momentum, const float *kept_factors,
                                     const float *taken_factors, const float *held_factors,
                                     const float *change_factors, const float *column_factors,
                                     const int *noise_rows, const int *noise_columns,
                                     int key, int8 *new_codes, int8 *new_remainder,
                                     int8 *new_momentum, float *largest_steps,
                                     float *largest_momentum, int columns) {
    __shared__ float shared[THREADS];
    int r = blockIdx.x;
    size_t row = (size_t)r * columns;
    float kept = kept_factors[r], taken = taken_factors[r];
    float stays = held_factors[r], moves = change_factors[r];
    float farthest = 0.0f, strongest = 0.0f;
    for (int c = threadIdx.x; c < columns; c += THREADS) {
        size_t i = row + c;
        float m = (float)momentum[i] * kept + (float)values[i] * taken;
        float change = m * moves;
        if (column_factors) change = change * column_factors[c];
        int held = remainder ? codes[i] * 256 + remainder[i] : codes[i];
        float steps = (float)held * stays - change;
        unsigned word = noise_word(noise_rows[r], noise_columns[c], key);
        if (remainder) {
            int moved = stochastic(steps, word & 0xFFFFu, CODE_MAX * 256, 8);
            new_codes[i] = (int8)((moved + 128) >> 8);
            new_remainder[i] = (int8)moved;
        } else {
            new_codes[i] = (int8)stochastic(steps, word & 0xFFFFu, CODE_MAX, 16);
        }
        int pushed = stochastic(m, word >> 16, CODE_MAX, 16);
        new_momentum[i] = (int8)pushed;
        farthest = larger(farthest, fabsf(steps));
        strongest = larger(strongest, fabsf((float)pushed));
    }
    farthest = block_largest(farthest, shared);
    strongest = block_largest(strongest, shared);
    if (threadIdx.x == 0) {
        largest_steps[r] = farthest;
        largest_momentum[r] = strongest;
    }
}
