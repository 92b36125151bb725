/* upload_fill.h - private to model/upload*.c: one piece of a tensor, read and converted. */
#ifndef TD_MODEL_UPLOAD_FILL_H
#define TD_MODEL_UPLOAD_FILL_H
#include "model/upload.h"

/* The part's cut to host memory dst, contiguous as it will be on the device (part->dst is not
 * used), aligned for its dtype. e4m3 [256]: the value of each code. Any thread; allocates nothing.
 */
td_status td_upload_fill(const td_upload_part *part, const float *e4m3, unsigned char *dst,
                         td_err *err);
#endif
