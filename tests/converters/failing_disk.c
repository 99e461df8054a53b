// A disk that fails on demand, for LD_PRELOAD: the real write and fsync, until a chosen call or byte.
//
//   mode 1: the n-th write or fsync of a regular file fails with EIO
//   mode 2: after n bytes the disk is full: the write that crosses the line is short, then ENOSPC
//   mode 3: the process is killed before its n-th write or fsync
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

static int mode;
static long limit;
static atomic_long calls, bytes;

void failing_disk_begin(int new_mode, long n) {
    calls = 0;
    bytes = 0;
    limit = n;
    mode = new_mode;
}

long failing_disk_calls(void) { return calls; }

long failing_disk_bytes(void) { return bytes; }

static int is_file(int fd) {
    struct stat status;
    return fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
}

// Counts one call; returns whether it fails.
static int fails(void) {
    long number = ++calls;
    if (number != limit) return 0;
    if (mode == 3) kill(getpid(), SIGKILL);
    return mode == 1;
}

ssize_t write(int fd, const void *data, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    if (!mode || !is_file(fd)) return real(fd, data, size);
    if (fails()) {
        errno = EIO;
        return -1;
    }
    if (mode == 2) {
        long room = limit - bytes;
        if (room <= 0 && size) {
            errno = ENOSPC;
            return -1;
        }
        if ((long)size > room) size = (size_t)room;
    }
    ssize_t written = real(fd, data, size);
    if (written > 0) bytes += written;
    return written;
}

int fsync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fsync");
    if (mode && is_file(fd) && fails()) {
        errno = EIO;
        return -1;
    }
    return real(fd);
}
