/* Threads of the emulated device: each a fibre on its own stack, blocks one after the other.

   A fibre runs until it needs others: at a barrier of the block, or in an operation of the warp (shuffle, vote,
   matrix product). The scheduler, on the process's own stack, carries such an operation out once every thread of its
   mask has come to it. Switching is the compiler's __builtin_setjmp and
   __builtin_longjmp: a few instructions. */
#pragma once
#include <cstdarg>
#include <cstdio>
#include <initializer_list>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

#include "memory.h"
#include "types.h"

struct dim3 { unsigned x, y, z; };
static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
static const int warpSize = 32;

namespace emulated {

constexpr unsigned MOST_THREADS = 1024, WARP = 32, STACK = 256 << 10, FAILED = 70;
Where here;
static const char* kernel = "";

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "emulation: %s, block (%u, %u, %u), thread (%u, %u, %u) ", kernel, blockIdx.x, blockIdx.y, blockIdx.z,
          threadIdx.x, threadIdx.y, threadIdx.z);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  _exit(FAILED);
}

enum State { READY, BLOCK, IN_WARP, DONE };
using Collective = void (*)(void** lanes, unsigned mask); /* lanes: what each gave, null outside the mask */

struct Copy { char *to; const char* from; unsigned bytes, taken, group; const Region* source; };

struct Fibre {
  void* at[5];
  State state;
  uint3 index;
  bool made;
  int line;              /* of the barrier it waits at */
  Collective operation;  /* of its warp; null asks which lanes are here */
  unsigned mask, active;
  void* given;
  std::vector<Copy> copies;
  unsigned group; /* of asynchronous copies: how many it has committed */
};

static Fibre fibres[MOST_THREADS];
static Fibre* running;
static void* scheduler[5];
static void (*entry)(void*);
static void* closure;

__attribute__((noinline, noreturn)) static void jump(void** to) { __builtin_longjmp(to, 1); } /* not from where one is set */

__attribute__((noinline)) static void wait(State state) {
  running->state = state;
  if (!__builtin_setjmp(running->at)) jump(scheduler);
}

static void live() {
  for (;;) {
    entry(closure);
    wait(DONE);
  }
}

__attribute__((noinline)) static void resume(unsigned thread) {
  Fibre& f = fibres[thread];
  running = &f;
  threadIdx = f.index;
  here.thread = thread;
  here.warp = thread / WARP;
  if (__builtin_setjmp(scheduler)) return;
  if (f.made) jump(f.at);
  f.made = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  context.uc_stack.ss_size = STACK;
  context.uc_link = nullptr;
  makecontext(&context, live, 0);
  setcontext(&context);
}

/* Carries out one operation that the threads [first, last) of a warp wait for; false when there is none. */
static bool meet(unsigned first, unsigned last) {
  unsigned asking = 0;
  for (unsigned t = first; t < last; t++)
    if (fibres[t].state == IN_WARP && !fibres[t].operation) asking |= 1u << (t - first);
  unsigned present = last - first == WARP ? ~0u : (1u << (last - first)) - 1;
  for (unsigned t = first; t < last; t++) {
    Fibre& f = fibres[t];
    if (f.state != IN_WARP) continue;
    unsigned mask = (f.operation ? f.mask : asking) & present;
    void* given[WARP] = {};
    bool all = mask >> (t - first) & 1;
    for (unsigned lane = 0; lane < last - first; lane++) {
      if (!(mask >> lane & 1)) continue;
      Fibre& other = fibres[first + lane];
      all &= other.state == IN_WARP && other.operation == f.operation && (!f.operation || other.mask == f.mask);
      given[lane] = other.given;
    }
    if (!all) continue;
    if (f.operation) f.operation(given, mask);
    for (unsigned lane = 0; lane < last - first; lane++)
      if (mask >> lane & 1) fibres[first + lane].active = mask, fibres[first + lane].state = READY;
    return true;
  }
  return false;
}

static unsigned steps[MOST_THREADS / WARP]; /* how often the threads of a warp have met in this block */

static void run_warp(unsigned first, unsigned last) {
  do {
    here.warp_step = ++steps[first / WARP];
    for (unsigned t = first; t < last; t++)
      if (fibres[t].state == READY) resume(t);
  } while (meet(first, last));
}

static void run_block(unsigned threads) {
  for (unsigned t = 0; t < threads; t++) fibres[t].state = READY, fibres[t].copies.clear();
  here.first_barrier = ++here.barrier;
  for (;;) {
    for (unsigned first = 0; first < threads; first += WARP)
      run_warp(first, first + WARP < threads ? first + WARP : threads);
    unsigned ended = 0;
    int line = 0;
    for (unsigned t = 0; t < threads; t++) {
      threadIdx = fibres[t].index;
      if (fibres[t].state == IN_WARP) fail("waits in an operation of its warp for threads that never come to it");
      if (fibres[t].state == DONE) { ended++; continue; }
      if (line && line != fibres[t].line) fail("waits at another barrier than other threads of its block");
      line = fibres[t].line;
    }
    if (ended == threads) return;
    if (ended) fail("waits at a barrier or has ended, where other threads of its block do the opposite");
    here.barrier++;
    for (unsigned t = 0; t < threads; t++) fibres[t].state = READY;
  }
}

static void barrier(int line) {
  running->line = line;
  wait(BLOCK);
}

static unsigned in_warp(Collective operation, unsigned mask, void* given) {
  running->operation = operation;
  running->mask = mask;
  running->given = given;
  wait(IN_WARP);
  return running->active;
}

static void set_dynamic(size_t bytes);

/* Whether this library runs a block. All of them; or, with GRAPHOPT_EMULATED_SAMPLE=n, the checked library runs n
   evenly spread ones, the first and the last among them, and the plain library the others. */
static bool mine(uint64_t block, uint64_t blocks) {
  static const char* setting = getenv("GRAPHOPT_EMULATED_SAMPLE");
  static const uint64_t n = setting ? atoi(setting) : 0;
  if (!setting) return true;
  bool sampled = n >= blocks;
  if (!sampled && n > 1) {
    uint64_t k = (block * (n - 1) + blocks - 2) / (blocks - 1);
    sampled = k * (blocks - 1) / (n - 1) == block;
  }
#ifdef CHECKED
  return sampled;
#else
  return !sampled;
#endif
}

/* A launch of at most `bound` threads a block. `meets`: the kernel has barriers or warp operations; without them its
   threads are a plain loop. */
static void launch(const char* name, unsigned bound, bool meets, const unsigned* grid, const unsigned* block,
                   unsigned shared, void (*body)(void*), void* with) {
  kernel = name;
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {block[0], block[1], block[2]};
  entry = body, closure = with;
  unsigned threads = block[0] * block[1] * block[2];
  if (threads == 0 || threads > bound || block[2] > 64) fail("is launched in blocks of %u threads; it may have 1 to %u", threads, bound);
  if (grid[1] > 65535 || grid[2] > 65535 || grid[0] > 0x7fffffff) fail("is launched in more blocks than a grid may have");
  set_dynamic(shared);
  for (unsigned t = 0; t < threads; t++)
    fibres[t].index = {t % block[0], t / block[0] % block[1], t / block[0] / block[1]};
  uint64_t block_number = 0, blocks = (uint64_t)grid[0] * grid[1] * grid[2];
  for (blockIdx.z = 0; blockIdx.z < grid[2]; blockIdx.z++)
    for (blockIdx.y = 0; blockIdx.y < grid[1]; blockIdx.y++)
      for (blockIdx.x = 0; blockIdx.x < grid[0]; blockIdx.x++) {
        if (!mine(block_number++, blocks)) continue;
        if (meets) { run_block(threads); continue; }
        here.first_barrier = ++here.barrier;
        for (unsigned t = 0; t < threads; t++) {
          threadIdx = fibres[t].index, here.thread = t, here.warp = t / WARP;
          body(with);
        }
      }
}

/* Dynamic shared memory, of the size the launch asks for. */
constexpr size_t MOST_SHARED = 228 << 10;
alignas(128) static unsigned char dynamic_memory[MOST_SHARED];
static Region dynamic = {"memory of dynamic size", (char*)dynamic_memory, 0, 1, nullptr};
static void set_dynamic(size_t bytes) {
  if (bytes > MOST_SHARED) fail("is launched with %zu bytes of shared memory, and no device has that much", bytes);
  dynamic.bytes = bytes;
#ifdef CHECKED
  if (!dynamic.cells) {
    dynamic.cells = cells(MOST_SHARED, 1);
    dynamic.next = regions;
    regions = &dynamic;
  }
#endif
}
#ifdef CHECKED
static ptr<unsigned char> dynamic_shared() { return {dynamic_memory, &dynamic}; }
#else
static unsigned char* dynamic_shared() { return dynamic_memory; }
#endif

/* Shared memory by 32-bit addresses, as instructions have it: the distance from a place in this library. */
template <class P> unsigned shared_address(P at) { return (unsigned)((char*)raw(at) - (char*)dynamic_memory); }
static const Region* region_of(const char* at) {
  for (Region* r = regions; r; r = r->next)
    if (r->base <= at && at < r->base + (r == &dynamic ? MOST_SHARED : r->bytes)) return r;
  return nullptr;
}
static char* at_shared(unsigned address) { return (char*)dynamic_memory + (int)address; }

struct Exchange { unsigned char value[16]; unsigned bytes, source; bool own; };

static void exchange(void** lanes, unsigned mask) {
  Exchange before[WARP];
  for (unsigned i = 0; i < WARP; i++) if (lanes[i]) before[i] = *(Exchange*)lanes[i];
  for (unsigned i = 0; i < WARP; i++) {
    if (!lanes[i] || before[i].own) continue;
    Exchange& e = *(Exchange*)lanes[i];
    if (mask >> e.source & 1) memcpy(e.value, before[e.source].value, e.bytes);
    else memset(e.value, 0xff, e.bytes); /* of a lane that is not there: undefined, so something that shows */
  }
}

template <class T> T shuffle(unsigned mask, T value, int source, int width) {
  int lane = here.thread % WARP, first = lane & ~(width - 1);
  Exchange e{{}, sizeof(T), (unsigned)source, source < first || source >= first + width};
  memcpy(e.value, &value, sizeof(T));
  in_warp(exchange, mask, &e);
  memcpy((void*)&value, e.value, sizeof(T));
  return value;
}

struct Vote { bool mine; unsigned all; };
static void count(void** lanes, unsigned) {
  unsigned all = 0;
  for (unsigned i = 0; i < WARP; i++) if (lanes[i] && ((Vote*)lanes[i])->mine) all |= 1u << i;
  for (unsigned i = 0; i < WARP; i++) if (lanes[i]) ((Vote*)lanes[i])->all = all;
}
static void nothing(void**, unsigned) {}

}  // namespace emulated

#define __syncthreads() emulated::barrier(__LINE__)
static inline unsigned __activemask() { return emulated::in_warp(nullptr, 0, nullptr); }
static inline void __syncwarp(unsigned mask = ~0u) { emulated::in_warp(emulated::nothing, mask, nullptr); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline unsigned __ballot_sync(unsigned mask, bool mine) {
  emulated::Vote vote{mine, 0};
  emulated::in_warp(emulated::count, mask, &vote);
  return vote.all;
}
static inline bool __any_sync(unsigned mask, bool mine) { return __ballot_sync(mask, mine) != 0; }
static inline bool __all_sync(unsigned mask, bool mine) { return __ballot_sync(mask, !mine) == 0; }
#define LANE ((int)(emulated::here.thread % emulated::WARP))
#define SHUFFLE(name, source)                                                                       \
  template <class T> emulated::value_of<T> name(unsigned mask, T value, int by, int width = 32) {   \
    return emulated::shuffle<emulated::value_of<T>>(mask, value, source, width);                    \
  }
SHUFFLE(__shfl_sync, (LANE & ~(width - 1)) + by % width)
SHUFFLE(__shfl_down_sync, LANE + by)
SHUFFLE(__shfl_up_sync, LANE - by)
SHUFFLE(__shfl_xor_sync, LANE ^ by)
