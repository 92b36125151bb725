/* scratch.h - files for a test, gone when its process ends. */
#ifndef TD_TESTS_MODEL_SCRATCH_H
#define TD_TESTS_MODEL_SCRATCH_H
#include <stddef.h>

/* A new folder under TMPDIR or /tmp; removed with all it holds at exit. At most 16. */
const char *td_scratch_dir(void);
/* "<dir>/<name>", in a buffer that the next but 7th call overwrites. */
const char *td_scratch_path(const char *dir, const char *name);
void td_scratch_write(const char *path, const void *data, size_t n_bytes);
/* malloc'ed. */
void *td_scratch_read(const char *path, size_t *n_bytes);
#endif
