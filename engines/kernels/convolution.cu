// What a convolution's products need, NHWC, int8 in and int8 or int32 out.

// The column matrix (engines/im2col.py) of some lines of windows, four bytes a thread: `inner`, the
// bytes of a row, is a multiple of 8, and what lies behind a window's taps is zero. With `relu`
// codes below zero count as zero; `cap`, null or one code, is the most that a code counts for.
extern "C" __global__ void im2col(const int8 *x, int *columns, const int8 *cap, int relu,
                                  int words, int inner, int height, int width, int channels,
                                  int taps_down, int taps_across, int stride, int top, int left,
                                  int first_line, int lines, int across) {
    unsigned i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= (unsigned)words) return;
    unsigned row = i / (unsigned)(inner / 4);
    int place = (int)(i - row * (unsigned)(inner / 4)) * 4;
    int across_at = row % across, line = row / across % lines, image = row / across / lines;
    int y0 = (first_line + line) * stride + top, x0 = across_at * stride + left;
    unsigned word = 0;
    for (int b = 0; b < 4; b++, place++) {
        int tap = place / channels, channel = place - tap * channels;
        int down = tap / taps_across;
        int py = y0 + down, px = x0 + tap - down * taps_across;
        if (down >= taps_down || py < 0 || py >= height || px < 0 || px >= width) continue;
        int code = x[(((size_t)image * height + py) * width + px) * channels + channel];
        if (relu && code < 0) code = 0;
        if (cap && code > cap[0]) code = cap[0];
        word |= (unsigned)(code & 0xFF) << (8 * b);
    }
    columns[i] = (int)word;
}

// Sums of a depthwise convolution over windows that lie as strides tell (engines/depthwise.py,
// _forward): `seen` is the first window's first tap, channels next to one another.
extern "C" __global__ void depthwise(const int8 *seen, const int *taps, int *sums, int count,
                                     int down, int across, int channels, int kernel,
                                     int image_stride, int line_stride, int window_stride,
                                     int tap_down_stride, int tap_across_stride) {
    unsigned i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= (unsigned)count) return;
    unsigned window = i / (unsigned)channels;
    int c = (int)(i - window * (unsigned)channels);
    int at = window % (unsigned)across, line = window / (unsigned)across % (unsigned)down;
    int image = window / (unsigned)across / (unsigned)down;
    const int8 *first = seen + (size_t)image * image_stride + (size_t)line * line_stride +
                        (size_t)at * window_stride + c;
    int sum = 0;
    for (int ty = 0; ty < kernel; ty++)
        for (int tx = 0; tx < kernel; tx++)
            sum += first[(size_t)ty * tap_down_stride + (size_t)tx * tap_across_stride] *
                   taps[(ty * kernel + tx) * channels + c];
    sums[i] = sum;
}
