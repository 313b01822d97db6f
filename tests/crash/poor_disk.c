/* Stands between a program and the C library: a disk that lacks operations. POOR_DISK names those that fail, each as it
   fails on such disks: link, flock, chmod, chown, fsync-folder. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static int lacks(const char *operation) {
    const char *names = getenv("POOR_DISK");
    return names && strstr(names, operation);
}

#define REAL(name, ...) static int (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, name);
#define FAIL(operation, number) if (lacks(operation)) { errno = number; return -1; }

int link(const char *from, const char *to) {
    FAIL("link", EPERM)
    REAL("link", const char *, const char *)
    return real(from, to);
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    FAIL("link", EPERM)
    REAL("linkat", int, const char *, int, const char *, int)
    return real(from_folder, from, to_folder, to, flags);
}

int flock(int file, int operation) {
    FAIL("flock", ENOLCK)
    REAL("flock", int, int)
    return real(file, operation);
}

int chmod(const char *path, mode_t mode) {
    FAIL("chmod", EPERM)
    REAL("chmod", const char *, mode_t)
    return real(path, mode);
}

int fchmod(int file, mode_t mode) {
    FAIL("chmod", EPERM)
    REAL("fchmod", int, mode_t)
    return real(file, mode);
}

int fchmodat(int folder, const char *path, mode_t mode, int flags) {
    FAIL("chmod", EPERM)
    REAL("fchmodat", int, const char *, mode_t, int)
    return real(folder, path, mode, flags);
}

int chown(const char *path, uid_t user, gid_t group) {
    FAIL("chown", EPERM)
    REAL("chown", const char *, uid_t, gid_t)
    return real(path, user, group);
}

int fsync(int file) {
    struct stat status;
    if (!fstat(file, &status) && S_ISDIR(status.st_mode)) FAIL("fsync-folder", EINVAL)
    REAL("fsync", int)
    return real(file);
}
