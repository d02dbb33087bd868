/* What is given to a stream: done at once, or kept for a graph while the stream is being captured. The driver's half
   makes launches of it, the runtime's half copies. */
#pragma once
#include <stddef.h>

typedef struct Work {
  struct Work *next;
  void (*run)(struct Work *);
  size_t bytes; /* of this and of what follows it */
} Work;

/* Copies `work`, which its owner may then forget. 0, or CUDA's error. */
int emulated_submit(void *stream, const Work *work);

/* Locks the device, for a call that may synchronise. Not 0 (and unlocked): a capture of this thread's, or of any
   thread's in the mode "global", forbids it. */
int emulated_unsafe(void);
void emulated_unlock(void);

const char *cudaGetErrorName(int error);
