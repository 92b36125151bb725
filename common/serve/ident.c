#include "common/serve/ident.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

static void fill_random(void *out, size_t n)
{
    ssize_t got;
    do
        got = getrandom(out, n, 0);
    while (got < 0 && errno == EINTR);
    td_assert(got == (ssize_t)n); /* up to 256 bytes never come short */
}

void td_incarnation_make(char out[static TD_INCARNATION_BYTES])
{
    uint64_t bits;
    fill_random(&bits, sizeof(bits));
    snprintf(out, TD_INCARNATION_BYTES, "%016llx", (unsigned long long)bits);
}

bool td_incarnation_valid(const char *text)
{
    return strlen(text) == TD_INCARNATION_BYTES - 1 &&
           strspn(text, "0123456789abcdef") == TD_INCARNATION_BYTES - 1;
}

bool td_request_id_valid(const char *text, size_t n)
{
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
                                  "-_.:~/+@=";
    if (n == 0 || n > TD_REQUEST_ID_MAX)
        return false;
    for (size_t i = 0; i < n; i++)
        if (text[i] == '\0' || strchr(allowed, text[i]) == NULL)
            return false;
    return true;
}

void td_request_id_make(char out[static TD_REQUEST_ID_MAX + 1])
{
    uint64_t bits[2];
    fill_random(bits, sizeof(bits));
    snprintf(out, TD_REQUEST_ID_MAX + 1, "%016llx%016llx", (unsigned long long)bits[0],
             (unsigned long long)bits[1]);
}

td_status td_listen_addr(const char *knob, const char *text, bool allow_plaintext, td_addr *out,
                         td_err *err)
{
    td_addr addr;
    td_err why;
    if (td_addr_parse(text, &addr, &why) != TD_OK)
        return td_fail(err, TD_CONFIG, "%s: %s", knob, why.text);
    if (!allow_plaintext && !td_addr_is_loopback(&addr))
        return td_fail(err, TD_CONFIG,
                       "%s: %s is not a loopback address, and what is served there would travel in "
                       "plaintext; set allow-plaintext to true if the network may see it",
                       knob, text);
    *out = addr;
    return TD_OK;
}

static td_status to_digits(td_addr *addr, td_err *err)
{
    unsigned char bytes[sizeof(struct in6_addr)];
    if (inet_pton(AF_INET, addr->host, bytes) == 1 || inet_pton(AF_INET6, addr->host, bytes) == 1)
        return TD_OK;
    if (strcmp(addr->host, "localhost") == 0) { /* known without a resolver */
        snprintf(addr->host, sizeof(addr->host), "127.0.0.1");
        return TD_OK;
    }
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found;
    char host[INET6_ADDRSTRLEN + 16];
    int rc = getaddrinfo(addr->host, NULL, &hints, &found);
    if (rc != 0)
        return td_fail(err, TD_CONFIG, "cannot resolve %s: %s", addr->host, gai_strerror(rc));
    rc =
        getnameinfo(found->ai_addr, found->ai_addrlen, host, sizeof(host), NULL, 0, NI_NUMERICHOST);
    freeaddrinfo(found);
    if (rc != 0)
        return td_fail(err, TD_CONFIG, "cannot resolve %s: %s", addr->host, gai_strerror(rc));
    snprintf(addr->host, sizeof(addr->host), "%s", host);
    return TD_OK;
}

static bool is_wildcard(const td_addr *addr)
{
    struct in_addr v4;
    struct in6_addr v6;
    if (inet_pton(AF_INET, addr->host, &v4) == 1)
        return v4.s_addr == htonl(INADDR_ANY);
    return inet_pton(AF_INET6, addr->host, &v6) == 1 && IN6_IS_ADDR_UNSPECIFIED(&v6);
}

td_status td_kv_listen_addr(const char *kv_listen, const char *listen, bool allow_plaintext,
                            uint32_t n_ranks, td_addr *out, td_err *err)
{
    td_addr addr;
    td_err why;
    bool own = kv_listen[0] != '\0';
    const char *knob = own ? "kv-listen" : "listen", *text = own ? kv_listen : listen;
    td_status st = td_listen_addr(knob, text, allow_plaintext, &addr, err);
    if (st != TD_OK)
        return st;
    if (!own)
        addr.port = 0;
    if (addr.port != 0 && n_ranks > 65536U - addr.port)
        return td_fail(err, TD_CONFIG, "kv-listen: %s has no ports for %u ranks", text, n_ranks);
    if (to_digits(&addr, &why) != TD_OK)
        return td_fail(err, TD_CONFIG,
                       "kv-listen: %s: %s; set kv-listen to the address that decode daemons reach "
                       "this one at",
                       text, why.text);
    if (n_ranks > 0 && is_wildcard(&addr))
        return td_fail(err, TD_CONFIG,
                       "kv-listen: %s is a wildcard; set kv-listen to the address that decode "
                       "daemons reach this one at",
                       text);
    *out = addr;
    return TD_OK;
}

const char *td_kv_rank_addr(const td_addr *first, uint32_t rank, char out[static 272])
{
    td_addr addr = *first;
    addr.port = (uint16_t)(addr.port != 0 ? addr.port + rank : 0);
    return td_addr_format(&addr, out);
}
