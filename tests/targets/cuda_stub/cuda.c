/* A CUDA driver and runtime of one device that has no kernels: memory is the host's, a launch is only written down.

   It lets TVM's stock CUDA runtime load an artifact and walk through a whole model on a machine without a GPU, so
   that a test sees which machine code is loaded, which kernels are launched, with how many blocks and threads.
   Compiled twice, as libcuda.so.1 (-DDRIVER) and as libcudart.so.13. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef DRIVER
typedef struct {
  unsigned grid[3], block[3], shared;
} Launch; /* the head of CUlaunchConfig */

int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "stub", length); return 0; }
int cuGetErrorName(int error, const char **name) { *name = "error"; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "error"; return 0; }
int cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
int cuModuleUnload(void *module) { return 0; }
int cuTensorMapEncodeTiled(void) { return 0; }
int cuModuleLoadData(void **module, const void *image) {
  unsigned long hash = 5381; /* of the ELF header and what follows it */
  for (int i = 0; i < 4096; i++) hash = hash * 33 + ((const unsigned char *)image)[i];
  printf("load %.3s %lu\n", (const char *)image + 1, hash);
  *module = (void *)1;
  return 0;
}
int cuModuleGetFunction(void **function, void *module, const char *name) { *function = strdup(name); return 0; }
int cuLaunchKernelEx(const Launch *l, void *function, void **arguments, void **extra) {
  printf("launch %s %u %u\n", (char *)function, l->grid[0] * l->grid[1] * l->grid[2],
         l->block[0] * l->block[1] * l->block[2]);
  return 0;
}
#else
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaSetDevice(int device) { return 0; }
int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 0 : 1024; /* compute capability 8.0 */
  return 0;
}
int cudaMalloc(void **memory, size_t bytes) { *memory = calloc(1, bytes + 256); return 0; }
int cudaMallocHost(void **memory, size_t bytes) { *memory = calloc(1, bytes); return 0; }
int cudaFree(void *memory) { return 0; }
int cudaFreeHost(void *memory) { return 0; }
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
