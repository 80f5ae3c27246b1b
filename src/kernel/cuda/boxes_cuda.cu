/* How boxes are told to the driver (boxes_cuda.h). */
#include "kernel/cuda/boxes_cuda.h"

#include <cudaTypedefs.h>
#include <cuda_runtime.h>

ln_cuda_code ln_cuda_boxes_describe(const ln_cuda_boxes *boxes, CUtensorMap *map) {
    cudaDriverEntryPointQueryResult found;
    PFN_cuTensorMapEncodeTiled_v12000 encode = NULL;
    cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&encode, 12000, cudaEnableDefault, &found);
    if (error != cudaSuccess) return ln_cuda_code_of(error);
    if (found != cudaDriverEntryPointSuccess || !encode) return LN_CUDA_OLD_DRIVER;
    cuuint64_t extents[3], strides[2];
    cuuint32_t box[3], steps[3] = {1, 1, 1};
    for (int i = 0; i < 3; i++) extents[i] = (cuuint64_t)boxes->extents[i], box[i] = (cuuint32_t)boxes->box[i];
    for (int i = 0; i < 2; i++) strides[i] = (cuuint64_t)boxes->strides[i];
    const int width = boxes->box[0] * boxes->element;
    const CUresult result =
        encode(map, boxes->element == 4 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3,
               (void *)boxes->data, extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
               boxes->element == 4 ? CU_TENSOR_MAP_SWIZZLE_NONE
               : width == 128      ? CU_TENSOR_MAP_SWIZZLE_128B
               : width == 64       ? CU_TENSOR_MAP_SWIZZLE_64B
                                   : CU_TENSOR_MAP_SWIZZLE_NONE,
               boxes->near ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B : CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? LN_CUDA_OK : LN_CUDA_ARGUMENT;
}

ln_cuda_code ln_cuda_boxes_of_heads(const ln_cuda_tensor *tensor, int element, int64_t size, int64_t heads,
                                    int64_t tokens, int columns, int rows, CUtensorMap *map) {
    const ln_cuda_boxes boxes = {tensor->data,          element,
                                 {size, heads, tokens}, {tensor->head_stride * element, tensor->token_stride * element},
                                 {columns, 1, rows},    false};
    return ln_cuda_boxes_describe(&boxes, map);
}
