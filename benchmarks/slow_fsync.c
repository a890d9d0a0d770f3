/* Preloaded into the daemon: every fsync and fdatasync takes so many microseconds longer, as on a
 * flash device without power-loss protection.
 *
 *     cc -shared -fPIC -O2 -o slow_fsync.so slow_fsync.c -ldl
 *     FSYNC_DELAY_MICROSECONDS=5000 LD_PRELOAD=./slow_fsync.so ffedge serve
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

static void wait_as_asked(void)
{
    const char *text = getenv("FSYNC_DELAY_MICROSECONDS");
    long microseconds = text ? atol(text) : 0;
    struct timespec left = {microseconds / 1000000, microseconds % 1000000 * 1000};
    nanosleep(&left, NULL);
}

int fsync(int file)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    wait_as_asked();
    return real(file);
}

int fdatasync(int file)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    wait_as_asked();
    return real(file);
}
