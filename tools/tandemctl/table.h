/* table.h - aligned tables and human units. Cells come from peers: control characters are shown as
 * '?'. */
#ifndef TD_TOOLS_TANDEMCTL_TABLE_H
#define TD_TOOLS_TANDEMCTL_TABLE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CTL_MAX_COLUMNS 20

typedef struct {
    const char *title;
    bool right; /* aligned */
} ctl_column;

typedef struct {
    const ctl_column *columns; /* [n_columns] */
    size_t n_columns;
    char **cells; /* [n_cells], row by row; owned */
    size_t n_cells, capacity;
} ctl_table;

void ctl_table_init(ctl_table *table, const ctl_column *columns, size_t n_columns);
/* The next cell, row by row. An empty one is shown as "-". */
void ctl_table_cell(ctl_table *table, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void ctl_table_print(ctl_table *table); /* to stdout; frees the cells. No rows: nothing */

/* Each writes into out and returns it. */
#define CTL_UNIT_BYTES 32
const char *ctl_bytes(double n_bytes, char out[static CTL_UNIT_BYTES]);   /* "3.1 MiB" */
const char *ctl_seconds(double seconds, char out[static CTL_UNIT_BYTES]); /* "12.5 ms" */
#endif
