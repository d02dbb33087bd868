/* Global and shared memory of the emulated device.

   With CHECKED every access through a pointer to either goes by a `Region`: one past its end, one at an address that is
   no multiple of what it needs, a read of shared memory that nobody wrote in this block, two threads at the same shared
   bytes with no barrier between, one of them writing, and any touch of bytes that an asynchronous copy may be writing,
   end the run with a sentence. Without it pointers are plain. */
#pragma once
#include <stddef.h>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

namespace emulated {

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
struct Where { unsigned thread, warp, barrier, first_barrier, warp_step; };
extern Where here;
constexpr unsigned SEVERAL = ~0u;

/* Who touched some bytes last: at which barrier and at which step of its warp. */
struct Access { unsigned barrier, thread, warp, step; };
struct Cell { Access write, read; unsigned copied; /* the barrier at which a copy to it was issued; 0: none is under way */ };

struct Region {
  const char* name;
  char* base;
  size_t bytes;
  unsigned grain; /* bytes a cell stands for */
  Cell* cells;    /* of shared memory only */
  Region* next = nullptr;
};
static Region* regions; /* all of shared memory */

/* Ordered before what the running thread does now: a barrier lies between, or its warp has met since. */
inline bool ordered(const Access& a) {
  return a.barrier != here.barrier || (a.thread == here.thread && a.thread != SEVERAL) ||
         (a.warp == here.warp && a.warp != SEVERAL && a.step < here.warp_step);
}

inline void check(const void* at, size_t bytes, const Region* region, bool writes, size_t alignment = 1) {
  if (!region) return;
  ptrdiff_t offset = (const char*)at - region->base;
  const char* verb = writes ? "writes" : "reads";
  if ((uintptr_t)at % alignment)
    fail("%s %zu bytes at byte %td of %s, which is no multiple of %zu", verb, bytes, offset, region->name, alignment);
  if (offset < 0 || offset + bytes > region->bytes)
    fail("%s bytes %td to %td of %s, which has %zu", verb, offset, offset + (ptrdiff_t)bytes, region->name, region->bytes);
  if (!region->cells) return;
  for (size_t i = offset / region->grain; i * region->grain < offset + bytes; i++) {
    Cell& cell = region->cells[i];
    if (cell.copied >= here.first_barrier)
      fail("%s byte %zu of shared %s while an asynchronous copy to it is under way", verb, i * region->grain, region->name);
    if (!ordered(cell.write)) {
      if (cell.write.thread == SEVERAL)
        fail("%s byte %zu of shared %s, which a fragment is stored to with no barrier between", verb, i * region->grain, region->name);
      else
        fail("%s byte %zu of shared %s, which thread %u writes with no barrier between", verb, i * region->grain,
             region->name, cell.write.thread);
    }
    if (writes) {
      if (!ordered(cell.read))
        fail("writes byte %zu of shared %s, which %s reads with no barrier between", i * region->grain, region->name,
             cell.read.thread == SEVERAL ? "another thread" : "an earlier thread");
      cell.write = {here.barrier, here.thread, here.warp, here.warp_step};
    } else {
      if (cell.write.barrier < here.first_barrier)
        fail("reads byte %zu of shared %s, which no thread of the block has written", i * region->grain, region->name);
      bool same = cell.read.barrier == here.barrier;
      cell.read = {here.barrier, same && cell.read.thread != here.thread ? SEVERAL : here.thread,
                   same && cell.read.warp != here.warp ? SEVERAL : here.warp, here.warp_step};
    }
  }
}

/* An asynchronous copy to these bytes is under way, or it is no longer. */
inline void mark(const void* at, size_t bytes, const Region* region, bool under_way) {
  if (!region || !region->cells) return;
  size_t offset = (const char*)at - region->base;
  for (size_t i = offset / region->grain; i * region->grain < offset + bytes; i++)
    region->cells[i].copied = under_way ? here.barrier : 0;
}

inline Cell* cells(size_t bytes, unsigned grain) { return (Cell*)calloc(bytes / grain + 1, sizeof(Cell)); }

template <class T> struct Value { using type = T; };
template <class T> using value_of = typename Value<T>::type; /* what an expression is when it is read */

#ifdef CHECKED
template <class T> struct ptr;

template <class T> struct Ref {
  T* at;
  const Region* region;
  operator T() const { check(at, sizeof(T), region, false, alignof(T)); return *at; }
  template <class U, class = std::enable_if_t<std::is_class_v<T> && std::is_arithmetic_v<U>>>
  explicit operator U() const { return (U)(T)*this; }
  const Ref& operator=(const T& value) const { check(at, sizeof(T), region, true, alignof(T)); *at = value; return *this; }
  const Ref& operator=(const Ref& other) const { return *this = (T)other; }
  const Ref& operator+=(const T& value) const { return *this = (T)((T)*this + value); }
  ptr<T> operator&() const { return {at, region}; }
};

template <class T> struct Value<Ref<T>> { using type = T; };

template <class T> struct ptr {
  T* at;
  const Region* region;
  ptr(T* at, const Region* region) : at(at), region(region) {}
  template <class U> explicit ptr(const ptr<U>& other) : at((T*)other.at), region(other.region) {}
  template <class U> explicit ptr(U* at) : at((T*)at), region(nullptr) {}
  Ref<T> operator[](int64_t i) const { return {at + i, region}; }
  Ref<T> operator*() const { return {at, region}; }
  ptr operator+(int64_t i) const { return {at + i, region}; }
  explicit operator bool() const { return at; }
};

template <class T> struct Shared : Region, ptr<T> {
  Shared(const char* name, T* at, size_t n)
      : Region{name, (char*)at, n * sizeof(T), sizeof(T), nullptr, regions}, ptr<T>(at, this) {
    Region::cells = emulated::cells(bytes, grain);
    regions = this;
  }
};
#define SHARED(T, name, n)               \
  alignas(64) static T name##_memory[n]; \
  static emulated::Shared<T> name(#name, name##_memory, n)
template <class T> ptr<T> global(void* at, Region* region, const char* name, size_t bytes) {
  *region = {name, (char*)at, bytes, 1, nullptr};
  return {(T*)at, region};
}
#else
template <class T> using ptr = T*;
#define SHARED(T, name, n) alignas(64) static T name[n]
template <class T> T* global(void* at, Region*, const char*, size_t) { return (T*)at; }
#endif

template <class T> T* raw(T* p) { return p; }
template <class T, class R = decltype(T::at)> R raw(const T& p) { return p.at; }

}  // namespace emulated
