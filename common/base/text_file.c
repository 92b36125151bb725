#include "common/base/conf_value.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int td_text_line(const char *text, size_t offset)
{
    int line = 1;
    for (size_t i = 0; i < offset; i++)
        line += text[i] == '\n';
    return line;
}

size_t td_text_skip_string(const char *text, size_t n, size_t i)
{
    for (i++; i < n && text[i] != '"'; i++)
        if (text[i] == '\\')
            i++;
    return i < n ? i + 1 : n;
}

td_status td_json_strip(char *text, size_t n_bytes, td_err *err)
{
    size_t comma = SIZE_MAX; /* the comma that nothing but blanks and comments followed yet */
    char before = '\0';      /* the last significant character */
    for (size_t i = 0; i < n_bytes;) {
        char c = text[i];
        char next = i + 1 < n_bytes ? text[i + 1] : '\0';
        if (c == '/' && next == '/') {
            while (i < n_bytes && text[i] != '\n')
                text[i++] = ' ';
        } else if (c == '/' && next == '*') {
            size_t start = i;
            for (i += 2; i < n_bytes && !(text[i - 1] == '*' && text[i] == '/' && i > start + 2);)
                i++;
            if (i == n_bytes)
                return td_fail(err, TD_CONFIG, "line %d: a comment without an end",
                               td_text_line(text, start));
            for (i++; start < i; start++)
                if (text[start] != '\n')
                    text[start] = ' ';
        } else if (c == '"') {
            i = td_text_skip_string(text, n_bytes, i);
            before = '"';
            comma = SIZE_MAX;
        } else if (isspace((unsigned char)c)) {
            i++;
        } else {
            if ((c == '}' || c == ']') && comma != SIZE_MAX)
                text[comma] = ' ';
            /* A comma after nothing is no trailing comma: it stays, for the parser to refuse. */
            bool trails = c == ',' && before != '\0' && strchr("[{,:", before) == NULL;
            comma = trails ? i : SIZE_MAX;
            before = c;
            i++;
        }
    }
    return TD_OK;
}

td_status td_read_file(const char *path, size_t max_bytes, char **out, size_t *n_bytes, td_err *err)
{
    char *text = NULL;
    size_t n = 0;
    struct stat info;
    td_status st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return td_fail(err, errno == ENOENT ? TD_NOT_FOUND : TD_IO, "%s: %s", path,
                       strerror(errno));
    if (fstat(fd, &info) != 0) {
        st = td_fail(err, TD_IO, "%s: %s", path, strerror(errno));
        goto fail;
    }
    /* One byte more than the size says: the read that finds the end needs room. Pipes and /proc say
     * 0. */
    size_t room = info.st_size > 0 ? (size_t)info.st_size + 2 : 4096;
    for (;; room *= 2) {
        if (room > max_bytes + 2)
            room = max_bytes + 2;
        char *bigger = realloc(text, room);
        if (bigger == NULL) {
            st = td_fail(err, TD_NOMEM, "%s: no memory for %zu bytes", path, room);
            goto fail;
        }
        text = bigger;
        ssize_t got;
        while (n < room - 1 && (got = read(fd, text + n, room - 1 - n)) != 0) {
            if (got < 0 && errno == EINTR)
                continue;
            if (got < 0) {
                st = td_fail(err, TD_IO, "%s: %s", path, strerror(errno));
                goto fail;
            }
            n += (size_t)got;
        }
        if (n > max_bytes) {
            st = td_fail(err, TD_TOO_LARGE, "%s: more than %zu bytes", path, max_bytes);
            goto fail;
        }
        if (n < room - 1)
            break;
    }
    text[n] = '\0';
    close(fd);
    *out = text;
    *n_bytes = n;
    return TD_OK;
fail:
    free(text);
    close(fd);
    return st;
}
