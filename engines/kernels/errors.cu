// A dense unit's error behind its ReLU, rounded once for each product that takes it
// (engines/dense.py, _backward). `kept` are the codes of the unit's output.

static __device__ __forceinline__ float behind_relu(float error, int8 kept) {
    return kept > 0 ? error : 0.0f;
}

// Largest magnitude and sum of each column, over `rows_each` rows a part. Grid: columns, parts.
extern "C" __global__ void error_columns(const float *error, const int8 *kept, float *reach,
                                         float *sums, int rows, int columns, int rows_each) {
    int c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= columns) return;
    int first = blockIdx.y * rows_each, end = first + rows_each < rows ? first + rows_each : rows;
    float largest = 0.0f, sum = 0.0f;
    for (int r = first; r < end; r++) {
        size_t i = (size_t)r * columns + c;
        float e = behind_relu(error[i], kept[i]);
        largest = larger(largest, fabsf(e));
        sum = sum + e;
    }
    reach[(size_t)blockIdx.y * columns + c] = largest;
    sums[(size_t)blockIdx.y * columns + c] = sum;
}

extern "C" __global__ void error_columns_joined(const float *reach, const float *sums,
                                                float *scales, float *bias, int parts,
                                                int columns) {
    int c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= columns) return;
    float largest = 0.0f, sum = 0.0f;
    for (int p = 0; p < parts; p++) {
        largest = larger(largest, reach[(size_t)p * columns + c]);
        sum = sum + sums[(size_t)p * columns + c];
    }
    scales[c] = scale_of(largest);
    bias[c] = sum;
}

// Scale of each row, with the weights' scales folded in. A block per row.
extern "C" __global__ void error_rows(const float *error, const int8 *kept,
                                      const float *weight_scales, float *scales, int columns) {
    __shared__ float shared[THREADS];
    size_t row = (size_t)blockIdx.x * columns;
    float largest = 0.0f;
    for (int c = threadIdx.x; c < columns; c += THREADS)
        largest = larger(largest,
                         fabsf(behind_relu(error[row + c], kept[row + c]) * weight_scales[c]));
    largest = block_largest(largest, shared);
    if (threadIdx.x == 0) scales[blockIdx.x] = scale_of(largest);
}

// Both roundings from one word an element; the one whose codes are null is left out.
extern "C" __global__ void error_codes(const float *error, const int8 *kept,
                                       const float *weight_scales, const float *column_scales,
                                       const float *row_scales, const int *noise_rows,
                                       const int *noise_columns, int key, int8 *by_column,
                                       int8 *by_row, int count, int columns) {
    unsigned i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= (unsigned)count) return;
    unsigned r = i / (unsigned)columns, c = i - r * (unsigned)columns;
    float e = behind_relu(error[i], kept[i]);
    unsigned word = noise_word(noise_rows[r], noise_columns[c], key);
    if (by_column) {
        float steps = e * (1.0f / column_scales[c]);
        by_column[i] = (int8)stochastic(steps, word & 0xFFFFu, CODE_MAX, 16);
    }
    if (by_row) {
        float steps = e * weight_scales[c] * (1.0f / row_scales[r]);
        by_row[i] = (int8)stochastic(steps, word >> 16, CODE_MAX, 16);
    }
}
