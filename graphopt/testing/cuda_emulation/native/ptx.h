/* The PTX instructions that TVM writes as inline assembly, one function each: `translate.py` calls
   ptx_<mnemonic, every other sign an underscore>(operands...). One that is missing here is a compile error. */
#pragma once
#include <tuple>

#include "threads.h"
#include "types.h"

template <class P> unsigned __cvta_generic_to_shared(P at) { return emulated::shared_address(at); }

/* Asynchronous copies are done as late as allowed, when their thread waits for their group: what is used without
   waiting is not there, and touching it meanwhile is a fault. Bytes past `taken` are zero. */
namespace emulated {
#ifdef CHECKED
template <class T> const Region* source_of(const ptr<T>& p) { return p.region; }
#endif
template <class T> const Region* source_of(T*) { return nullptr; }

template <class P> void copy_async(unsigned to, P from, unsigned bytes, unsigned taken) {
  Copy copy{at_shared(to), (const char*)raw(from), bytes, taken, running->group, source_of(from)};
  check(copy.from, taken, copy.source, false, taken ? bytes : 1);
  check(copy.to, bytes, region_of(copy.to), true, bytes);
  mark(copy.to, bytes, region_of(copy.to), true);
  running->copies.push_back(copy);
}
inline void finish(unsigned pending) {
  std::vector<Copy> later;
  for (Copy& c : running->copies) {
    if (c.group + pending >= running->group) { later.push_back(c); continue; }
    mark(c.to, c.bytes, region_of(c.to), false);
    check(c.to, c.bytes, region_of(c.to), true);
    memcpy(c.to, c.from, c.taken);
    memset(c.to + c.taken, 0, c.bytes - c.taken);
  }
  running->copies = later;
}
}  // namespace emulated

#define CP_ASYNC(name)                                                                        \
  template <class P> void name(unsigned to, P from, int bytes) { emulated::copy_async(to, from, bytes, bytes); } \
  template <class P> void name(unsigned to, P from, int bytes, int taken) { emulated::copy_async(to, from, bytes, taken); }
CP_ASYNC(ptx_cp_async_ca_shared_global)
CP_ASYNC(ptx_cp_async_cg_shared_global)
CP_ASYNC(ptx_cp_async_ca_shared_global_L2_128B)
CP_ASYNC(ptx_cp_async_cg_shared_global_L2_128B)

/* With a predicate: copied where it has the value, else zeros are stored, at once. */
#define CP_ASYNC_IF(name)                                                                                     \
  template <class P> void name(unsigned to, P from, int bytes, unsigned predicate, unsigned, unsigned value) { \
    if (predicate == value) return emulated::copy_async(to, from, bytes, bytes);                              \
    char* at = emulated::at_shared(to);                                                                       \
    emulated::check(at, bytes, emulated::region_of(at), true);                                                \
    memset(at, 0, bytes);                                                                                     \
  }
CP_ASYNC_IF(ptx_if_cp_async_ca_shared_global)
CP_ASYNC_IF(ptx_if_cp_async_cg_shared_global)
inline void ptx_cp_async_commit_group() { emulated::running->group++; }
inline void ptx_cp_async_wait_group(int pending) { emulated::finish(pending); }
inline void ptx_cp_async_wait_all() { ptx_cp_async_commit_group(); emulated::finish(0); }

/* ldmatrix: lane 8i + r has the address of row r of matrix i, 8 x 8 of 16 bits; each lane gets two neighbours of each. */
namespace emulated {
struct Rows { unsigned address, got[4]; int count; bool transposed; };
inline void load_rows(void** lanes, unsigned mask) {
  if (mask != ~0u) fail("is in a warp of fewer than 32 threads at ldmatrix");
  for (unsigned lane = 0; lane < WARP; lane++) {
    Rows& mine = *(Rows*)lanes[lane];
    for (int i = 0; i < mine.count; i++)
      for (int half = 0; half < 2; half++) {
        int row = lane / 4, column = lane % 4 * 2 + half;
        if (mine.transposed) std::swap(row, column);
        uint16_t* at = (uint16_t*)at_shared(((Rows*)lanes[8 * i + row])->address) + column;
        here.thread = here.thread / WARP * WARP + lane;
        check(at, 2, region_of((char*)at), false);
        mine.got[i] = half ? mine.got[i] | (unsigned)*at << 16 : *at;
      }
  }
}
template <int N, class... X> void ldmatrix(bool transposed, X&&... x) {
  auto operands = std::forward_as_tuple(x...);
  Rows mine{(unsigned)std::get<N>(operands), {}, N, transposed};
  in_warp(load_rows, ~0u, &mine);
  std::get<0>(operands) = mine.got[0];
  if constexpr (N > 1) std::get<1>(operands) = mine.got[1];
  if constexpr (N > 2) std::get<2>(operands) = mine.got[2], std::get<3>(operands) = mine.got[3];
}
}  // namespace emulated
#define LDMATRIX(n)                                                                                            \
  template <class... X> void ptx_ldmatrix_sync_aligned_m8n8_x##n##_shared_b16(X&&... x) { emulated::ldmatrix<n>(false, x...); } \
  template <class... X> void ptx_ldmatrix_sync_aligned_m8n8_x##n##_trans_shared_b16(X&&... x) { emulated::ldmatrix<n>(true, x...); }
LDMATRIX(1) LDMATRIX(2) LDMATRIX(4)

/* mma.sync m16n8kK: with P elements in a register, g = lane / 4 and t = lane % 4, register r of A holds row g + 8 (r % 2),
   columns P t + 4 P (r / 2) and following; register r of B rows P t + 4 P r and following of column g; element i of C and
   D is at row g + 8 (i / 2), column 2 t + i % 2 (PTX ISA, "Matrix Fragments for mma.m16n8k..."). */
namespace emulated {
template <class A, class B, class C> struct Multiply {
  unsigned a[4], b[2];
  C c[4];
  int na, nb;
  static void run(void** lanes, unsigned mask) {
    if (mask != ~0u) fail("is in a warp of fewer than 32 threads at a matrix product");
    const int p = 4 / sizeof(A);
    auto of = [&](int lane) { return (Multiply*)lanes[lane]; };
    const int k = of(0)->nb * 4 * p;
    for (int i = 0; i < 16; i++)
      for (int j = 0; j < 8; j++) {
        C& place = of(i % 8 * 4 + j / 2)->c[i / 8 * 2 + j % 2];
        auto sum = [&] { if constexpr (std::is_same<C, int>::value) return (int)place; else return (float)place; }();
        for (int l = 0; l < k; l++) {
          int inner = l % (4 * p), t = inner / p;
          A left; B right;
          memcpy((void*)&left, (char*)&of(i % 8 * 4 + t)->a[i / 8 + l / (4 * p) * 2] + inner % p * sizeof(A), sizeof(A));
          memcpy((void*)&right, (char*)&of(j * 4 + t)->b[l / (4 * p)] + inner % p * sizeof(B), sizeof(B));
          sum += (decltype(sum))left * (decltype(sum))right;
        }
        place = sum;
      }
  }
};
template <class T, class U> void bits(T& to, const U& from) { static_assert(sizeof(T) == sizeof(U)); memcpy((void*)&to, &from, sizeof(T)); }
template <class A, class B, class C, size_t... D, size_t... NA, size_t... NB, class X>
void multiply(std::index_sequence<D...>, std::index_sequence<NA...>, std::index_sequence<NB...>, X operands) {
  constexpr size_t d = sizeof...(D), na = sizeof...(NA), nb = sizeof...(NB);
  Multiply<A, B, C> mine{{}, {}, {}, na, nb};
  (bits(mine.a[NA], (value_of<std::decay_t<std::tuple_element_t<d + NA, X>>>)std::get<d + NA>(operands)), ...);
  (bits(mine.b[NB], (value_of<std::decay_t<std::tuple_element_t<d + na + NB, X>>>)std::get<d + na + NB>(operands)), ...);
  const size_t size = 4 * sizeof(C) / d;
  auto read = [&](size_t i, auto value) { memcpy((char*)mine.c + i * size, &value, size); };
  (read(D, (value_of<std::decay_t<std::tuple_element_t<d + na + nb + D, X>>>)std::get<d + na + nb + D>(operands)), ...);
  in_warp(Multiply<A, B, C>::run, ~0u, &mine);
  auto write = [&](size_t i, auto&& place) {
    value_of<std::decay_t<decltype(place)>> value;
    memcpy((void*)&value, (char*)mine.c + i * size, size);
    place = value;
  };
  (write(D, std::get<D>(operands)), ...);
}
}  // namespace emulated
#define MMA(shape, types, A, B, C, d, na, nb)                                                          \
  template <class... X> void ptx_mma_sync_aligned_##shape##_row_col_##types(X&&... x) {                \
    emulated::multiply<A, B, C>(std::make_index_sequence<d>(), std::make_index_sequence<na>(),         \
                                std::make_index_sequence<nb>(), std::forward_as_tuple(x...));          \
  }
MMA(m16n8k8, f32_f16_f16_f32, half, half, float, 4, 2, 1)
MMA(m16n8k8, f16_f16_f16_f16, half, half, half, 2, 2, 1)
MMA(m16n8k16, f32_f16_f16_f32, half, half, float, 4, 4, 2)
MMA(m16n8k16, f16_f16_f16_f16, half, half, half, 2, 4, 2)
MMA(m16n8k8, f32_bf16_bf16_f32, nv_bfloat16, nv_bfloat16, float, 4, 2, 1)
MMA(m16n8k16, f32_bf16_bf16_f32, nv_bfloat16, nv_bfloat16, float, 4, 4, 2)
MMA(m16n8k4, f32_tf32_tf32_f32, float, float, float, 4, 2, 1)
MMA(m16n8k8, f32_tf32_tf32_f32, float, float, float, 4, 4, 2)
MMA(m16n8k16, s32_s8_s8_s32, int8_t, int8_t, int, 4, 2, 1)
MMA(m16n8k32, s32_s8_s8_s32, int8_t, int8_t, int, 4, 4, 2)
MMA(m16n8k16, s32_u8_s8_s32, uint8_t, int8_t, int, 4, 2, 1)
MMA(m16n8k32, s32_u8_s8_s32, uint8_t, int8_t, int, 4, 4, 2)
