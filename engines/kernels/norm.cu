// The passes of a convolution's batch norm over batch and pixels (engines/conv_norm.py). What is one
// number a channel, or one a channel and sample, is computed by torch between the passes, in the
// same code for either way of running. Blocks are CHANNEL_LANES by PIXEL_LANES; grids: channels, samples.

#define NO_ACTIVATION 0
#define RELU 1
#define RELU6 2

// An error at the activity, carried to the pre-activation with code q: engines/feature.py.
// `integer`: the values are a product's sums. `six`: how many codes the 6 of a ReLU6 is.
static __device__ __forceinline__ float error_at(const void *values, int integer, size_t i, float q,
                                                 int activation, const float *six) {
    float error = integer ? (float)((const int *)values)[i] : ((const float *)values)[i];
    if (activation == RELU6) error = q < six[0] ? error : 0.0f;
    return activation == NO_ACTIVATION || q > 0.0f ? error : 0.0f;
}

static __device__ __forceinline__ float joined_sum(const float lanes[][CHANNEL_LANES]) {
    float sum = lanes[0][threadIdx.x];
    for (int lane = 1; lane < PIXEL_LANES; lane++) sum = sum + lanes[lane][threadIdx.x];
    return sum;
}

// Of each sample and channel: mean and mean square of the sums, the least and the largest.
extern "C" __global__ void channel_moments(const int *sums, float *mean, float *square, int *low,
                                           int *high, int pixels, int channels) {
    __shared__ float totals[PIXEL_LANES][CHANNEL_LANES], squares[PIXEL_LANES][CHANNEL_LANES];
    __shared__ int lows[PIXEL_LANES][CHANNEL_LANES], highs[PIXEL_LANES][CHANNEL_LANES];
    int c = blockIdx.x * CHANNEL_LANES + threadIdx.x, lane = threadIdx.y;
    float total = 0.0f, of_squares = 0.0f;
    int least = 2147483647, most = -2147483647 - 1;
    for (int p = lane; p < pixels && c < channels; p += PIXEL_LANES) {
        int sum = sums[((size_t)blockIdx.y * pixels + p) * channels + c];
        float value = (float)sum;
        total = total + value;
        of_squares = of_squares + value * value;
        least = sum < least ? sum : least;
        most = sum > most ? sum : most;
    }
    totals[lane][threadIdx.x] = total;
    squares[lane][threadIdx.x] = of_squares;
    lows[lane][threadIdx.x] = least;
    highs[lane][threadIdx.x] = most;
    __syncthreads();
    if (lane || c >= channels) return;
    for (int other = 1; other < PIXEL_LANES; other++) {
        least = lows[other][threadIdx.x] < least ? lows[other][threadIdx.x] : least;
        most = highs[other][threadIdx.x] > most ? highs[other][threadIdx.x] : most;
    }
    size_t place = (size_t)blockIdx.y * channels + c;
    mean[place] = joined_sum(totals) / (float)pixels;
    square[place] = joined_sum(squares) / (float)pixels;
    low[place] = least;
    high[place] = most;
}

// Codes of `sum * factor + shift`, both one a channel.
extern "C" __global__ void affine_codes(const int *sums, const float *factors, const float *shifts,
                                        int8 *codes, int count, int channels) {
    unsigned i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= (unsigned)count) return;
    unsigned c = i % (unsigned)channels;
    codes[i] = (int8)nearest((float)sums[i] * factors[c] + shifts[c]);
}

// Of each sample and channel: sum of the error, and of the error times the code.
extern "C" __global__ void norm_error_sums(const void *values, int integer, const int8 *codes,
                                           int activation, const float *six, float *sums,
                                           float *products, int pixels, int channels) {
    __shared__ float totals[PIXEL_LANES][CHANNEL_LANES], weighed[PIXEL_LANES][CHANNEL_LANES];
    int c = blockIdx.x * CHANNEL_LANES + threadIdx.x, lane = threadIdx.y;
    float total = 0.0f, of_products = 0.0f;
    for (int p = lane; p < pixels && c < channels; p += PIXEL_LANES) {
        size_t i = ((size_t)blockIdx.y * pixels + p) * channels + c;
        float q = (float)codes[i];
        float dz = error_at(values, integer, i, q, activation, six);
        total = total + dz;
        of_products = of_products + dz * q;
    }
    totals[lane][threadIdx.x] = total;
    weighed[lane][threadIdx.x] = of_products;
    __syncthreads();
    if (lane || c >= channels) return;
    size_t place = (size_t)blockIdx.y * channels + c;
    sums[place] = joined_sum(totals);
    products[place] = joined_sum(weighed);
}

// The error at the convolution's output: `slopes` is one a channel, or one a sample and channel.
static __device__ __forceinline__ float error_before_norm(float dz, float q, float slope,
                                                          float offset, float tilt) {
    return slope * dz + offset + tilt * q;
}

// How far that error reaches in each sample and channel.
extern "C" __global__ void norm_error_reach(const void *values, int integer, const int8 *codes,
                                            int activation, const float *six, const float *slopes,
                                            int slopes_by_sample, const float *offsets,
                                            const float *tilts, float *reach, int pixels,
                                            int channels) {
    __shared__ float lanes[PIXEL_LANES][CHANNEL_LANES];
    int c = blockIdx.x * CHANNEL_LANES + threadIdx.x, lane = threadIdx.y;
    float largest = 0.0f;
    for (int p = lane; p < pixels && c < channels; p += PIXEL_LANES) {
        size_t i = ((size_t)blockIdx.y * pixels + p) * channels + c;
        float q = (float)codes[i];
        float dz = error_at(values, integer, i, q, activation, six);
        float slope = slopes[(slopes_by_sample ? (size_t)blockIdx.y * channels : 0) + c];
        largest = larger(largest, fabsf(error_before_norm(dz, q, slope, offsets[c], tilts[c])));
    }
    lanes[lane][threadIdx.x] = largest;
    __syncthreads();
    if (lane || c >= channels) return;
    for (int other = 1; other < PIXEL_LANES; other++)
        largest = larger(largest, lanes[other][threadIdx.x]);
    reach[(size_t)blockIdx.y * channels + c] = largest;
}

// That error in steps of a channel's scale and of a sample's, rounded; see error_codes.
extern "C" __global__ void norm_error_codes(const void *values, int integer, const int8 *codes,
                                            int activation, const float *six, const float *slopes,
                                            int slopes_by_sample, const float *offsets,
                                            const float *tilts, const float *per_channel,
                                            const float *per_sample, const int *noise_rows,
                                            const int *noise_columns, int key,
                                            int8 *by_channel, int8 *by_sample, int count,
                                            int pixels, int channels) {
    unsigned i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= (unsigned)count) return;
    unsigned row = i / (unsigned)channels, c = i - row * (unsigned)channels;
    size_t of_sample = (size_t)(row / (unsigned)pixels) * channels + c;
    float q = (float)codes[i];
    float dz = error_at(values, integer, i, q, activation, six);
    float slope = slopes[slopes_by_sample ? of_sample : c];
    float du = error_before_norm(dz, q, slope, offsets[c], tilts[c]);
    unsigned word = noise_word(noise_rows[row], noise_columns[c], key);
    if (by_channel)
        by_channel[i] = (int8)stochastic(du * per_channel[c], word & 0xFFFFu, CODE_MAX, 16);
    if (by_sample)
        by_sample[i] = (int8)stochastic(du * per_sample[of_sample], word >> 16, CODE_MAX, 16);
}
