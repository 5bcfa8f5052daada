#pragma once

// Which instruction sets Highway compiles the operations for: AVX-512, AVX2 and the baseline on
// x86, NEON on Arm. The others bring little over these and cost compile time. Include before any
// other hwy/ header.

// Highway 1.0 falls back from its 128-bit emulation to single lanes with GCC < 12.3, for a
// miscompiled MulHigh that the operations do not use.
#define HWY_BROKEN_EMU128 0
#include "hwy/detect_targets.h"

#ifdef HWY_AVX3_ZEN4
#define M2_DISABLE_ZEN4 HWY_AVX3_ZEN4
#else
#define M2_DISABLE_ZEN4 0
#endif
#ifdef HWY_AVX3_SPR
#define M2_DISABLE_SPR HWY_AVX3_SPR
#else
#define M2_DISABLE_SPR 0
#endif
#undef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS                                                                    \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | M2_DISABLE_ZEN4 | M2_DISABLE_SPR | HWY_SVE | HWY_SVE2 | \
   HWY_SVE_256 | HWY_SVE2_128)
