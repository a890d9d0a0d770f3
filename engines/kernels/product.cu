// A product of a few rows: int32 [rows, outputs] = int8 [rows, inner] times int8 [outputs, inner]
// transposed. Such a product is as long as reading the weights takes, so each weight is read once,
// for all rows. Blocks are LANES by OUTPUTS: lanes share the inner axis.

#define MOST_ROWS 16
#define LANES 32
#define OUTPUTS 4

extern "C" __global__ void small_product(const int8 *a, const int8 *weights, int *sums, int rows,
                                         int outputs, int inner) {
    __shared__ int shared[OUTPUTS][LANES];
    int lane = threadIdx.x, output = blockIdx.x * OUTPUTS + threadIdx.y;
    int found[MOST_ROWS];
    for (int m = 0; m < MOST_ROWS; m++) found[m] = 0;
    if (output < outputs) {
        const int8 *mine = weights + (size_t)output * inner;
        // Rows that lie on words are read as words.
        if (((size_t)a | (size_t)weights | (size_t)inner) % 4 == 0) {
            for (int k = lane; k < inner / 4; k += LANES) {
                int word = ((const int *)mine)[k];
#pragma unroll
                for (int m = 0; m < MOST_ROWS; m++)
                    if (m < rows)
                        found[m] = __dp4a(word, ((const int *)(a + (size_t)m * inner))[k], found[m]);
            }
        } else {
            for (int k = lane; k < inner; k += LANES) {
#pragma unroll
                for (int m = 0; m < MOST_ROWS; m++)
                    if (m < rows) found[m] += mine[k] * a[(size_t)m * inner + k];
            }
        }
    }
#pragma unroll
    for (int m = 0; m < MOST_ROWS; m++) {
        if (m >= rows) break;  // of the whole block at once
        shared[threadIdx.y][lane] = found[m];
        __syncthreads();
        for (int half = LANES / 2; half; half /= 2) {
            if (lane < half) shared[threadIdx.y][lane] += shared[threadIdx.y][lane + half];
            __syncthreads();
        }
        if (lane == 0 && output < outputs) sums[(size_t)m * outputs + output] = shared[threadIdx.y][0];
        __syncthreads();
    }
}
