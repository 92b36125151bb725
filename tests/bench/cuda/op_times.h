/* op_times.h - a table of operations that times each call on the device (an event before and behind
 * it) and adds the times up by operation and shape, beside the least time that the shape allows.
 * One at a time in a process: operations have no argument that could carry it. */
#ifndef TD_TESTS_BENCH_OP_TIMES_H
#define TD_TESTS_BENCH_OP_TIMES_H
#include "kernels/ops.h"

typedef struct {
    double copy_rate;     /* bytes/s read and written, of this run; 0: limits are not shown */
    double mean_len;      /* positions that a row sees, mean over the rows of the phase */
    double mean_selected; /* of which it attends to */
    double mean_scored;   /* that the indexer scores (rows that see few are not scored) */
    int n_seqs;           /* whose keys a call reads */
} td_op_phase;

/* Wraps `ops`. TD_NOMEM and the device's errors. */
td_status td_op_times_open(td_device *device, const td_ops *ops, const td_ops **out, td_err *err);
void td_op_times_close(void);
/* Forgets what was counted. Nothing may be under way. */
void td_op_times_begin(const td_op_phase *phase);
/* Prints the table: shares of the sum of all operations, n_steps: of which each row shows the mean.
 */
td_status td_op_times_report(const char *title, int n_steps, td_err *err);
#endif
