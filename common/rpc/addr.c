#include "common/rpc/addr.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

static bool parse_port(const char *text, uint16_t *out)
{
    unsigned value = 0;
    size_t n = strlen(text);
    if (n == 0 || n > 5)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        value = value * 10 + (unsigned)(text[i] - '0');
    }
    if (value > 65535)
        return false;
    *out = (uint16_t)value;
    return true;
}

td_status td_addr_parse(const char *text, td_addr *out, td_err *err)
{
    td_addr addr;
    const char *host = text, *end;
    memset(&addr, 0, sizeof(addr));
    if (text[0] == '[') {
        host = text + 1;
        end = strchr(host, ']');
        if (end == NULL || end[1] != ':')
            return td_fail(err, TD_INVALID, "address \"%.280s\": not [host]:port", text);
    } else {
        end = strchr(text, ':');
        if (end == NULL || strchr(end + 1, ':') != NULL) /* bare IPv6 needs brackets */
            return td_fail(err, TD_INVALID, "address \"%.280s\": not host:port", text);
    }
    size_t n_host = (size_t)(end - host);
    bool printable = true; /* it stands in logs and tables */
    for (size_t i = 0; i < n_host; i++)
        printable = printable && host[i] > ' ' && host[i] < 0x7f;
    if (n_host == 0 || n_host >= sizeof(addr.host) || !printable)
        return td_fail(err, TD_INVALID, "address \"%.280s\": bad host", text);
    memcpy(addr.host, host, n_host);
    if (!parse_port(end + (text[0] == '[' ? 2 : 1), &addr.port))
        return td_fail(err, TD_INVALID, "address \"%.280s\": bad port", text);
    *out = addr;
    return TD_OK;
}

bool td_addr_is_loopback(const td_addr *addr)
{
    struct in_addr v4;
    struct in6_addr v6;
    if (strcmp(addr->host, "localhost") == 0)
        return true;
    if (inet_pton(AF_INET, addr->host, &v4) == 1)
        return (ntohl(v4.s_addr) >> 24) == 127;
    return inet_pton(AF_INET6, addr->host, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

const char *td_addr_format(const td_addr *addr, char out[static 272])
{
    bool v6 = strchr(addr->host, ':') != NULL;
    snprintf(out, 272, v6 ? "[%.255s]:%u" : "%.255s:%u", addr->host, (unsigned)addr->port);
    return out;
}
