/* A file system as far away as NFS or Lustre can be, for the processes that preload it, below $FAR_STORE.

   FAR_HOST    whose the process is: what its own host made is seen at once
   FAR_OWN     a folder outside of the store, where the hosts' own inodes are noted
   FAR_DELAY   files that others made are neither found nor listed for a draw of so many ms; sizes by name are as old
   FAR_SKEW    seconds by which the host's file times are off
   FAR_LINK    of a thousand links that were made, how many say EEXIST, and as many EIO where FAR_EIO is set; the first
               of a process does where FAR_SEED is 1 (EEXIST) or 2 (EIO)
   FAR_RENAME  of a thousand renames that were made, how many say ENOENT
   FAR_LIES    "excl": O_EXCL is forgotten; "link": link takes the name from whoever has it
   FAR_LOG     a file with a letter for each fault: h hidden, s an old size, t a lying time, e, i and r lost replies
*/
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static const char *get(const char *name) { const char *value = getenv(name); return value ? value : ""; }
static long number(const char *name) { return atol(get(name)); }

static void note(char what) {
    int file = syscall(SYS_openat, AT_FDCWD, get("FAR_LOG"), O_WRONLY | O_APPEND | O_CREAT, 0666);
    if (file >= 0) { if (syscall(SYS_write, file, &what, 1L) < 0) {} syscall(SYS_close, file); }
}

static int ours(const char *path) {
    const char *store = get("FAR_STORE");
    return path && *store && !strncmp(path, store, strlen(store));
}

static long draw(long below) { /* of this process alone, another one in every process */
    static unsigned int state;
    if (!state) state = (unsigned)number("FAR_SEED") * 2654435761u ^ (unsigned)getpid() * 40503u ^ 1u;
    return rand_r(&state) % below;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void own_name(char *into, unsigned long long inode) {
    snprintf(into, 512, "%s/%s-%llu", get("FAR_OWN"), get("FAR_HOST"), inode);
}

static void own(int folder, const char *path) { /* what this host has made it sees at once */
    struct statx s;
    char name[512];
    if (syscall(SYS_statx, folder, path, AT_SYMLINK_NOFOLLOW, STATX_INO, &s)) return;
    own_name(name, s.stx_ino);
    int file = syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CREAT, 0666);
    if (file >= 0) syscall(SYS_close, file);
}

static int hidden(int folder, const char *path) {
    struct statx s;
    char name[512];
    long delay = number("FAR_DELAY");
    int kept = errno;
    if (!delay || syscall(SYS_statx, folder, path, AT_SYMLINK_NOFOLLOW, STATX_INO | STATX_BTIME | STATX_CTIME, &s)) {
        errno = kept;
        return 0;
    }
    struct statx_timestamp *born = s.stx_mask & STATX_BTIME ? &s.stx_btime : &s.stx_ctime;
    unsigned int of_file = (unsigned)(s.stx_ino * 2654435761u) ^ (unsigned)getpid();
    double wait = (rand_r(&of_file) % delay) / 1e3;
    if (now() - (born->tv_sec + born->tv_nsec / 1e9) >= wait) { errno = kept; return 0; }
    own_name(name, s.stx_ino);
    int mine = !syscall(SYS_faccessat, AT_FDCWD, name, F_OK);
    errno = kept;
    if (!mine) note('h');
    return !mine;
}

static void lie(struct stat *s) {
    long skew = number("FAR_SKEW");
    if (!skew) return;
    s->st_mtim.tv_sec += skew;
    s->st_ctim.tv_sec -= skew;
    note('t');
}

#define KEPT 512
static struct { char path[256]; struct stat as; double since; } cache[KEPT];

static void as_it_was(const char *path, struct stat *s) { /* attributes by name are kept, as NFS does */
    long delay = number("FAR_DELAY");
    unsigned int slot = 5381;
    if (!delay || !S_ISREG(s->st_mode) || strlen(path) > 255) return;
    for (const char *c = path; *c; c++) slot = slot * 33 + (unsigned char)*c;
    slot %= KEPT;
    if (!strcmp(cache[slot].path, path) && cache[slot].as.st_ino == s->st_ino && now() - cache[slot].since < delay / 1e3) {
        if (cache[slot].as.st_size != s->st_size) note('s');
        *s = cache[slot].as;
        return;
    }
    strcpy(cache[slot].path, path);
    cache[slot].as = *s;
    cache[slot].since = now();
}

int stat(const char *path, struct stat *s) {
    REAL(stat);
    if (!ours(path)) return real(path, s);
    if (hidden(AT_FDCWD, path)) { errno = ENOENT; return -1; }
    int said = real(path, s);
    if (!said) { as_it_was(path, s); lie(s); }
    return said;
}
int stat64(const char *path, struct stat64 *s) { return stat(path, (struct stat *)s); }

int lstat(const char *path, struct stat *s) {
    REAL(lstat);
    if (!ours(path)) return real(path, s);
    if (hidden(AT_FDCWD, path)) { errno = ENOENT; return -1; }
    int said = real(path, s);
    if (!said) lie(s);
    return said;
}
int lstat64(const char *path, struct stat64 *s) { return lstat(path, (struct stat *)s); }

int fstat(int file, struct stat *s) {
    REAL(fstat);
    char link_[64], path[512];
    int said = real(file, s);
    snprintf(link_, sizeof link_, "/proc/self/fd/%d", file);
    long length = said || !number("FAR_SKEW") ? -1 : readlink(link_, path, sizeof path - 1);
    if (length > 0) { path[length] = 0; if (ours(path)) lie(s); }
    return said;
}
int fstat64(int file, struct stat64 *s) { return fstat(file, (struct stat *)s); }

static int far_open(int folder, const char *path, int flags, mode_t mode) {
    if (!ours(path)) return syscall(SYS_openat, folder, path, flags, mode);
    if (!(flags & O_CREAT) && hidden(folder, path)) { errno = ENOENT; return -1; }
    int fresh = (flags & O_CREAT) && syscall(SYS_faccessat, folder, path, F_OK);
    if ((flags & O_EXCL) && !strcmp(get("FAR_LIES"), "excl")) flags &= ~O_EXCL;
    int file = syscall(SYS_openat, folder, path, flags, mode);
    int kept = errno;
    if (file >= 0 && fresh) own(folder, path);
    errno = kept;
    return file;
}
#define MODE mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list list; va_start(list, flags); mode = va_arg(list, int); va_end(list); }
int open(const char *path, int flags, ...) { MODE return far_open(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return far_open(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE return far_open(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE return far_open(folder, path, flags, mode); }

int mkdir(const char *path, mode_t mode) {
    int said = syscall(SYS_mkdirat, AT_FDCWD, path, mode);
    int kept = errno;
    if (ours(path) && (!said || kept == EEXIST)) own(AT_FDCWD, path); /* whoever is told EEXIST looks anew */
    errno = kept;
    return said;
}

static struct dirent *far_entry(DIR *folder, struct dirent *entry, struct dirent *(*next)(DIR *)) {
    char link_[64], path[512];
    int kept = errno;
    snprintf(link_, sizeof link_, "/proc/self/fd/%d", dirfd(folder));
    long length = readlink(link_, path, sizeof path - 1);
    path[length > 0 ? length : 0] = 0;
    errno = kept;
    while (ours(path) && entry && entry->d_name[0] != '.' && hidden(dirfd(folder), entry->d_name)) entry = next(folder);
    return entry;
}
struct dirent *readdir(DIR *folder) { REAL(readdir); return far_entry(folder, real(folder), real); }
struct dirent64 *readdir64(DIR *folder) {
    REAL(readdir64);
    struct dirent *(*next)(DIR *) = (struct dirent * (*)(DIR *)) real;
    return (struct dirent64 *)far_entry(folder, (struct dirent *)real(folder), next);
}

int link(const char *from, const char *to) {
    if (ours(to) && !strcmp(get("FAR_LIES"), "link")) syscall(SYS_unlinkat, AT_FDCWD, to, 0);
    int said = syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0);
    if (said && errno == EEXIST && ours(to)) { own(AT_FDCWD, to); errno = EEXIST; }
    static int before; /* a reply is lost of the first link of the first two processes, whatever is drawn */
    long share = number("FAR_LINK"), lot = share && !said && ours(to) ? draw(1000) : 1000;
    long seed = number("FAR_SEED");
    if (share && !said && ours(to) && !before++ && (seed == 1 || seed == 2)) lot = (seed - 1) * share;
    if (lot < share) { note('e'); errno = EEXIST; return -1; }
    if (lot < 2 * share && number("FAR_EIO")) { note('i'); errno = EIO; return -1; }
    return said;
}
int linkat(int one, const char *from, int other, const char *to, int flags) {
    if (one == AT_FDCWD && other == AT_FDCWD && ours(to)) return link(from, to);
    return syscall(SYS_linkat, one, from, other, to, flags);
}

int rename(const char *from, const char *to) {
    int said = syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    long share = number("FAR_RENAME");
    if (share && !said && ours(to) && draw(1000) < share) { note('r'); errno = ENOENT; return -1; }
    return said;
}
int renameat(int one, const char *from, int other, const char *to) {
    if (one == AT_FDCWD && other == AT_FDCWD && ours(to)) return rename(from, to);
    return syscall(SYS_renameat2, one, from, other, to, 0);
}
