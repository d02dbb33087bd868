/* A CUDA driver and runtime of one device whose memory is the host's. Compiled twice, as libcuda.so.1 (-DDRIVER) and
   as libcudart.so.13, so that TVM's stock CUDA runtime loads an artifact and walks through it on any machine.

   Kernels are functions of the libraries that GRAPHOPT_EMULATED_KERNELS names, one or two with a colon between,
   whatever machine code the artifact holds; of two each runs its part of the blocks. Without that variable there are none: which code is loaded and what is launched is written to stdout. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef DRIVER
typedef struct {
  unsigned grid[3], block[3], shared;
} Launch; /* the head of CUlaunchConfig */
typedef void (*Kernel)(const unsigned *grid, const unsigned *block, unsigned shared, void **arguments);

int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "CPU emulation", length); return 0; }
int cuGetErrorName(int error, const char **name) { *name = "error"; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "error"; return 0; }
int cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
int cuModuleUnload(void *module) { return 0; }
int cuTensorMapEncodeTiled(void) { return 0; }

typedef struct { void *of[2]; } Pair; /* a library, or a kernel, checked and plain; either may be missing */

static void *found(void *library, const char *name) {
  void *kernel = dlsym(library, name);
  if (!kernel) fprintf(stderr, "emulation: %s\n", dlerror());
  return kernel;
}

int cuModuleLoadData(void **module, const void *image) {
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
  *function = pair;
  return 0;
}

int cuLaunchKernelEx(const Launch *l, void *function, void **arguments, void **extra) {
  if (getenv("GRAPHOPT_EMULATED_KERNELS"))
    for (int i = 0; i < 2; i++) {
      Kernel kernel = ((Pair *)function)->of[i];
      if (kernel) kernel(l->grid, l->block, l->shared, arguments);
    }
  else
    printf("launch %s %u %u\n", (char *)function, l->grid[0] * l->grid[1] * l->grid[2],
           l->block[0] * l->block[1] * l->block[2]);
  return 0;
}
#else
typedef struct Allocation {
  char *memory;
  size_t bytes;
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
  Allocation *a = malloc(sizeof *a);
  *memory = aligned_alloc(256, (bytes + 511) / 256 * 256);
  memset(*memory, 0xff, bytes); /* NaN: what nobody wrote shows */
  *a = (Allocation){*memory, bytes, allocations};
  allocations = a;
  return 0;
}

int cudaFree(void *memory) {
  for (Allocation **at = &allocations; *at; at = &(*at)->next)
    if ((*at)->memory == memory) {
      Allocation *gone = *at;
      *at = gone->next;
      free(gone);
      free(memory);
      break;
    }
  return 0;
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
int cudaMallocHost(void **memory, size_t bytes) { *memory = calloc(1, bytes); return 0; }
int cudaFreeHost(void *memory) { free(memory); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) { memcpy(to, from, bytes); return 0; }
int cudaMemcpyPeerAsync(void *to, int a, const void *from, int b, size_t bytes, void *stream) { memcpy(to, from, bytes); return 0; }
const char *cudaGetErrorName(int error) { return "error"; }
const char *cudaGetErrorString(int error) { return "error"; }
#define NOTHING(name) int name(void) { return 0; }
NOTHING(cudaEventCreate) NOTHING(cudaEventDestroy) NOTHING(cudaEventElapsedTime) NOTHING(cudaEventRecord)
NOTHING(cudaEventSynchronize) NOTHING(cudaGetDeviceProperties) NOTHING(cudaGetLastError) NOTHING(cudaGraphDestroy)
NOTHING(cudaGraphExecDestroy) NOTHING(cudaGraphInstantiate) NOTHING(cudaGraphLaunch) NOTHING(cudaMemGetInfo)
NOTHING(cudaPeekAtLastError) NOTHING(cudaStreamBeginCapture) NOTHING(cudaStreamCreate)
NOTHING(cudaStreamCreateWithFlags) NOTHING(cudaStreamDestroy) NOTHING(cudaStreamEndCapture)
NOTHING(cudaStreamSynchronize) NOTHING(cudaStreamWaitEvent)
#endif
