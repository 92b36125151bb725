#include "tools/tandemctl/table.h"

#include "tools/tandemctl/ctl.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define CELL_BYTES 512
#define GAP 2

void ctl_table_init(ctl_table *t, const ctl_column *columns, size_t n_columns)
{
    memset(t, 0, sizeof(*t));
    t->columns = columns;
    t->n_columns = n_columns;
}

void ctl_table_cell(ctl_table *t, const char *fmt, ...)
{
    char text[CELL_BYTES];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    for (char *p = text; *p != '\0'; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = '?';
    if (t->n_cells == t->capacity) {
        t->capacity = t->capacity == 0 ? 64 : 2 * t->capacity;
        t->cells = ctl_alloc(t->cells, t->capacity * sizeof(*t->cells));
    }
    const char *shown = text[0] != '\0' ? text : "-";
    char *cell = ctl_alloc(NULL, strlen(shown) + 1);
    t->cells[t->n_cells++] = strcpy(cell, shown);
}

/* Characters, not bytes. */
static size_t width_of(const char *text)
{
    size_t n = 0;
    for (; *text != '\0'; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

static void print_row(const ctl_table *t, const size_t *widths, char *const *cells)
{
    for (size_t c = 0; c < t->n_columns; c++) {
        const char *text = cells != NULL ? cells[c] : t->columns[c].title;
        bool last = c + 1 == t->n_columns;
        int pad = (int)(widths[c] - width_of(text));
        if (t->columns[c].right)
            printf("%*s%s", pad, "", text);
        else
            printf("%s%*s", text, last ? 0 : pad, "");
        printf("%*s", last ? 0 : GAP, "");
    }
    printf("\n");
}

void ctl_table_print(ctl_table *t)
{
    size_t widths[CTL_MAX_COLUMNS] = {0};
    size_t n_rows = t->n_cells / t->n_columns;
    for (size_t c = 0; c < t->n_columns; c++) {
        widths[c] = width_of(t->columns[c].title);
        for (size_t r = 0; r < n_rows; r++) {
            size_t width = width_of(t->cells[r * t->n_columns + c]);
            if (width > widths[c])
                widths[c] = width;
        }
    }
    if (n_rows > 0)
        print_row(t, widths, NULL);
    for (size_t r = 0; r < n_rows; r++)
        print_row(t, widths, t->cells + r * t->n_columns);
    for (size_t i = 0; i < t->n_cells; i++)
        free(t->cells[i]);
    free(t->cells);
    t->cells = NULL;
    t->n_cells = t->capacity = 0;
}

const char *ctl_bytes(double n_bytes, char out[static CTL_UNIT_BYTES])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    size_t unit = 0;
    while (n_bytes >= 1024 && unit < 5) {
        n_bytes /= 1024;
        unit++;
    }
    snprintf(out, CTL_UNIT_BYTES, unit == 0 ? "%.0f %s" : "%.1f %s", n_bytes, units[unit]);
    return out;
}

const char *ctl_seconds(double seconds, char out[static CTL_UNIT_BYTES])
{
    long whole = seconds < 1e9 ? (long)seconds : 1000000000L;
    if (seconds < 0)
        snprintf(out, CTL_UNIT_BYTES, "never");
    else if (seconds < 1)
        snprintf(out, CTL_UNIT_BYTES, "%.1f ms", seconds * 1e3);
    else if (seconds < 60)
        snprintf(out, CTL_UNIT_BYTES, "%.1f s", seconds);
    else if (seconds < 3600)
        snprintf(out, CTL_UNIT_BYTES, "%ld min %02ld s", whole / 60, whole % 60);
    else if (seconds < 86400)
        snprintf(out, CTL_UNIT_BYTES, "%ld h %02ld min", whole / 3600, whole / 60 % 60);
    else
        snprintf(out, CTL_UNIT_BYTES, "%ld d %02ld h", whole / 86400, whole / 3600 % 24);
    return out;
}
