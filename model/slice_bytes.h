/* slice_bytes.h - private to model/: the bytes of a slice's tensors (slice.h). Element i of a
 * tensor is a function of (seed, the tensor's name, i): any part of it can be made alone, on any
 * thread and any machine, with the same result. */
#ifndef TD_MODEL_SLICE_BYTES_H
#define TD_MODEL_SLICE_BYTES_H
#include "model/safetensors.h"

typedef struct {
    uint64_t key; /* random: td_slice_key() */
    float value;  /* random bf16: the deviation; constant: the value (f32) */
    int random;
    const uint8_t *codes; /* random e4m3: [256] td_slice_codes() */
} td_slice_recipe;

uint64_t td_slice_key(uint32_t seed, const char *name);
/* The e4m3 code that each random byte becomes. */
void td_slice_codes(uint8_t codes[256]);
/* A power of two near deviation / (that of the e4m3 codes made here): what block scales hold. */
float td_slice_e4m3_scale(float deviation);
/* A td_tensor_make. make_arg: the tensor's td_slice_recipe. */
void td_slice_make(const td_tensor *tensor, uint64_t offset, uint64_t n_bytes, void *dst);
#endif
