// What every kernel shares: how a float becomes a code, the rounding noise, sums over a block.
//
// All .cu files of this folder are one translation unit behind this file (engines/cuda_driver.py).
// Compiled without fused multiply-add and with IEEE division and square root, every float here has
// the bits that torch's operators give one by one; sums alone have an order of their own.

#define CODE_MAX 127
#define THREADS 256       // of a block that is one-dimensional; a power of two
#define CHANNEL_LANES 32  // of a block over channels and pixels: channels ...
#define PIXEL_LANES 8     // ... and pixels at a time

typedef signed char int8;

// As torch's amax: not a number wins.
static __device__ __forceinline__ float larger(float a, float b) { return a > b || a != a ? a : b; }

// engines/int8.py: scale_of.
static __device__ __forceinline__ float scale_of(float absmax) {
    float scale = absmax * (float)(1.0 / CODE_MAX);
    return scale < 1e-37f ? 1.0f : scale;
}

static __device__ __forceinline__ int clipped(int code, int limit) {
    return code < -limit ? -limit : code > limit ? limit : code;
}

// engines/int8.py: round_steps, to the nearest; and stochastically, with `bits` of the draw.
static __device__ __forceinline__ int nearest(float steps) {
    return clipped(__float2int_rn(steps), CODE_MAX);
}

static __device__ __forceinline__ int stochastic(float steps, unsigned draw, int limit, int bits) {
    int parts = __float2int_rn(steps * (float)(1 << bits));
    return clipped((parts + (int)(draw >> (16 - bits))) >> bits, limit);
}

// engines/rounding.py: the word of an element, of which either half is a draw.
static __device__ __forceinline__ unsigned noise_word(int row, int column, int key) {
    unsigned word = (unsigned)(row ^ column ^ key) * 0x7FEB352Du;
    return (word ^ (word >> 15)) * 0x846CA68Bu;
}

// Over a block of THREADS; every thread calls it, and every thread gets the result. `shared` has
// THREADS places. GROUPS threads take what lies GROUPS apart, then each thread takes these few: two
// waits, where halving would have eight. The order of a sum is always this one.
#define GROUPS 16

static __device__ float block_largest(float value, float *shared) {
    int t = threadIdx.x;
    shared[t] = value;
    __syncthreads();
    if (t < GROUPS)
        for (int i = t + GROUPS; i < THREADS; i += GROUPS) shared[t] = larger(shared[t], shared[i]);
    __syncthreads();
    float result = shared[0];
    for (int i = 1; i < GROUPS; i++) result = larger(result, shared[i]);
    __syncthreads();
    return result;
}

static __device__ float block_sum(float value, float *shared) {
    int t = threadIdx.x;
    shared[t] = value;
    __syncthreads();
    if (t < GROUPS)
        for (int i = t + GROUPS; i < THREADS; i += GROUPS) shared[t] = shared[t] + shared[i];
    __syncthreads();
    float result = shared[0];
    for (int i = 1; i < GROUPS; i++) result = result + shared[i];
    __syncthreads();
    return result;
}
