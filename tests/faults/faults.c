/* Faults: the calls that change what is on disk, counted; at the one that is asked for, the process dies or the disk fails.

   Loaded ahead of the C library (LD_PRELOAD), told by the environment what to do, when a process begins and whenever it calls
   `faults_arm`. A point is a call on something under FAULTS_UNDER; only the process that was armed has points, not its children.

       FAULTS_UNDER   a path: the directory or file that counts
       FAULTS_LOG     a file that gets a line for each point, "number call size path" (of the file before the call); beside it, FAULTS_LOG.fired says which one it was
       FAULTS_AT      the number of the point at which it happens, from 1; nothing happens without
       FAULTS_DO      kill-before, kill-half (after half of the bytes), kill-after, short (half of the bytes, and no error),
                      or the error that the call fails with: ENOSPC, EIO, EDQUOT, EFBIG
       FAULTS_CALLS   names of calls, separated by commas: only these are points
       FAULTS_LASTING if set, it happens at all points from there on, in later processes too; else once, in whatever process
*/

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum action { GO_ON, KILL_BEFORE, KILL_HALF, KILL_AFTER, SHORT, FAIL };

static pid_t armed; /* the process that counts; 0: none */
static char under[4096], calls[256], fired[4096];
static size_t under_length;
static int log_descriptor = -1, failure, lasting;
static long at;
static enum action what;
static atomic_long points;

static const struct { const char *name; enum action action; int failure; } ACTIONS[] = {
    {"kill-before", KILL_BEFORE, 0}, {"kill-half", KILL_HALF, 0}, {"kill-after", KILL_AFTER, 0}, {"short", SHORT, 0},
    {"ENOSPC", FAIL, ENOSPC}, {"EIO", FAIL, EIO}, {"EDQUOT", FAIL, EDQUOT}, {"EFBIG", FAIL, EFBIG},
};

/* System calls here, not the functions of these names: those are ours. */
static int opened(const char *path, int flags) { return syscall(SYS_openat, AT_FDCWD, path, flags, 0600); }

static void say(int descriptor, const char *line, size_t size) { if (syscall(SYS_write, descriptor, line, size)) {} }

static void quit(const char *complaint, const char *value)
{
    char line[512];
    say(2, line, snprintf(line, sizeof line, "faults: %s %s\n", complaint, value));
    _exit(99);
}

__attribute__((constructor)) void faults_arm(void)
{
    const char *value = getenv("FAULTS_UNDER"), *log = getenv("FAULTS_LOG"), *number = getenv("FAULTS_AT"), *doing = getenv("FAULTS_DO");
    armed = 0;
    if (log_descriptor >= 0)
        syscall(SYS_close, log_descriptor);
    log_descriptor = -1;
    if (!value)
        return;
    if (!log || strlen(value) >= sizeof under || strlen(log) + 8 > sizeof fired)
        quit("needs FAULTS_LOG, and shorter paths than", value);
    strcpy(under, value);
    under_length = strlen(under);
    log_descriptor = opened(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC);
    if (log_descriptor < 0)
        quit("cannot write", log);
    snprintf(fired, sizeof fired, "%s.fired", log);
    snprintf(calls, sizeof calls, ",%s,", getenv("FAULTS_CALLS") ? getenv("FAULTS_CALLS") : "");
    at = number ? atol(number) : 0;
    lasting = getenv("FAULTS_LASTING") != NULL;
    what = GO_ON;
    for (size_t i = 0; doing && i < sizeof ACTIONS / sizeof *ACTIONS; i++)
        if (!strcmp(doing, ACTIONS[i].name))
            what = ACTIONS[i].action, failure = ACTIONS[i].failure;
    if (at && what == GO_ON)
        quit("does not know how to do", doing ? doing : "nothing");
    points = 0;
    armed = getpid();
}

static enum action point(const char *call, int descriptor, const char *path)
{
    struct stat status;
    char line[8192], name[64];
    int size, before = errno, mark;
    long number;
    if (strncmp(path, under, under_length) || (path[under_length] && path[under_length] != '/' && path[under_length] != ' '))
        return GO_ON;
    snprintf(name, sizeof name, ",%s,", call);
    if (calls[1] != ',' && !strstr(calls, name))
        return GO_ON;
    number = atomic_fetch_add(&points, 1) + 1;
    if (descriptor < 0 || fstat(descriptor, &status))
        status.st_size = 0;
    size = snprintf(line, sizeof line, "%ld %s %ld %s\n", number, call, (long)status.st_size, path);
    say(log_descriptor, line, size);
    if (!at || (number < at && !(lasting && !syscall(SYS_faccessat, AT_FDCWD, fired, F_OK, 0))) || (number > at && !lasting)) {
        errno = before;
        return GO_ON;
    }
    mark = opened(fired, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC);
    if (mark >= 0) {
        say(mark, line, size);
        syscall(SYS_close, mark);
    }
    errno = before;
    return mark >= 0 || lasting ? what : GO_ON;
}

static const char *of_descriptor(int descriptor, char *buffer, size_t size)
{
    char link[64];
    ssize_t length;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    length = readlink(link, buffer, size - 1);
    buffer[length < 0 ? 0 : length] = 0;
    return buffer;
}

static enum action at_descriptor(const char *call, int descriptor)
{
    char path[4096];
    int before = errno;
    if (!armed || getpid() != armed)
        return GO_ON;
    of_descriptor(descriptor, path, sizeof path);
    errno = before;
    return point(call, descriptor, path);
}

static enum action at_path(const char *call, int directory, const char *path)
{
    char whole[8192];
    size_t length;
    int before = errno;
    if (!armed || getpid() != armed)
        return GO_ON;
    if (*path == '/')
        return point(call, -1, path);
    if (directory == AT_FDCWD) {
        if (!getcwd(whole, 4096))
            *whole = 0;
    } else
        of_descriptor(directory, whole, 4096);
    length = strlen(whole);
    snprintf(whole + length, sizeof whole - length, "/%s", path);
    errno = before;
    return point(call, -1, whole);
}

static void die(void)
{
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;)
        pause();
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) \
        real = dlsym(RTLD_NEXT, #name)

/* Calls that happen or do not. */
#define WHOLE(name, where, arguments, ...) \
    int name(__VA_ARGS__) \
    { \
        REAL(int, name, __VA_ARGS__); \
        enum action action = where; \
        int result; \
        if (action == FAIL) \
            return errno = failure, -1; \
        if (action == KILL_BEFORE || action == KILL_HALF) \
            die(); \
        result = real arguments; \
        if (action == KILL_AFTER) \
            die(); \
        return result; \
    }

WHOLE(fsync, at_descriptor("fsync", fd), (fd), int fd)
WHOLE(fdatasync, at_descriptor("fdatasync", fd), (fd), int fd)
WHOLE(ftruncate, at_descriptor("ftruncate", fd), (fd, size), int fd, off_t size)
WHOLE(ftruncate64, at_descriptor("ftruncate", fd), (fd, size), int fd, off64_t size)
WHOLE(rename, at_path("rename", AT_FDCWD, old), (old, new), const char *old, const char *new)
WHOLE(renameat, at_path("rename", from, old), (from, old, to, new), int from, const char *old, int to, const char *new)
WHOLE(renameat2, at_path("rename", from, old), (from, old, to, new, flags),
      int from, const char *old, int to, const char *new, unsigned flags)
WHOLE(mkdir, at_path("mkdir", AT_FDCWD, path), (path, mode), const char *path, mode_t mode)
WHOLE(mkdirat, at_path("mkdir", directory, path), (directory, path, mode), int directory, const char *path, mode_t mode)
WHOLE(unlink, at_path("unlink", AT_FDCWD, path), (path), const char *path)
WHOLE(unlinkat, at_path(flags & AT_REMOVEDIR ? "rmdir" : "unlink", directory, path), (directory, path, flags),
      int directory, const char *path, int flags)
WHOLE(rmdir, at_path("rmdir", AT_FDCWD, path), (path), const char *path)

/* Calls that may happen in part. */
#define PARTIAL(name, size, arguments, half, ...) \
    ssize_t name(__VA_ARGS__) \
    { \
        REAL(ssize_t, name, __VA_ARGS__); \
        enum action action = at_descriptor(#name, fd); \
        ssize_t result; \
        if (action == FAIL) \
            return errno = failure, -1; \
        if (action == KILL_BEFORE) \
            die(); \
        if ((action == KILL_HALF || action == SHORT) && size > 1) \
            result = real half; \
        else \
            result = real arguments; \
        if (action == KILL_HALF || action == KILL_AFTER) \
            die(); \
        return result; \
    }

PARTIAL(write, size, (fd, data, size), (fd, data, size / 2), int fd, const void *data, size_t size)
PARTIAL(pwrite, size, (fd, data, size, offset), (fd, data, size / 2, offset), int fd, const void *data, size_t size, off_t offset)
PARTIAL(pwrite64, size, (fd, data, size, offset), (fd, data, size / 2, offset), int fd, const void *data, size_t size, off64_t offset)
PARTIAL(writev, count, (fd, parts, count), (fd, parts, count / 2), int fd, const struct iovec *parts, int count)

/* An open that may make a file. */
#define OPENING(name, directory, ...) \
    int name(__VA_ARGS__, int flags, ...) \
    { \
        REAL(int, name, __VA_ARGS__, int, ...); \
        enum action action = GO_ON; \
        mode_t mode = 0; \
        int result; \
        if (flags & (O_CREAT | __O_TMPFILE)) { \
            va_list rest; \
            va_start(rest, flags); \
            mode = va_arg(rest, mode_t); \
            va_end(rest); \
        } \
        if (flags & (O_CREAT | O_TRUNC)) \
            action = at_path("open", directory, path); \
        if (action == FAIL) \
            return errno = failure, -1; \
        if (action == KILL_BEFORE || action == KILL_HALF) \
            die(); \
        result = OPENED; \
        if (action == KILL_AFTER) \
            die(); \
        return result; \
    }

#define OPENED real(path, flags, mode)
OPENING(open, AT_FDCWD, const char *path)
OPENING(open64, AT_FDCWD, const char *path)
#undef OPENED
#define OPENED real(directory, path, flags, mode)
OPENING(openat, directory, int directory, const char *path)
OPENING(openat64, directory, int directory, const char *path)
