#include "common/transfer/desc.h"

#include "common/base/crc32c.h"

#include <string.h>

#define MAGIC "TDX1"
#define VERSION 1U
#define HEAD_BYTES 116U /* everything before the regions */
#define REGION_BYTES 16U
#define MAX_REGION_SPAN (1ULL << 62) /* stride * n_slots: no address arithmetic overflows */

static void put_le(unsigned char *at, uint64_t value, unsigned n_bytes)
{
    for (unsigned i = 0; i < n_bytes; i++)
        at[i] = (unsigned char)(value >> (8 * i));
}

static uint64_t get_le(const unsigned char *at, unsigned n_bytes)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < n_bytes; i++)
        value |= (uint64_t)at[i] << (8 * i);
    return value;
}

static size_t total_bytes(uint32_t n_regions)
{
    return HEAD_BYTES + (size_t)REGION_BYTES * n_regions + 4;
}

td_status td_xfer_desc_encode(const td_xfer_desc *desc, unsigned char *out, size_t cap,
                              size_t *n_bytes, td_err *err)
{
    td_assert(desc->n_regions <= TD_XFER_MAX_REGIONS);
    size_t total = total_bytes(desc->n_regions);
    if (total > cap || total > TD_XFER_MAX_DESC_BYTES)
        return td_fail(err, TD_TOO_LARGE, "descriptor: %zu bytes, room for %zu", total, cap);
    memset(out, 0, total);
    memcpy(out, MAGIC, 4);
    put_le(out + 4, VERSION, 2);
    put_le(out + 6, total, 2);
    memcpy(out + 8, desc->incarnation, sizeof(desc->incarnation));
    put_le(out + 72, desc->rank, 4);
    memcpy(out + 76, desc->host_id, sizeof(desc->host_id));
    out[92] = (unsigned char)desc->ip_version;
    put_le(out + 94, desc->port, 2);
    memcpy(out + 96, desc->ip, sizeof(desc->ip));
    put_le(out + 112, desc->n_regions, 4);
    for (uint32_t i = 0; i < desc->n_regions; i++) {
        unsigned char *at = out + HEAD_BYTES + (size_t)REGION_BYTES * i;
        put_le(at, desc->regions[i].stride, 8);
        put_le(at + 8, desc->regions[i].n_slots, 4);
    }
    put_le(out + total - 4, td_crc32c(0, out, total - 4), 4);
    *n_bytes = total;
    return TD_OK;
}

/* Before anything else is believed: whole, of this version, undamaged. */
static td_status check_frame(const unsigned char *bytes, size_t n_bytes, td_err *err)
{
    if (n_bytes < total_bytes(0) || n_bytes > TD_XFER_MAX_DESC_BYTES)
        return td_fail(err, TD_PROTOCOL, "descriptor: %zu bytes, want %zu to %u", n_bytes,
                       total_bytes(0), TD_XFER_MAX_DESC_BYTES);
    if (memcmp(bytes, MAGIC, 4) != 0)
        return td_fail(err, TD_PROTOCOL, "descriptor: no magic at its start");
    unsigned version = (unsigned)get_le(bytes + 4, 2);
    if (version != VERSION)
        return td_fail(err, TD_PROTOCOL, "descriptor: version %u, this build speaks %u", version,
                       VERSION);
    if (get_le(bytes + 6, 2) != n_bytes)
        return td_fail(err, TD_PROTOCOL, "descriptor: says %u bytes, has %zu",
                       (unsigned)get_le(bytes + 6, 2), n_bytes);
    if (get_le(bytes + n_bytes - 4, 4) != td_crc32c(0, bytes, n_bytes - 4))
        return td_fail(err, TD_PROTOCOL, "descriptor: checksum does not match");
    return TD_OK;
}

static td_status check_incarnation(const unsigned char *text, td_err *err)
{
    size_t n = strnlen((const char *)text, TD_XFER_INCARNATION_BYTES);
    if (n == 0 || n == TD_XFER_INCARNATION_BYTES)
        return td_fail(err, TD_PROTOCOL, "descriptor: incarnation is empty or has no end");
    for (size_t i = 0; i < n; i++)
        if (text[i] <= ' ' || text[i] > '~')
            return td_fail(err, TD_PROTOCOL, "descriptor: byte 0x%02x in the incarnation", text[i]);
    return TD_OK;
}

static td_status get_regions(const unsigned char *bytes, td_xfer_desc *desc, td_err *err)
{
    for (uint32_t i = 0; i < desc->n_regions; i++) {
        const unsigned char *at = bytes + HEAD_BYTES + (size_t)REGION_BYTES * i;
        td_xfer_desc_region *region = &desc->regions[i];
        region->stride = get_le(at, 8);
        region->n_slots = (uint32_t)get_le(at + 8, 4);
        if (region->n_slots != 0 &&
            (region->stride == 0 || region->stride > MAX_REGION_SPAN / region->n_slots))
            return td_fail(err, TD_PROTOCOL, "descriptor: region %u has %u slots of %llu bytes", i,
                           region->n_slots, (unsigned long long)region->stride);
    }
    return TD_OK;
}

td_status td_xfer_desc_decode(const unsigned char *bytes, size_t n_bytes, td_xfer_desc *desc,
                              td_err *err)
{
    td_xfer_desc got = {0};
    td_status st = check_frame(bytes, n_bytes, err);
    if (st == TD_OK)
        st = check_incarnation(bytes + 8, err);
    if (st != TD_OK)
        return st;
    memcpy(got.incarnation, bytes + 8, sizeof(got.incarnation));
    got.rank = (uint32_t)get_le(bytes + 72, 4);
    memcpy(got.host_id, bytes + 76, sizeof(got.host_id));
    got.ip_version = bytes[92];
    got.port = (uint16_t)get_le(bytes + 94, 2);
    memcpy(got.ip, bytes + 96, sizeof(got.ip));
    if ((got.ip_version != 4 && got.ip_version != 6) || got.port == 0)
        return td_fail(err, TD_PROTOCOL, "descriptor: IP version %d, port %u", got.ip_version,
                       got.port);
    uint64_t n_regions = get_le(bytes + 112, 4);
    if (n_regions > TD_XFER_MAX_REGIONS || total_bytes((uint32_t)n_regions) != n_bytes)
        return td_fail(err, TD_PROTOCOL, "descriptor: %u regions in %zu bytes", (unsigned)n_regions,
                       n_bytes);
    got.n_regions = (uint32_t)n_regions;
    st = get_regions(bytes, &got, err);
    if (st != TD_OK)
        return st;
    *desc = got;
    return TD_OK;
}
