/* each_isa.h - writes a kernel's body once and compiles it once per instruction set. A _cpu.c file
 * defines LANES_BODY (the body's header) and includes this; the body is then included with
 * LANES_ISA set to portable, avx2 and avx512 in turn, and names everything of its own through
 * L(name): name_portable, name_avx2, name_avx512. LANES_REGS is how many v16 the registers hold. No
 * include guard, here and in bodies. */
#include "kernels/cpu/lanes.h"

#define LANES_ISA portable
#define LANES_TARGET
#define LANES_REGS 4
#include "kernels/cpu/lanes_math.h"
#include LANES_BODY
#undef LANES_ISA
#undef LANES_TARGET
#undef LANES_REGS

#if TD_X86
#define LANES_ISA avx2
#define LANES_TARGET TD_AVX2
#define LANES_REGS 8
#include "kernels/cpu/lanes_math.h"
#include LANES_BODY
#undef LANES_ISA
#undef LANES_TARGET
#undef LANES_REGS

#define LANES_ISA avx512
#define LANES_TARGET TD_AVX512
#define LANES_REGS 32
#include "kernels/cpu/lanes_math.h"
#include LANES_BODY
#undef LANES_ISA
#undef LANES_TARGET
#undef LANES_REGS
#endif
#undef LANES_BODY
