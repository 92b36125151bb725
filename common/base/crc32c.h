/* crc32c.h - CRC-32C (Castagnoli, reflected, init and xorout 0xffffffff; RFC 3720 B.4: "123456789"
 * -> 0xe3069283). SSE4.2 with three interleaved streams when the CPU has it, slicing-by-8
 * otherwise; same value everywhere. */
#ifndef TD_BASE_CRC32C_H
#define TD_BASE_CRC32C_H
#include <stddef.h>
#include <stdint.h>

/* crc of the bytes so far (0 at the start); returns the crc with these bytes added. */
uint32_t td_crc32c(uint32_t crc, const void *data, size_t n_bytes);
uint32_t td_crc32c_portable(uint32_t crc, const void *data, size_t n_bytes); /* for tests */
#endif
