#include "common/serve/ident.h"

#include <errno.h>
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

td_status td_kv_listen_addr(const char *kv_listen, const char *listen, bool allow_plaintext,
                            uint32_t rank, char out[static 272], td_err *err)
{
    td_addr addr;
    bool own = kv_listen[0] != '\0';
    td_status st = td_listen_addr(own ? "kv-listen" : "listen", own ? kv_listen : listen,
                                  allow_plaintext, &addr, err);
    if (st != TD_OK)
        return st;
    if (!own)
        addr.port = 0;
    if (addr.port != 0 && rank > 65535U - addr.port)
        return td_fail(err, TD_CONFIG, "kv-listen: rank %u has no port behind %u", rank, addr.port);
    addr.port = (uint16_t)(addr.port != 0 ? addr.port + rank : 0);
    if (strcmp(addr.host, "localhost") == 0) /* it is wanted in digits */
        snprintf(addr.host, sizeof(addr.host), "127.0.0.1");
    td_addr_format(&addr, out);
    return TD_OK;
}
