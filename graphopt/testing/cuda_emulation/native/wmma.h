/* nvcuda::wmma: matrices of which each thread of a warp holds a part. Which part is each device's secret, so here
   element e of a matrix, counted by rows, is number e / 32 of lane e % 32. */
#pragma once
#include "threads.h"
#include "types.h"

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };
namespace precision { struct tf32 {}; }

template <class T> struct Stored { using type = T; };
template <> struct Stored<precision::tf32> { using type = float; };
template <class Use, int M, int N, int K> struct Size;
template <int M, int N, int K> struct Size<matrix_a, M, N, K> { static const int rows = M, columns = K; };
template <int M, int N, int K> struct Size<matrix_b, M, N, K> { static const int rows = K, columns = N; };
template <int M, int N, int K> struct Size<accumulator, M, N, K> { static const int rows = M, columns = N; };

template <class Use, int M, int N, int K, class T, class Layout = void> struct fragment {
  using Element = typename Stored<T>::type;
  using layout = Layout;
  static const int rows = Size<Use, M, N, K>::rows, columns = Size<Use, M, N, K>::columns;
  static const int num_elements = rows * columns / 32;
  Element x[num_elements];
};

template <class F, class V> void fill_fragment(F& f, V value) {
  for (auto& x : f.x) x = value;
}

/* Calls `at(element of this lane, its offset in memory)` for each. As another lane may have it on a device, it is touched
   by no thread in particular: before the next barrier of the block nobody else may, not even in this warp. */
template <class F, class Each> void each(F& f, unsigned stride, bool by_rows, Each at) {
  const emulated::Where mine = emulated::here;
  const int lane = LANE;
  emulated::here.thread = emulated::here.warp = emulated::SEVERAL;
  for (int i = 0; i < F::num_elements; i++) {
    int e = i * 32 + lane, row = e / F::columns, column = e % F::columns;
    at(f.x[i], by_rows ? row * (int64_t)stride + column : column * (int64_t)stride + row);
  }
  emulated::here = mine;
}

/* Matrices begin at multiples of 32 bytes, and their rows at multiples of 16 (CUDA C++ Programming Guide, wmma); those of
   8 bits, of which PTX asks for the size of a thread's part, at multiples of 16. */
template <class E, class P> void aligned(P at, unsigned stride) {
  const int bytes = sizeof(E) == 1 ? 16 : 32;
  if ((uintptr_t)emulated::raw(at) % bytes) emulated::fail("moves a matrix at an address that is no multiple of %d bytes", bytes);
  if (stride * sizeof(E) % 16) emulated::fail("moves a matrix whose rows are %u elements apart, no multiple of 16 bytes", stride);
}

template <class F, class P> void load_matrix_sync(F& f, P from, unsigned stride) {
  aligned<typename F::Element>(from, stride);
  __syncwarp();
  each(f, stride, std::is_same<typename F::layout, row_major>::value,
       [&](auto& x, int64_t offset) { x = from[offset]; });
  __syncwarp();
}
template <class F, class P> void load_matrix_sync(F& f, P from, unsigned stride, layout_t layout) {
  aligned<typename F::Element>(from, stride);
  __syncwarp();
  each(f, stride, layout == mem_row_major, [&](auto& x, int64_t offset) { x = from[offset]; });
  __syncwarp();
}
template <class P, class F> void store_matrix_sync(P to, const F& f, unsigned stride, layout_t layout) {
  aligned<typename F::Element>(to, stride);
  __syncwarp();
  each(f, stride, layout == mem_row_major, [&](auto& x, int64_t offset) { to[offset] = x; });
  __syncwarp();
}

template <class D, class A, class B, class C> struct Product {
  D* d;
  const A* a;
  const B* b;
  const C* c;
  static void run(void** lanes, unsigned mask) {
    using T = typename D::Element;
    using Sum = std::conditional_t<std::is_same<T, int>::value, int, float>;
    if (mask != ~0u) emulated::fail("is in a warp of fewer than 32 threads at a matrix product");
    auto of = [&](int lane) { return (Product*)lanes[lane]; };
    const int m = D::rows, n = D::columns, k = A::columns;
    static Sum left[m * k], right[k * n];
    for (int e = 0; e < m * k; e++) left[e] = of(e % 32)->a->x[e / 32];
    for (int e = 0; e < k * n; e++) right[e] = of(e % 32)->b->x[e / 32];
    for (int i = 0; i < m; i++)
      for (int j = 0; j < n; j++) {
        int e = i * n + j;
        Sum sum = of(e % 32)->c->x[e / 32];
        for (int l = 0; l < k; l++) sum += left[i * k + l] * right[l * n + j];
        of(e % 32)->d->x[e / 32] = sum;
      }
  }
};
template <class D, class A, class B, class C> void mma_sync(D& d, const A& a, const B& b, const C& c) {
  Product<D, A, B, C> mine{&d, &a, &b, &c};
  emulated::in_warp(Product<D, A, B, C>::run, ~0u, &mine);
}

}  // namespace nvcuda::wmma
