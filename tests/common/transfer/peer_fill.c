#include "tests/common/transfer/peer.h"

#include <string.h>

void peer_fill(unsigned char *slot_bytes, uint32_t region, uint32_t slot, uint64_t n_bytes)
{
    for (uint64_t i = 0; i < n_bytes / 8; i++) {
        uint64_t word = peer_word(region, slot, i);
        memcpy(slot_bytes + 8 * i, &word, 8);
    }
}
