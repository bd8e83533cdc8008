// The kernels of the tests, in the dialect that clang compiles without a CUDA toolkit.
//
// clang -x cuda --cuda-device-only --cuda-gpu-arch=sm_80 -nocudainc -nocudalib --no-cuda-version-check \
//   -Xclang -target-feature -Xclang +ptx80 -O2 -S kernels.cu -o kernels.ptx

#define KERNEL extern "C" __attribute__((global))
#define SHARED __attribute__((shared))
#define NEAR __attribute__((address_space(3)))
#define FAR __attribute__((address_space(1)))

typedef unsigned int u32;
typedef unsigned short u16;
typedef float f32x4 __attribute__((ext_vector_type(4)));
typedef u32 u32x4 __attribute__((ext_vector_type(4)));
struct Sums { float s[4]; };
struct Words4 { u32 w[4]; };

#define INLINE static __attribute__((device, always_inline))

INLINE void multiply_bf16(Sums *sums, const u32 *a, u32 b0, u32 b1) {
  float *s = sums->s;
  __asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

INLINE Words4 load_matrices(const NEAR void *from) {
  Words4 m;
  __asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(m.w[0]), "=r"(m.w[1]), "=r"(m.w[2]), "=r"(m.w[3])
                 : "l"(from)
                 : "memory");
  return m;
}

#define THREAD ((u32)__nvvm_read_ptx_sreg_tid_x())
#define BLOCK ((u32)__nvvm_read_ptx_sreg_ctaid_x())
#define BLOCK_Y ((u32)__nvvm_read_ptx_sreg_ctaid_y())

// out[i] = a[i] + b[i], 16 bytes at a time.
KERNEL void vector_add(const f32x4 *a, const f32x4 *b, f32x4 *out, u32 count) {
  u32 i = BLOCK * 128 + THREAD;
  if (i < count / 4) out[i] = a[i] + b[i];
}

// out[block] = sum of the block's 256 numbers.
KERNEL void block_sum(const float *a, float *out) {
  static SHARED float partial[8];
  float sum = a[BLOCK * 256 + THREAD];
  for (int offset = 16; offset > 0; offset /= 2) sum += __nvvm_shfl_sync_bfly_f32(-1, sum, offset, 31);
  if (THREAD % 32 == 0) partial[THREAD / 32] = sum;
  __nvvm_bar_sync(0);
  if (THREAD < 32) {
    sum = THREAD < 8 ? partial[THREAD] : 0.0f;
    for (int offset = 4; offset > 0; offset /= 2) sum += __nvvm_shfl_sync_bfly_f32(-1, sum, offset, 31);
    if (THREAD == 0) out[BLOCK] = sum;
  }
}

// c = a · bᵗ in tiles of 32 × 32 by four warps, each 16 × 16; a and b are bf16 with rows of 32 · tiles elements.
//
// Tiles of depth 32 come through two stages of shared memory: while one is multiplied, the next is on its way.
// Rows are 80 bytes apart, so that eight rows of 16 bytes lie in different banks.
#define ROW 80
#define STAGE (2 * 32 * ROW)
extern "C" SHARED __attribute__((aligned(16))) char stages[];

INLINE void begin_tile(const char *a, const char *b, u32 tile, u32 row_bytes) {
  NEAR char *stage = (NEAR char *)stages + (tile & 1) * STAGE;
  u32 row = THREAD / 4, column = THREAD % 4 * 16;
  __nvvm_cp_async_cg_shared_global_16((NEAR void *)(stage + row * ROW + column),
                                      (const FAR void *)(a + (unsigned long)row * row_bytes + tile * 64 + column));
  __nvvm_cp_async_cg_shared_global_16((NEAR void *)(stage + 32 * ROW + row * ROW + column),
                                      (const FAR void *)(b + (unsigned long)row * row_bytes + tile * 64 + column));
}

KERNEL void matmul(const char *a, const char *b, float *c, u32 columns, u32 tiles) {
  u32 row_bytes = tiles * 64;
  a += (unsigned long)BLOCK_Y * 32 * row_bytes;
  b += (unsigned long)BLOCK * 32 * row_bytes;
  u32 lane = THREAD % 32, warp = THREAD / 32;
  u32 warp_row = warp / 2 * 16, warp_column = warp % 2 * 16;
  Sums left = {{0, 0, 0, 0}}, right = {{0, 0, 0, 0}};
  begin_tile(a, b, 0, row_bytes);
  __nvvm_cp_async_commit_group();
  for (u32 tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) begin_tile(a, b, tile + 1, row_bytes);
    __nvvm_cp_async_commit_group();
    __nvvm_cp_async_wait_group(1);
    __nvvm_bar_sync(0);
    NEAR char *stage = (NEAR char *)stages + (tile & 1) * STAGE;
    for (u32 depth = 0; depth < 32; depth += 16) {
      Words4 of_a = load_matrices(stage + (warp_row + lane % 16) * ROW + (depth + lane / 16 * 8) * 2);
      Words4 of_b = load_matrices(stage + 32 * ROW + (warp_column + lane % 8 + lane / 16 * 8) * ROW + (depth + lane / 8 % 2 * 8) * 2);
      multiply_bf16(&left, of_a.w, of_b.w[0], of_b.w[1]);
      multiply_bf16(&right, of_a.w, of_b.w[2], of_b.w[3]);
    }
    __nvvm_bar_sync(0);
  }
  u32 row = BLOCK_Y * 32 + warp_row + lane / 4, column = BLOCK * 32 + warp_column + lane % 4 * 2;
  float *out = c + (unsigned long)row * columns + column;
  out[0] = left.s[0];
  out[1] = left.s[1];
  out[8 * columns] = left.s[2];
  out[8 * columns + 1] = left.s[3];
  out[8] = right.s[0];
  out[9] = right.s[1];
  out[8 * columns + 8] = right.s[2];
  out[8 * columns + 9] = right.s[3];
}

INLINE float low(u32 pair) { return __builtin_bit_cast(float, pair << 16); }
INLINE float high(u32 pair) { return __builtin_bit_cast(float, pair & 0xffff0000u); }

// out[row] = weights[row] · x, a warp to a row; both are bf16, rows have 256 · pieces elements.
KERNEL void matvec(const u32x4 *weights, const u32x4 *x, float *out, u32 pieces) {
  u32 row = BLOCK * 4 + THREAD / 32, lane = THREAD % 32;
  float sum = 0.0f;
  for (u32 piece = 0; piece < pieces; ++piece) {
    u32x4 w = weights[(row * pieces + piece) * 32 + lane], v = x[piece * 32 + lane];
    for (int i = 0; i < 4; ++i) {
      sum = __builtin_fmaf(low(w[i]), low(v[i]), sum);
      sum = __builtin_fmaf(high(w[i]), high(v[i]), sum);
    }
  }
  for (int offset = 16; offset > 0; offset /= 2) sum += __nvvm_shfl_sync_bfly_f32(-1, sum, offset, 31);
  if (lane == 0) out[row] = sum;
}
