#include "tests/common/transfer/peer.h"

void peer_fill(unsigned char *slot_bytes, uint32_t region, uint32_t slot, uint64_t n_bytes)
{
    uint64_t *words = (uint64_t *)slot_bytes; /* strides are multiples of 8 */
    for (uint64_t i = 0; i < n_bytes / 8; i++)
        words[i] = peer_word(region, slot, i);
}
