#include "common/rpc/http1_parse.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

static bool is_token(unsigned char c)
{
    if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
        return true;
    return c != '\0' && strchr("!#$%&'*+-.^_`|~", c) != NULL;
}

static td_status refuse(int *status, int code)
{
    *status = code;
    return TD_INVALID;
}

/* The first line of [p, end): its length without CRLF, or -1. A bare CR or LF, or a NUL, is no
 * line. */
static ptrdiff_t line_length(const char *p, const char *end)
{
    for (const char *c = p; c < end; c++) {
        if (*c == '\r')
            return c + 1 < end && c[1] == '\n' ? c - p : -1;
        if (*c == '\n' || *c == '\0')
            return -1;
    }
    return -1;
}

static td_status parse_request_line(const char *line, size_t len, td_http1_head *head, int *status)
{
    const char *end = line + len;
    const char *sp1 = memchr(line, ' ', len);
    const char *sp2 = sp1 == NULL ? NULL : memchr(sp1 + 1, ' ', (size_t)(end - sp1 - 1));
    if (sp2 == NULL || sp1 == line || (size_t)(sp1 - line) >= sizeof(head->method))
        return refuse(status, 400);
    memcpy(head->method, line, (size_t)(sp1 - line));
    for (const char *c = line; c < sp1; c++)
        if (!is_token((unsigned char)*c))
            return refuse(status, 400);
    if (end - sp2 != 9 || memcmp(sp2 + 1, "HTTP/1.", 7) != 0)
        return refuse(status, end - sp2 > 6 && memcmp(sp2 + 1, "HTTP/", 5) == 0 ? 505 : 400);
    if (sp2[8] != '0' && sp2[8] != '1')
        return refuse(status, 505);
    head->keep_alive = sp2[8] == '1';
    if (sp1[1] != '/')
        return refuse(status, 400);
    for (const char *c = sp1 + 1; c < sp2; c++)
        if (*c <= 0x20 || *c > 0x7E)
            return refuse(status, 400);
    size_t n_target = (size_t)(sp2 - sp1 - 1);
    head->target = malloc(n_target + 1);
    if (head->target == NULL)
        return refuse(status, 503);
    memcpy(head->target, sp1 + 1, n_target); /* the input does not end in NUL */
    head->target[n_target] = '\0';
    char *mark = strchr(head->target, '?');
    if (mark != NULL)
        *mark = '\0';
    head->path = head->target;
    head->query = mark != NULL ? mark + 1 : "";
    return TD_OK;
}

static td_status parse_header(const char *line, size_t len, td_http1_head *head, int *status)
{
    char name[64];
    const char *colon = memchr(line, ':', len);
    if (colon == NULL || colon == line)
        return refuse(status, 400);
    size_t n_name = (size_t)(colon - line);
    if (n_name >= sizeof(name))
        return refuse(status, 431);
    for (size_t i = 0; i < n_name; i++) {
        if (!is_token((unsigned char)line[i]))
            return refuse(status, 400);
        name[i] = line[i] >= 'A' && line[i] <= 'Z' ? (char)(line[i] + 32) : line[i];
    }
    const char *value = colon + 1, *end = line + len;
    while (value < end && (*value == ' ' || *value == '\t'))
        value++;
    while (end > value && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    for (const char *c = value; c < end; c++)
        if (((unsigned char)*c < 0x20 && *c != '\t') || *c == 0x7F)
            return refuse(status, 400);
    td_meta_add(&head->headers, name, n_name, value, (size_t)(end - value), 1 << 20);
    return head->headers.overflow ? refuse(status, 431) : TD_OK;
}

static td_status parse_length(const char *text, size_t *out, int *status)
{
    size_t value = 0, n = strlen(text);
    if (n == 0 || n > 15)
        return refuse(status, n == 0 ? 400 : 413);
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9')
            return refuse(status, 400);
        value = value * 10 + (size_t)(text[i] - '0');
    }
    *out = value;
    return TD_OK;
}

/* What the headers say about the message as a whole. Two lengths, or a length and an encoding, are
 * how requests get smuggled: refused. */
static td_status check_headers(td_http1_head *head, int *status)
{
    uint32_t pos = 0;
    const char *name, *value;
    int n_host = 0, n_length = 0;
    bool is_1_1 = head->keep_alive;
    while (td_meta_next(&head->headers, &pos, &name, &value)) {
        if (strcmp(name, "host") == 0) {
            n_host++;
        } else if (strcmp(name, "content-length") == 0) {
            if (n_length++ > 0)
                return refuse(status, 400);
            td_status st = parse_length(value, &head->content_length, status);
            if (st < 0)
                return st;
        } else if (strcmp(name, "transfer-encoding") == 0) {
            return refuse(status, 501);
        } else if (strcmp(name, "connection") == 0) {
            if (strcasecmp(value, "close") == 0)
                head->keep_alive = false;
            else if (strcasecmp(value, "keep-alive") == 0)
                head->keep_alive = true;
        }
    }
    return n_host > 1 || (is_1_1 && n_host == 0) ? refuse(status, 400) : TD_OK;
}

static td_status parse_lines(const char *p, const char *end, td_http1_head *head, int *status)
{
    for (bool first = true;; first = false) {
        ptrdiff_t n = line_length(p, end);
        if (n < 0)
            return refuse(status, 400);
        if (n == 0)
            return first ? refuse(status, 400) : check_headers(head, status);
        td_status st = first ? parse_request_line(p, (size_t)n, head, status)
                             : parse_header(p, (size_t)n, head, status);
        if (st < 0)
            return st;
        p += n + 2;
    }
}

td_status td_http1_parse(const char *bytes, size_t len, td_http1_head *out, int *status)
{
    const char *stop = memmem(bytes, len, "\r\n\r\n", 4);
    if (stop == NULL) /* nonsense is refused at its first line, not when a bound is reached */
        return len > 0 && !is_token((unsigned char)bytes[0]) ? refuse(status, 400) : TD_PENDING;
    td_http1_head head;
    memset(&head, 0, sizeof(head));
    td_status st = parse_lines(bytes, stop + 4, &head, status);
    if (st < 0) {
        td_http1_head_fini(&head);
        return st;
    }
    head.n_bytes = (size_t)(stop + 4 - bytes);
    *out = head;
    return TD_OK;
}

void td_http1_head_fini(td_http1_head *head)
{
    free(head->target);
    td_meta_clear(&head->headers);
    memset(head, 0, sizeof(*head));
}

const char *td_http1_reason(int status)
{
    switch (status) {
    case 200: return "OK";
    case 204: return "No Content";
    case 400: return "Bad Request";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 413: return "Content Too Large";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 503: return "Service Unavailable";
    case 505: return "HTTP Version Not Supported";
    default: return "Status";
    }
}
