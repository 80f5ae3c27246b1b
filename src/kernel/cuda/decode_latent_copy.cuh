/* The warp that asks the copy engine for tiles of latent keys on compute capability 9.0 (decode_latent.cuh), as far
 * ahead as there are stages. A tile is nine panels of 64 columns; it comes in boxes of a panel and a page (or the whole
 * tile's rows), one lane each, so that numbers of pages are looked up together and before the stage is free. Boxes that
 * no row sees are left out: what lies there is cleared by who uses the tile. */
#ifndef LN_KERNEL_CUDA_DECODE_LATENT_COPY_CUH
#define LN_KERNEL_CUDA_DECODE_LATENT_COPY_CUH

#include "kernel/cuda/decode_work.cuh"
#include "kernel/cuda/hopper.cuh"

namespace ln {

enum { LATENT_KEY = 576, LATENT_VALUE = 512, LATENT_PANELS = LATENT_KEY / 64 };

/* full, empty: barriers of the stages. */
template <int KEYS, int STAGES>
static __device__ __forceinline__ void copy_latent(const CUtensorMap *map, const decode_run &run, decode_segment at,
                                                   char *tiles, uint64_t *full, uint64_t *empty) {
    enum { PANEL = KEYS * 128, MOST = KEYS / LN_CUDA_TILE * LATENT_PANELS, EACH = (MOST + 31) / 32 };
    const int lane = (int)threadIdx.x % 32, rows = min(1 << run.page_shift, KEYS);
    int stage = 0, phase = 1; /* the first wait for a free stage passes at once */
    while (at.begin < at.end) {
        const decode_sight seen = seen_by_some(run, at.length);
#pragma unroll 1
        for (int unit = at.begin; unit < at.end; unit++) {
            const int first = (at.first + unit) * KEYS, low = max(seen.low - first, 0) / rows;
            const int boxes = ((min(seen.high - first, KEYS) + rows - 1) / rows - low) * LATENT_PANELS;
            int token[EACH];
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                const int box = lane + 32 * i, from = first + (low + box / LATENT_PANELS) * rows;
                if (box >= boxes) continue;
                const int page = run.of.page_table
                                     ? run.of.page_table[at.sequence * run.of.table_stride + (from >> run.page_shift)]
                                     : at.sequence;
                token[i] = page * run.key.page + (from & ((1 << run.page_shift) - 1));
            }
            barrier_wait(&empty[stage], phase);
            if (lane == 0) barrier_expect(&full[stage], boxes * rows * 128);
            __syncwarp();
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                const int box = lane + 32 * i, panel = box % LATENT_PANELS;
                if (box < boxes)
                    copy_box_once(tiles + stage * (LATENT_PANELS * PANEL) + panel * PANEL +
                                      (low + box / LATENT_PANELS) * rows * 128,
                                  map, &full[stage], 0, panel, token[i]);
            }
            if (++stage == STAGES) stage = 0, phase ^= 1;
        }
        if (at.left == 0) break;
        segment_next(run, at);
    }
}

} // namespace ln

#endif
