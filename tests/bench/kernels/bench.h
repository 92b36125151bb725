/* bench.h - the machine's own limits, measured in the same run as what is compared with them. */
#ifndef TD_TESTS_BENCH_H
#define TD_TESTS_BENCH_H
#include "common/device/cpu.h"

/* Bytes per second of all the stream's threads reading n_bytes again and again (beyond the caches
 * for hundreds of MB), and of a copy (bytes read + written). */
double bench_read_rate(td_stream *stream, size_t n_bytes);
double bench_copy_rate(td_stream *stream, size_t n_bytes);
/* Multiply-adds per second of all the stream's threads, in registers, with the stream's
 * instruction set. */
double bench_fma_rate(td_stream *stream);

/* Seconds per call: the best of 9 rounds of at least min_s each (whatever else the machine does
 * only adds). */
double bench_time(void (*call)(void *arg), void *arg, double min_s);
#endif
