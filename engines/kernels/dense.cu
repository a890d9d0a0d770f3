// What a dense unit does with its sums (engines/dense.py, _forward). The activity is computed twice
// from the integer sums, and never stored: the sums are read again instead of a float32 copy.

static __device__ __forceinline__ float activity_of(int sum, float input_scale, float weight_scale,
                                                    float bias) {
    float y = (float)sum * (input_scale * weight_scale) + bias;
    return y < 0.0f ? 0.0f : y;
}

// Length of each row, and its largest activity over that. A block per row.
extern "C" __global__ void dense_rows(const int *sums, const float *input_scale,
                                      const float *weight_scales, const float *bias, float *length,
                                      float *reach, int columns, float epsilon) {
    __shared__ float shared[THREADS];
    const int *row = sums + (size_t)blockIdx.x * columns;
    float squares = 0.0f, largest = 0.0f;
    for (int c = threadIdx.x; c < columns; c += THREADS) {
        float y = activity_of(row[c], input_scale[0], weight_scales[c], bias[c]);
        squares = squares + y * y;
        largest = larger(largest, y);
    }
    squares = block_sum(squares, shared);
    largest = block_largest(largest, shared);
    if (threadIdx.x == 0) {
        float n = sqrtf(squares / (float)columns + epsilon);
        length[blockIdx.x] = n;
        reach[blockIdx.x] = largest * (1.0f / n);
    }
}

// Codes of each row's direction.
extern "C" __global__ void dense_codes(const int *sums, const float *input_scale,
                                       const float *weight_scales, const float *bias,
                                       const float *length, const float *scale, int8 *codes,
                                       int count, int columns) {
    unsigned i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= (unsigned)count) return;
    unsigned r = i / (unsigned)columns, c = i - r * (unsigned)columns;
    float y = activity_of(sums[i], input_scale[0], weight_scales[c], bias[c]);
    codes[i] = (int8)nearest(y * (1.0f / length[r]) * (1.0f / scale[0]));
}
