/* CUDA's scalar and vector types, and the functions on them that TVM's code calls. */
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "memory.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define __CUDA_ARCH__ 1200
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0
#define CUDART_INF_F INFINITY
#define CUDART_NAN_F NAN
#define CUDART_INF ((double)INFINITY)
#define CUDART_NAN ((double)NAN)

namespace emulated {
inline uint32_t bits_of(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
inline float float_of(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
inline uint16_t to_bfloat16(float f) { /* nearest, ties to even */
  uint32_t u = bits_of(f);
  return f != f ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
}  // namespace emulated

struct __half {
  _Float16 v;
  __half() = default;
  __half(float f) : v(f) {}
  __half(double f) : v(f) {}
  __half(int i) : v(i) {}
  __half(unsigned i) : v(i) {}
  __half(long i) : v(i) {}
  __half(long long i) : v(i) {}
  __half(bool b) : v(b) {}
  operator float() const { return v; }
};
struct __nv_bfloat16 {
  uint16_t v;
  __nv_bfloat16() = default;
  __nv_bfloat16(float f) : v(emulated::to_bfloat16(f)) {}
  __nv_bfloat16(double f) : __nv_bfloat16((float)f) {}
  __nv_bfloat16(int i) : __nv_bfloat16((float)i) {}
  __nv_bfloat16(unsigned i) : __nv_bfloat16((float)i) {}
  __nv_bfloat16(long i) : __nv_bfloat16((float)i) {}
  __nv_bfloat16(long long i) : __nv_bfloat16((float)i) {}
  operator float() const { return emulated::float_of((uint32_t)v << 16); }
};
using half = __half;
using nv_bfloat16 = __nv_bfloat16;

/* Arithmetic of the small floats: in float, rounded once; float's 24 bits are enough for that to be the exact result. */
#define SMALL_FLOAT(T)                                                                        \
  inline T operator+(T a, T b) { return T((float)a + (float)b); }                             \
  inline T operator-(T a, T b) { return T((float)a - (float)b); }                             \
  inline T operator*(T a, T b) { return T((float)a * (float)b); }                             \
  inline T operator/(T a, T b) { return T((float)a / (float)b); }                             \
  inline T operator-(T a) { return T(-(float)a); }                                            \
  inline T& operator+=(T& a, T b) { return a = a + b; }                                       \
  inline T& operator*=(T& a, T b) { return a = a * b; }                                       \
  inline bool operator<(T a, T b) { return (float)a < (float)b; }                             \
  inline bool operator>(T a, T b) { return (float)a > (float)b; }                             \
  inline bool operator<=(T a, T b) { return (float)a <= (float)b; }                           \
  inline bool operator>=(T a, T b) { return (float)a >= (float)b; }                           \
  inline bool operator==(T a, T b) { return (float)a == (float)b; }                           \
  inline bool operator!=(T a, T b) { return (float)a != (float)b; }                           \
  inline bool __hgt(T a, T b) { return a > b; }                                               \
  inline bool __hlt(T a, T b) { return a < b; }                                               \
  inline bool __hge(T a, T b) { return a >= b; }                                              \
  inline bool __hle(T a, T b) { return a <= b; }                                              \
  inline bool __heq(T a, T b) { return a == b; }                                              \
  inline bool __hne(T a, T b) { return a != b; }                                              \
  inline bool __hisnan(T a) { return std::isnan((float)a); }                                  \
  inline T __hadd(T a, T b) { return a + b; }                                                 \
  inline T __hsub(T a, T b) { return a - b; }                                                 \
  inline T __hmul(T a, T b) { return a * b; }                                                 \
  inline T __hdiv(T a, T b) { return a / b; }                                                 \
  inline T __hneg(T a) { return -a; }                                                         \
  inline T __habs(T a) { return T(std::fabs((float)a)); }                                     \
  inline T __hmax(T a, T b) { return T(std::fmax((float)a, (float)b)); }                      \
  inline T __hmin(T a, T b) { return T(std::fmin((float)a, (float)b)); }                      \
  inline T __hfma(T a, T b, T c) { return T(std::fma((double)(float)a, (double)(float)b, (double)(float)c)); } \
  SMALL_UNARY(T, hexp, std::exp) SMALL_UNARY(T, hexp2, std::exp2) SMALL_UNARY(T, hexp10, emulated::exp10) \
  SMALL_UNARY(T, hlog, std::log) SMALL_UNARY(T, hlog2, std::log2) SMALL_UNARY(T, hlog10, std::log10) \
  SMALL_UNARY(T, hsqrt, std::sqrt) SMALL_UNARY(T, hrsqrt, 1 / std::sqrt) SMALL_UNARY(T, hrcp, 1 / ) \
  SMALL_UNARY(T, hsin, std::sin) SMALL_UNARY(T, hcos, std::cos) SMALL_UNARY(T, htanh, std::tanh) \
  SMALL_UNARY(T, hfloor, std::floor) SMALL_UNARY(T, hceil, std::ceil) SMALL_UNARY(T, htrunc, std::trunc) \
  SMALL_UNARY(T, hrint, std::rint)
#define SMALL_UNARY(T, name, f) inline T name(T a) { return T(f((float)a)); }
namespace emulated { inline float exp10(float x) { return std::pow(10.0f, x); } }
SMALL_FLOAT(__half)
SMALL_FLOAT(__nv_bfloat16)
inline __half __float2half(float f) { return f; }
inline __half __float2half_rn(float f) { return f; }
inline float __half2float(__half h) { return h; }
inline __nv_bfloat16 __float2bfloat16(float f) { return f; }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return f; }
inline float __bfloat162float(__nv_bfloat16 h) { return h; }
inline __half __ushort_as_half(unsigned short u) { __half h; memcpy(&h, &u, 2); return h; }
inline unsigned short __half_as_ushort(__half h) { unsigned short u; memcpy(&u, &h, 2); return u; }
inline float __int_as_float(int i) { return emulated::float_of(i); }
inline float __uint_as_float(unsigned i) { return emulated::float_of(i); }
inline int __float_as_int(float f) { return emulated::bits_of(f); }
inline unsigned __float_as_uint(float f) { return emulated::bits_of(f); }

#define VECTORS(T, name, n2, n4, n8)                                             \
  struct name##1 { T x; };                                                       \
  struct alignas(n2) name##2 { T x, y; };                                        \
  struct name##3 { T x, y, z; };                                                 \
  struct alignas(n4) name##4 { T x, y, z, w; };                                  \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                     \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }             \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTORS(signed char, char, 2, 4, 8)
VECTORS(unsigned char, uchar, 2, 4, 8)
VECTORS(short, short, 4, 8, 16)
VECTORS(unsigned short, ushort, 4, 8, 16)
VECTORS(int, int, 8, 16, 16)
VECTORS(unsigned, uint, 8, 16, 16)
VECTORS(long long, longlong, 16, 16, 16)
VECTORS(unsigned long long, ulonglong, 16, 16, 16)
VECTORS(float, float, 8, 16, 16)
VECTORS(double, double, 16, 16, 16)
struct alignas(4) __half2 {
  __half x, y;
  __half2() = default;
  __half2(__half x, __half y) : x(x), y(y) {}
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
  __nv_bfloat162() = default;
  __nv_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) : x(x), y(y) {}
};
using half2 = __half2;
using nv_bfloat162 = __nv_bfloat162;
inline half2 make_half2(half x, half y) { return {x, y}; }
inline half2 __halves2half2(half x, half y) { return {x, y}; }
inline nv_bfloat162 make_bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return {x, y}; }
inline nv_bfloat162 __halves2bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return {x, y}; }
#define SMALL_PAIR(T)                                                                  \
  inline T operator+(T a, T b) { return {a.x + b.x, a.y + b.y}; }                      \
  inline T operator-(T a, T b) { return {a.x - b.x, a.y - b.y}; }                      \
  inline T operator*(T a, T b) { return {a.x * b.x, a.y * b.y}; }                      \
  inline T __hadd2(T a, T b) { return a + b; }                                         \
  inline T __hmul2(T a, T b) { return a * b; }                                         \
  inline T __hfma2(T a, T b, T c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
SMALL_PAIR(half2)
SMALL_PAIR(nv_bfloat162)

/* min and max: CUDA's, which for floats give the number where the other is a NaN. */
#define MINMAX(T) inline T max(T a, T b) { return a < b ? b : a; } inline T min(T a, T b) { return b < a ? b : a; }
MINMAX(int) MINMAX(unsigned) MINMAX(long) MINMAX(unsigned long) MINMAX(long long) MINMAX(unsigned long long)
inline float max(float a, float b) { return std::fmax(a, b); }
inline float min(float a, float b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
using std::isfinite;
using std::isinf;
using std::isnan;
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline float __fmul_rn(float a, float b) { float p = a * b; __asm__("" : "+m"(p)); return p; }  // no part of an fma
inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return emulated::exp10(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __log10f(float x) { return std::log10(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __tanf(float x) { return std::tan(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __saturatef(float x) { return std::fmin(std::fmax(x, 0.0f), 1.0f); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __mulhi(int a, int b) { return (long long)a * b >> 32; }
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; i++) c += (int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i);
  return c;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 4; i++) c += (uint8_t)(a >> 8 * i) * (uint8_t)(b >> 8 * i);
  return c;
}
template <class P, class T> auto atomicAdd(P at, T value) {
  auto* place = emulated::raw(at);
  auto before = *place;
  *place = before + value;
  return before;
}
template <class P> auto __ldg(P at) { return *emulated::raw(at); }
