/* A CUDA driver and runtime of one device whose memory is the host's. Compiled twice, as libcuda.so.1 (-DDRIVER) and
   as libcudart.so.13, so that TVM's stock CUDA runtime loads an artifact and walks through it on any machine.

   Kernels are functions of the libraries that GRAPHOPT_EMULATED_KERNELS names, one or two with a colon between,
   whatever machine code the artifact holds; of two each runs its part of the blocks. Without that variable there are none:
   which code is loaded and what is launched is written to stdout. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "work.h"

#ifdef DRIVER
typedef struct {
  unsigned grid[3], block[3], shared;
  void *stream;
} Launch; /* the head of CUlaunchConfig */
typedef void (*Kernel)(const unsigned *grid, const unsigned *block, unsigned shared, void **arguments);

int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "CPU emulation", length); return 0; }
int cuGetErrorName(int error, const char **name) { *name = cudaGetErrorName(error); return 0; }
int cuGetErrorString(int error, const char **text) { return cuGetErrorName(error, text); }
int cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
int cuModuleUnload(void *module) { return 0; }
int cuTensorMapEncodeTiled(void) { return 0; }

typedef struct {
  void *of[2];           /* a library, or a kernel, checked and plain; either may be missing */
  const unsigned *sizes; /* of a kernel: how many parameters, and the bytes of each */
} Pair;

static void *found(void *library, const char *name) {
  void *kernel = dlsym(library, name);
  if (!kernel) fprintf(stderr, "emulation: %s\n", dlerror());
  return kernel;
}

int cuModuleLoadData(void **module, const void *image) {
  int error = emulated_unsafe();
  if (error) return error;
  emulated_unlock();
  const char *kernels = getenv("GRAPHOPT_EMULATED_KERNELS");
  if (kernels) {
    Pair *pair = calloc(1, sizeof *pair);
    char *names = strdup(kernels), *name = strtok(names, ":");
    for (int i = 0; i < 2 && name; i++, name = strtok(NULL, ":")) {
      pair->of[i] = dlopen(name, RTLD_NOW);
      if (!pair->of[i]) { fprintf(stderr, "emulation: %s\n", dlerror()); return 1; }
    }
    free(names);
    *module = pair;
    return 0;
  }
  unsigned long hash = 5381; /* of the ELF header and what follows it */
  for (int i = 0; i < 4096; i++) hash = hash * 33 + ((const unsigned char *)image)[i];
  printf("load %.3s %lu\n", (const char *)image + 1, hash);
  *module = (void *)1;
  return 0;
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
  char symbol[512];
  if (!getenv("GRAPHOPT_EMULATED_KERNELS")) { *function = strdup(name); return 0; }
  snprintf(symbol, sizeof symbol, "emulated_%s", name);
  Pair *library = module, *pair = calloc(1, sizeof *pair);
  for (int i = 0; i < 2; i++)
    if (library->of[i] && !(pair->of[i] = found(library->of[i], symbol))) return 1;
  snprintf(symbol, sizeof symbol, "sizes_of_%s", name);
  pair->sizes = found(library->of[0] ? library->of[0] : library->of[1], symbol);
  *function = pair;
  return 0;
}

#define ALIGNED(bytes) (((bytes) + 15) / 16 * 16)
typedef struct {
  Work work;
  Launch launch;
  void *function;
  _Alignas(16) char values[]; /* of the arguments, one after the other, each at a multiple of 16 */
} Launched;

static void launch(Work *work) {
  Launched *l = (Launched *)work;
  if (!getenv("GRAPHOPT_EMULATED_KERNELS")) {
    unsigned *grid = l->launch.grid, *block = l->launch.block;
    printf("launch %s %u %u\n", (char *)l->function, grid[0] * grid[1] * grid[2], block[0] * block[1] * block[2]);
    return;
  }
  Pair *pair = l->function;
  void *arguments[pair->sizes[0] + 1];
  char *value = l->values;
  for (unsigned i = 1; i <= pair->sizes[0]; value += ALIGNED(pair->sizes[i++])) arguments[i - 1] = value;
  for (int i = 0; i < 2; i++) {
    Kernel kernel = pair->of[i];
    if (kernel) kernel(l->launch.grid, l->launch.block, l->launch.shared, arguments);
  }
}

int cuLaunchKernelEx(const Launch *l, void *function, void **arguments, void **extra) {
  const unsigned none = 0, *sizes = getenv("GRAPHOPT_EMULATED_KERNELS") ? ((Pair *)function)->sizes : &none;
  size_t bytes = sizeof(Launched);
  for (unsigned i = 1; i <= sizes[0]; i++) bytes += ALIGNED(sizes[i]);
  Launched *made = malloc(bytes);
  *made = (Launched){{NULL, launch, bytes}, *l, function};
  char *value = made->values;
  for (unsigned i = 1; i <= sizes[0]; value += ALIGNED(sizes[i++])) memcpy(value, arguments[i - 1], sizes[i]);
  int error = emulated_submit(l->stream, &made->work);
  free(made);
  return error;
}
#else
#include <sys/mman.h>
#include "streams.h"

typedef struct Allocation {
  char *memory;
  size_t bytes, mapped;
  struct Allocation *next;
} Allocation;
static Allocation *allocations;

/* How many bytes there are from `at` to the end of what was allocated there; 0 for memory that is not the device's. */
size_t emulated_bytes_from(const char *at) {
  for (Allocation *a = allocations; a; a = a->next)
    if (a->memory <= at && at < a->memory + a->bytes) return a->memory + a->bytes - at;
  return 0;
}

int cudaMalloc(void **memory, size_t bytes) {
  int error = emulated_unsafe();
  if (error) return error;
  Allocation *a = malloc(sizeof *a);
  size_t mapped = (bytes + 4096) / 4096 * 4096;
  *memory = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (*memory == MAP_FAILED) return free(a), failed(OUT_OF_MEMORY);
  memset(*memory, 0xff, bytes); /* NaN: what nobody wrote shows */
  *a = (Allocation){*memory, bytes, mapped, allocations};
  allocations = a;
  return done();
}

int cudaFree(void *memory) {
  int error = emulated_unsafe();
  if (error) return error;
  for (Allocation **at = &allocations; *at; at = &(*at)->next)
    if ((*at)->memory == memory) {
      Allocation *gone = *at;
      *at = gone->next;
      /* An address is never given out twice: whoever kept one is seen. */
      mmap(memory, gone->mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
      free(gone);
      return done();
    }
  return memory ? failed(INVALID_VALUE) : done();
}

int cudaMallocHost(void **memory, size_t bytes) {
  int error = emulated_unsafe();
  if (error) return error;
  *memory = calloc(1, bytes);
  return done();
}
int cudaFreeHost(void *memory) {
  int error = emulated_unsafe();
  if (error) return error;
  free(memory);
  return done();
}

typedef struct {
  Work work;
  void *to;
  const void *from;
  size_t bytes;
} Copy;
static void copy(Work *work) { memcpy(((Copy *)work)->to, ((Copy *)work)->from, ((Copy *)work)->bytes); }
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
  Copy made = {{NULL, copy, sizeof made}, to, from, bytes};
  return emulated_submit(stream, &made.work);
}
int cudaMemcpyPeerAsync(void *to, int a, const void *from, int b, size_t bytes, void *stream) {
  return cudaMemcpyAsync(to, from, bytes, 0, stream);
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  const char *arch = getenv("GRAPHOPT_EMULATED_ARCH"); /* as in sm_80 */
  int version = arch ? atoi(arch + 3) : 80;
  *value = attribute == 75 ? version / 10 : attribute == 76 ? version % 10 : attribute == 10 ? 32 : 1024;
  return 0;
}

int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaSetDevice(int device) { return 0; }
int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
#define NOTHING(name) int name(void) { return 0; }
NOTHING(cudaEventCreate) NOTHING(cudaEventDestroy) NOTHING(cudaEventElapsedTime) NOTHING(cudaEventRecord)
NOTHING(cudaEventSynchronize) NOTHING(cudaGetDeviceProperties) NOTHING(cudaMemGetInfo) NOTHING(cudaStreamWaitEvent)
#endif
