// Scales and codes of float32 tensors, to the nearest.

// Largest magnitude that each block meets. Grid: as many blocks as `parts` has places.
extern "C" __global__ void absmax_parts(const float *x, float *parts, int count) {
    __shared__ float shared[THREADS];
    float largest = 0.0f;
    // Counted without sign: the step past the end may be more than an int holds.
    for (unsigned i = blockIdx.x * THREADS + threadIdx.x; i < (unsigned)count;
         i += gridDim.x * THREADS)
        largest = larger(largest, fabsf(x[i]));
    largest = block_largest(largest, shared);
    if (threadIdx.x == 0) parts[blockIdx.x] = largest;
}

// The scale whose code 127 is the largest part. One block.
extern "C" __global__ void scale_of_parts(const float *parts, float *scale, int count) {
    __shared__ float shared[THREADS];
    float largest = 0.0f;
    for (int i = threadIdx.x; i < count; i += THREADS) largest = larger(largest, parts[i]);
    largest = block_largest(largest, shared);
    if (threadIdx.x == 0) scale[0] = scale_of(largest);
}

// One scale a row. A block per row.
extern "C" __global__ void row_scales(const float *x, float *scales, int columns) {
    __shared__ float shared[THREADS];
    const float *row = x + (size_t)blockIdx.x * columns;
    float largest = 0.0f;
    for (int c = threadIdx.x; c < columns; c += THREADS) largest = larger(largest, fabsf(row[c]));
    largest = block_largest(largest, shared);
    if (threadIdx.x == 0) scales[blockIdx.x] = scale_of(largest);
}

// Codes under a scale for every `share` elements that follow one another.
extern "C" __global__ void quantize(const float *x, const float *scales, int8 *codes, int count,
                                    int share) {
    unsigned i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= (unsigned)count) return;
    float steps = x[i] * (1.0f / scales[i / (unsigned)share]);
    steps = steps < -127.0f ? -127.0f : steps > 127.0f ? 127.0f : steps;
    codes[i] = (int8)nearest(steps);
}
