/* Preloaded into a process under test: fails its file operations at a chosen call, and shifts its
   wall clock. What to do is read, at every call, from a file that the harness maps as well.

   Operations count when they are on a file below `prefix`: write, pwrite, fsync, fdatasync,
   ftruncate, rename. They are numbered from 1; action says what becomes of number `at`, and, where it is
   to last, of all that follow. Monotonic clocks are left alone.

   LOSE is what Linux makes of an I/O error: a sync fails once, the pages it was to write count as
   clean, and the next sync succeeds without them. So after a sync that was made to fail those of the
   same file do nothing and succeed, until it is truncated, after which all of it is written anew. A
   folder's entries lie in the journal, which stays dirty. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { NOTHING, LOSE, FAIL_FROM, KILL, TEAR };
enum { LOST_FILES = 64 };

struct control {
    _Atomic int64_t action, error, at, calls, struck, clock_offset_seconds, sync_delay_microseconds,
        recording;
    char prefix[512];
    char kinds[4096]; /* of the calls counted: S sync, T truncate, W write, R rename */
};

static struct control *control;
static int trace = -1;

__attribute__((constructor)) static void map_control(void) {
    const char *path = getenv("TORTURE_SHIM"), *record = getenv("TORTURE_TRACE");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) return;
    trace = record ? open(record, O_WRONLY | O_APPEND | O_CLOEXEC) : -1;
    void *found = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (found != MAP_FAILED) control = found;
    close(file);
}

static int counts(const char *path) {
    size_t length = strnlen(control->prefix, sizeof control->prefix);
    return length && strncmp(path, control->prefix, length) == 0;
}

static int counts_file(int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return counts(path);
}

/* What becomes of this call: an action, NOTHING if it is to be done. */
static int64_t fate(char kind) {
    int64_t number = atomic_fetch_add(&control->calls, 1) + 1, at = control->at;
    if (number < (int64_t)sizeof control->kinds) control->kinds[number] = kind;
    int64_t action = control->action;
    if (action == NOTHING || number < at || (number > at && action != FAIL_FROM)) return NOTHING;
    atomic_fetch_add(&control->struck, 1);
    if (action == KILL) raise(SIGKILL);
    return action;
}

static int fails(char kind) {
    int64_t action = fate(kind);
    if (action == TEAR) raise(SIGKILL);
    if (action == NOTHING) return 0;
    errno = (int)control->error;
    return 1;
}

static _Atomic uint64_t lost[LOST_FILES]; /* inodes */

static uint64_t inode(int file) { /* 0 where it is no regular file */
    struct stat found;
    return fstat(file, &found) || !S_ISREG(found.st_mode) ? 0 : (uint64_t)found.st_ino;
}

static int is_lost(int file) {
    uint64_t own = inode(file);
    for (int i = 0; own && i < LOST_FILES; i++)
        if (lost[i] == own) return 1;
    return 0;
}

static void lose(int file) {
    uint64_t own = inode(file);
    for (int i = 0; i < LOST_FILES; i++) {
        uint64_t free_place = 0;
        if (!own || atomic_compare_exchange_strong(&lost[i], &free_place, own)) return;
    }
    abort();
}

static void written_anew(int file) {
    uint64_t own = inode(file);
    for (int i = 0; own && i < LOST_FILES; i++) {
        uint64_t found = own;
        atomic_compare_exchange_strong(&lost[i], &found, 0);
    }
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)

/* Appends what was done to the trace: kind, offset, and the sizes of path and data, all int64, then
   these two. A truncation has its size for an offset. */
static void record(char kind, int file, int64_t offset, const void *data, int64_t size) {
    if (!control->recording || trace < 0) return;
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path);
    int64_t head[4] = {kind, offset, length, size};
    char *entry = length < 0 ? NULL : malloc(sizeof head + length + size);
    if (!entry) abort();
    memcpy(entry, head, sizeof head);
    memcpy(entry + sizeof head, path, length);
    if (size) memcpy(entry + sizeof head + length, data, size);
    if (real(trace, entry, sizeof head + length + size) < 0) abort();
    free(entry);
}

#define SYNC_CALL(name)                                                                            \
    int name(int file) {                                                                           \
        REAL(name);                                                                                \
        if (control && control->prefix[0] && counts_file(file)) {                                  \
            if (fails('S')) {                                                                      \
                if (control->action == LOSE) lose(file);                                           \
                return -1;                                                                         \
            }                                                                                      \
            if (is_lost(file)) return 0;                                                           \
            usleep((useconds_t)control->sync_delay_microseconds);                                  \
            int done = real(file);                                                                 \
            if (!done) record('S', file, 0, NULL, 0);                                              \
            return done;                                                                           \
        }                                                                                          \
        return real(file);                                                                         \
    }

#define TRUNCATE_CALL(name, type)                                                                  \
    int name(int file, type size) {                                                                \
        REAL(name);                                                                                \
        if (control && control->prefix[0] && counts_file(file)) {                                  \
            if (fails('T')) return -1;                                                             \
            written_anew(file);                                                                    \
            record('T', file, size, NULL, 0);                                                      \
        }                                                                                          \
        return real(file, size);                                                                   \
    }

#define WRITE_CALL(name, parameters, half, where, ...)                                             \
    ssize_t name parameters {                                                                      \
        REAL(name);                                                                                \
        if (!control || !control->prefix[0] || !counts_file(file)) return real(__VA_ARGS__);       \
        int64_t action = fate('W');                                                                \
        if (action == TEAR) {                                                                      \
            (void)!half;                                                                           \
            raise(SIGKILL);                                                                        \
        }                                                                                          \
        if (action != NOTHING) {                                                                   \
            errno = (int)control->error;                                                           \
            return -1;                                                                             \
        }                                                                                          \
        ssize_t done = real(__VA_ARGS__);                                                          \
        if (done > 0) record('W', file, where, from, done);                                        \
        return done;                                                                               \
    }

SYNC_CALL(fsync)
SYNC_CALL(fdatasync)
TRUNCATE_CALL(ftruncate, off_t)
TRUNCATE_CALL(ftruncate64, off64_t)
WRITE_CALL(write, (int file, const void *from, size_t size), real(file, from, size / 2),
           lseek(file, 0, SEEK_CUR) - done, file, from, size)
WRITE_CALL(pwrite, (int file, const void *from, size_t size, off_t where),
           real(file, from, size / 2, where), where, file, from, size, where)
WRITE_CALL(pwrite64, (int file, const void *from, size_t size, off64_t where),
           real(file, from, size / 2, where), where, file, from, size, where)

int rename(const char *from, const char *to) {
    REAL(rename);
    if (control && control->prefix[0] && counts(to) && fails('R')) return -1;
    return real(from, to);
}

static int64_t offset(void) { return control ? control->clock_offset_seconds : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int done = real(clock, now);
    if (done == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += offset();
    return done;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    REAL(gettimeofday);
    int done = real(now, zone);
    if (done == 0) now->tv_sec += offset();
    return done;
}

time_t time(time_t *where) {
    REAL(time);
    time_t now = real(NULL) + offset();
    if (where) *where = now;
    return now;
}
