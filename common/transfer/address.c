/* address.c - where a td_xfer listens, what it tells readers, and which host it is on. */
#include "common/transfer/front.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Two processes with the same boot id run under one kernel. Where it cannot be read nobody is on
 * our host. */
void td_read_host_id(unsigned char id[TD_XFER_HOST_ID_BYTES])
{
    char text[64] = {0};
    memset(id, 0, TD_XFER_HOST_ID_BYTES);
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t n = read(fd, text, sizeof(text) - 1);
    close(fd);
    unsigned n_digits = 0;
    for (ssize_t i = 0; i < n && n_digits < 2 * TD_XFER_HOST_ID_BYTES; i++) {
        const char *hex = "0123456789abcdef", *digit = strchr(hex, text[i]);
        if (text[i] == '\0' || digit == NULL)
            continue;
        id[n_digits / 2] = (unsigned char)(id[n_digits / 2] << 4 | (digit - hex));
        n_digits++;
    }
}

static int parse_port(const char *text, uint16_t *port)
{
    char *end;
    if (text[0] < '0' || text[0] > '9')
        return 0;
    unsigned long value = strtoul(text, &end, 10);
    *port = (uint16_t)value;
    return *end == '\0' && value <= UINT16_MAX;
}

/* "127.0.0.1:7000" or "[::1]:7000", numeric. */
static td_status parse_address(const char *text, struct sockaddr_storage *addr, socklen_t *n_bytes,
                               td_err *err)
{
    char host[64];
    uint16_t port;
    struct sockaddr_in *in4 = (struct sockaddr_in *)addr;
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)addr;
    const char *colon = strrchr(text, ':');
    memset(addr, 0, sizeof(*addr));
    if (colon == NULL || (size_t)(colon - text) >= sizeof(host) || !parse_port(colon + 1, &port))
        return td_fail(err, TD_CONFIG, "transfer: \"%s\" is not ADDRESS:PORT", text);
    memcpy(host, text, (size_t)(colon - text));
    host[colon - text] = '\0';
    size_t n = strlen(host);
    if (n > 2 && host[0] == '[' && host[n - 1] == ']') {
        host[n - 1] = '\0';
        in6->sin6_family = AF_INET6;
        in6->sin6_port = htons(port);
        *n_bytes = sizeof(*in6);
        if (inet_pton(AF_INET6, host + 1, &in6->sin6_addr) == 1)
            return TD_OK;
    } else {
        in4->sin_family = AF_INET;
        in4->sin_port = htons(port);
        *n_bytes = sizeof(*in4);
        if (inet_pton(AF_INET, host, &in4->sin_addr) == 1)
            return TD_OK;
    }
    return td_fail(err, TD_CONFIG, "transfer: \"%s\" is not a numeric address", text);
}

/* The address's bytes, and whether it is a wildcard or loopback. */
static const void *address_bytes(const struct sockaddr_storage *addr, int *is_any, int *is_loopback)
{
    if (addr->ss_family == AF_INET6) {
        const struct in6_addr *in6 = &((const struct sockaddr_in6 *)addr)->sin6_addr;
        *is_any = IN6_IS_ADDR_UNSPECIFIED(in6);
        *is_loopback = IN6_IS_ADDR_LOOPBACK(in6);
        return in6;
    }
    const struct in_addr *in4 = &((const struct sockaddr_in *)addr)->sin_addr;
    uint32_t host = ntohl(in4->s_addr);
    *is_any = host == INADDR_ANY;
    *is_loopback = host >> 24 == 127;
    return in4;
}

static int serves(const td_engine *engine)
{
    int any = 0;
    for (uint32_t i = 0; i < engine->config.n_regions; i++)
        any |= engine->regions[i].served;
    return any;
}

td_status td_choose_addresses(td_engine *engine, td_xfer_desc *desc, td_err *err)
{
    td_xfer_config *config = &engine->config;
    const char *listen = config->listen != NULL ? config->listen : "127.0.0.1:0";
    struct sockaddr_storage *addr = &engine->listen, told;
    socklen_t n_bytes;
    int is_any, is_loopback, ignored;
    td_status st = parse_address(listen, addr, &engine->listen_bytes, err);
    if (st != TD_OK)
        return st;
    const void *bytes = address_bytes(addr, &is_any, &is_loopback);
    if (config->net_devices == NULL && is_loopback)
        config->net_devices = "lo";
    desc->ip_version = addr->ss_family == AF_INET6 ? 6 : 4;
    if (config->advertise != NULL) {
        char text[96];
        snprintf(text, sizeof(text), strchr(config->advertise, ':') ? "[%s]:0" : "%s:0",
                 config->advertise);
        st = parse_address(text, &told, &n_bytes, err);
        if (st != TD_OK)
            return st;
        bytes = address_bytes(&told, &is_any, &ignored);
        desc->ip_version = told.ss_family == AF_INET6 ? 6 : 4;
    }
    if (is_any && serves(engine))
        return td_fail(err, TD_CONFIG,
                       "transfer: listening on %s needs an address to advertise to readers",
                       listen);
    memcpy(desc->ip, bytes, desc->ip_version == 6 ? 16 : 4);
    return TD_OK;
}
