/* cpu.h - what only CPU kernels see of a stream: its threads and the instruction sets found at run
 * time. */
#ifndef TD_DEVICE_CPU_H
#define TD_DEVICE_CPU_H
#include "common/device/device.h"

#include <stdint.h>

typedef enum {
    TD_ISA_PORTABLE,
    TD_ISA_AVX2,
    TD_ISA_AVX512
} td_isa; /* AVX2: with FMA and F16C; AVX512: F+BW+DQ+VL */

/* Does part [begin, end) of the work; thread: 0..n_threads-1, for per-thread scratch. */
typedef void (*td_cpu_part)(void *arg, int64_t begin, int64_t end, uint32_t thread);

/* Splits [0, n) in pieces of `grain` items, hands them out to the stream's threads, returns when
 * all are done. Which thread does which piece varies; results must not depend on it. A part may not
 * call this again. */
void td_cpu_for(td_stream *stream, int64_t n, int64_t grain, td_cpu_part part, void *arg);
uint32_t td_cpu_threads(const td_stream *stream);
/* At least n_bytes of 64-byte aligned scratch for this thread, kept and grown by the stream; the
 * next call for the same thread may move it. NULL: out of memory. */
void *td_cpu_scratch(td_stream *stream, uint32_t thread, size_t n_bytes);
/* The same for the whole operation, beside the threads' scratch; outside of parts only. */
void *td_cpu_shared_scratch(td_stream *stream, size_t n_bytes);
/* Grows every thread's scratch, outside of parts, so that td_cpu_scratch(<= n_bytes) inside them
 * cannot fail. */
td_status td_cpu_reserve(td_stream *stream, size_t n_bytes);
td_isa td_cpu_isa(const td_stream *stream);
void td_cpu_set_isa(td_stream *stream,
                    td_isa isa); /* tests: compare the paths; capped by what the CPU has */
#endif
