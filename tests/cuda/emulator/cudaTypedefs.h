/* The types of the driver's functions that are asked for at run time. */
#ifndef LN_EMULATOR_CUDA_TYPEDEFS_H
#define LN_EMULATOR_CUDA_TYPEDEFS_H

#include "cuda.h"

typedef CUresult (*PFN_cuTensorMapEncodeTiled_v12000)(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank,
                                                      void *data, const cuuint64_t *extents, const cuuint64_t *strides,
                                                      const cuuint32_t *box, const cuuint32_t *steps,
                                                      CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                                      CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill);

#endif
