/* topk_lanes.h - passes over one row, per instruction set (each_isa.h). Integers only. */

/* Sort keys of a row; keys has room up to the next multiple of 16. */
LANES_TARGET static void L(topk_keys)(const float *x, int n, int32_t *keys)
{
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        L(kstore)(keys + i, L(vkey)(L(vload)(x + i)));
    if (i < n)
        L(kstore)(keys + i, L(vkey)(L(vloadn)(x + i, n - i)));
}

/* Keys and positions of all entries at or above `floor`, at most `room` (more: returns room + 1).
 */
LANES_TARGET static int L(topk_filter)(const float *x, int n, int32_t floor, int room,
                                       int32_t *keys, int32_t *positions)
{
    const L(k16) least = L(kset)(floor);
    int found = 0, i = 0;
    for (; i < n; i += LANES) {
        int whole = n - i >= LANES;
        L(k16) k = L(vkey)(whole ? L(vload)(x + i) : L(vloadn)(x + i, n - i));
        uint32_t hits = L(kgt)(k, least) | L(keq)(k, least);
        if (!whole)
            hits &= (1u << (n - i)) - 1;
        if (hits == 0)
            continue;
        int32_t all[LANES];
        L(kstore)(all, k);
        if (found + __builtin_popcount(hits) > room)
            return room + 1;
        for (; hits != 0; hits &= hits - 1) {
            int l = __builtin_ctz(hits);
            keys[found] = all[l];
            positions[found++] = i + l;
        }
    }
    return found;
}

/* Positions whose key is above the threshold, and the first n_equal that are equal to it. */
LANES_TARGET static void L(topk_emit)(const int32_t *keys, const int32_t *positions, int n,
                                      int32_t threshold, int64_t n_equal, int32_t *out)
{
    const L(k16) t = L(kset)(threshold);
    for (int i = 0; i < n; i += LANES) {
        L(k16) k = L(kload)(keys + i);
        uint32_t above = L(kgt)(k, t), hits = above | L(keq)(k, t);
        if (n - i < LANES)
            hits &= (1u << (n - i)) - 1;
        for (; hits != 0; hits &= hits - 1) {
            int l = __builtin_ctz(hits);
            if (!(above >> l & 1) && n_equal-- <= 0)
                continue;
            *out++ = positions == NULL ? i + l : positions[i + l];
        }
    }
}
