#include "tests/model/scratch.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_DIRS 16

static char dirs[MAX_DIRS][256];
static int n_dirs;
static pid_t owner;

static void give_up(const char *what)
{
    perror(what);
    abort();
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *at)
{
    (void)info;
    (void)kind;
    (void)at;
    return remove(path);
}

static void remove_all(void)
{
    for (int i = 0; i < n_dirs && getpid() == owner; i++)
        nftw(dirs[i], remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

const char *td_scratch_dir(void)
{
    const char *base = getenv("TMPDIR");
    if (n_dirs == MAX_DIRS)
        give_up("too many scratch folders");
    if (n_dirs == 0) {
        owner = getpid();
        atexit(remove_all);
    }
    snprintf(dirs[n_dirs], sizeof(dirs[0]), "%s/tandem-test-XXXXXX", base == NULL ? "/tmp" : base);
    if (mkdtemp(dirs[n_dirs]) == NULL)
        give_up("mkdtemp");
    return dirs[n_dirs++];
}

const char *td_scratch_path(const char *dir, const char *name)
{
    static char paths[8][512];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof(paths[0]), "%s/%s", dir, name);
    return path;
}

void td_scratch_write(const char *path, const void *data, size_t n_bytes)
{
    FILE *f = fopen(path, "wb");
    if (f == NULL || fwrite(data, 1, n_bytes, f) != n_bytes || fclose(f) != 0)
        give_up(path);
}

void *td_scratch_read(const char *path, size_t *n_bytes)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL || fseek(f, 0, SEEK_END) != 0)
        give_up(path);
    long n = ftell(f);
    char *data = malloc((size_t)n + 1);
    rewind(f);
    if (data == NULL || fread(data, 1, (size_t)n, f) != (size_t)n)
        give_up(path);
    fclose(f);
    data[n] = '\0';
    *n_bytes = (size_t)n;
    return data;
}
