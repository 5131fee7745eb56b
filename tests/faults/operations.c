/* Fails, or ends the process, at the Nth operation that changes a file below a folder. Loaded with LD_PRELOAD.

OPERATIONS_FOLDER is the folder, OPERATIONS_STATE a file with `struct state`, which all processes share. Nothing happens
while `mode` is OFF. COUNT counts. FAIL lets operation `at` fail, as on a full disk (ENOSPC) or a broken one (EIO).
KILL ends the process there; of a write, half has been done. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, COUNT, FAIL, KILL, LIMIT = 16384 };
struct state {
    int64_t mode, at, error, count;
    char what[480];        /* the operation that was hit, for messages of the tests */
    uint32_t which[LIMIT]; /* a hash of what each operation does to which file */
};

static struct state *state;
static char folder[PATH_MAX];
static size_t length;

__attribute__((constructor)) static void start(void) {
    const char *name = getenv("OPERATIONS_STATE"), *below = getenv("OPERATIONS_FOLDER");
    int file = name && below ? open(name, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *mapped = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED) return;
    length = (size_t)snprintf(folder, sizeof folder, "%s/", below);
    state = mapped;
}

/* What an open file, or a folder that is given as a descriptor, is called. */
static void name_of(int file, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t got = readlink(link, path, PATH_MAX - 1);
    path[got < 0 ? 0 : got] = 0;
}

static void absolute(int at, const char *name, char *path) {
    if (*name == '/') {
        snprintf(path, 2 * PATH_MAX, "%s", name);
        return;
    }
    char above[PATH_MAX] = "";
    if (at != AT_FDCWD) name_of(at, above);
    else if (!getcwd(above, sizeof above)) *above = 0;
    snprintf(path, 2 * PATH_MAX, "%s/%s", above, name);
}

/* Whether the operation is the one to fail; errno is set then. Does not return if the process has to end. */
static int hit(const char *operation, const char *path, void (*half)(void *), void *of) {
    char what[sizeof state->what];
    if (!state || state->mode == OFF || strncmp(path, folder, length)) return 0;
    int64_t number = __atomic_add_fetch(&state->count, 1, __ATOMIC_SEQ_CST);
    snprintf(what, sizeof what, "%s %s", operation, path + length);
    if (number <= LIMIT) {
        uint32_t hash = 2166136261u; /* FNV-1a */
        for (const char *place = what; *place; place++) hash = (hash ^ (unsigned char)*place) * 16777619u;
        state->which[number - 1] = hash;
    }
    if (number != state->at || state->mode == COUNT) return 0;
    memcpy(state->what, what, sizeof what);
    if (state->mode == KILL) {
        if (half) half(of);
        _exit(137);
    }
    errno = (int)state->error;
    return 1;
}

static int hit_at(const char *operation, int at, const char *name) {
    if (!state || state->mode == OFF) return 0;
    char path[2 * PATH_MAX];
    absolute(at, name, path);
    return hit(operation, path, NULL, NULL);
}

static int hit_file(const char *operation, int file, void (*half)(void *), void *of) {
    if (!state || state->mode == OFF) return 0;
    char path[PATH_MAX];
    name_of(file, path);
    return hit(operation, path, half, of);
}

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

struct piece {
    int file;
    const void *data;
    size_t size;
    off64_t at;
};

static void half_write(void *given) {
    struct piece *piece = given;
    if (piece->at < 0) REAL(write)(piece->file, piece->data, piece->size / 2);
    else REAL(pwrite64)(piece->file, piece->data, piece->size / 2, piece->at);
}

ssize_t write(int file, const void *data, size_t size) {
    static typeof(&write) real;
    if (!real) real = REAL(write);
    struct piece piece = {file, data, size, -1};
    return hit_file("write", file, half_write, &piece) ? -1 : real(file, data, size);
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
    struct piece piece = {file, data, size, at};
    return hit_file("write", file, half_write, &piece) ? -1 : REAL(pwrite64)(file, data, size, at);
}
ssize_t pwrite(int file, const void *data, size_t size, off_t at) { return pwrite64(file, data, size, at); }

ssize_t writev(int file, const struct iovec *data, int count) {
    return hit_file("write", file, NULL, NULL) ? -1 : REAL(writev)(file, data, count);
}

ssize_t sendfile64(int to, int from, off64_t *at, size_t size) {
    ssize_t (*real)(int, int, off64_t *, size_t) = dlsym(RTLD_NEXT, "sendfile64");
    return hit_file("copy", to, NULL, NULL) ? -1 : real(to, from, at, size);
}
ssize_t sendfile(int to, int from, off_t *at, size_t size) { return sendfile64(to, from, at, size); }

ssize_t copy_file_range(int from, off64_t *in, int to, off64_t *out, size_t size, unsigned flags) {
    return hit_file("copy", to, NULL, NULL) ? -1 : REAL(copy_file_range)(from, in, to, out, size, flags);
}

int fsync(int file) { return hit_file("fsync", file, NULL, NULL) ? -1 : REAL(fsync)(file); }
int fdatasync(int file) { return hit_file("fsync", file, NULL, NULL) ? -1 : REAL(fdatasync)(file); }
int ftruncate64(int file, off64_t size) {
    return hit_file("truncate", file, NULL, NULL) ? -1 : REAL(ftruncate64)(file, size);
}
int ftruncate(int file, off_t size) { return ftruncate64(file, size); }

#define OPEN(name, with_at, real_call)                                                     \
    mode_t mode = 0;                                                                       \
    if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {                             \
        va_list more;                                                                      \
        va_start(more, flags);                                                             \
        mode = va_arg(more, mode_t);                                                       \
        va_end(more);                                                                      \
    }                                                                                      \
    return flags & (O_CREAT | O_TRUNC) && hit_at("open", with_at, path) ? -1 : real_call;

int open(const char *path, int flags, ...) { OPEN(open, AT_FDCWD, REAL(open)(path, flags, mode)) }
int open64(const char *path, int flags, ...) { OPEN(open64, AT_FDCWD, REAL(open64)(path, flags, mode)) }
int openat(int at, const char *path, int flags, ...) { OPEN(openat, at, REAL(openat)(at, path, flags, mode)) }
int openat64(int at, const char *path, int flags, ...) { OPEN(openat64, at, REAL(openat64)(at, path, flags, mode)) }

int rename(const char *from, const char *to) {
    return hit_at("rename", AT_FDCWD, to) ? -1 : REAL(rename)(from, to);
}
int renameat(int at, const char *from, int to_at, const char *to) {
    return hit_at("rename", to_at, to) ? -1 : REAL(renameat)(at, from, to_at, to);
}
int link(const char *from, const char *to) { return hit_at("link", AT_FDCWD, to) ? -1 : REAL(link)(from, to); }
int symlink(const char *from, const char *to) {
    return hit_at("symlink", AT_FDCWD, to) ? -1 : REAL(symlink)(from, to);
}
int unlink(const char *path) { return hit_at("unlink", AT_FDCWD, path) ? -1 : REAL(unlink)(path); }
int unlinkat(int at, const char *path, int flags) {
    return hit_at("unlink", at, path) ? -1 : REAL(unlinkat)(at, path, flags);
}
int rmdir(const char *path) { return hit_at("rmdir", AT_FDCWD, path) ? -1 : REAL(rmdir)(path); }
int mkdir(const char *path, mode_t mode) { return hit_at("mkdir", AT_FDCWD, path) ? -1 : REAL(mkdir)(path, mode); }
int mkdirat(int at, const char *path, mode_t mode) {
    return hit_at("mkdir", at, path) ? -1 : REAL(mkdirat)(at, path, mode);
}
