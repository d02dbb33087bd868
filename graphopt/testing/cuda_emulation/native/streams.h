/* Streams of the emulated device, and the capture of what they are given into graphs.

   Nothing is asynchronous: work is done as it is submitted. What CUDA forbids while a stream is being captured is an
   error here too, and spoils the capture (CUDA C++ Programming Guide, "Prohibited and Unhandled Operations"): work for
   the legacy default stream, from any thread, while a stream that waits for it is captured; synchronising with a
   captured stream; what may synchronise, as allocation does, from any thread in the mode "global". */
#pragma once
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "work.h"

enum {
  INVALID_VALUE = 1, OUT_OF_MEMORY = 2, ILLEGAL_STATE = 401, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901,
  CAPTURE_IMPLICIT = 906, CAPTURE_WRONG_THREAD = 908
};
enum { GLOBAL, THREAD_LOCAL, RELAXED };

typedef struct { Work *first, **last; } Graph;
typedef struct Stream {
  int waits_for_legacy, mode, spoilt;
  Graph *captured; /* NULL: what comes is done */
  pthread_t by;
  struct Stream *next;
} Stream;

static Stream *streams;
static pthread_mutex_t device = PTHREAD_MUTEX_INITIALIZER; /* streams, memory, and the threads of a kernel */
static _Thread_local int last_error;

const char *cudaGetErrorName(int error) {
  switch (error) {
    case 0: return "cudaSuccess";
    case INVALID_VALUE: return "cudaErrorInvalidValue";
    case OUT_OF_MEMORY: return "cudaErrorMemoryAllocation";
    case ILLEGAL_STATE: return "cudaErrorIllegalState";
    case CAPTURE_UNSUPPORTED: return "cudaErrorStreamCaptureUnsupported";
    case CAPTURE_INVALIDATED: return "cudaErrorStreamCaptureInvalidated";
    case CAPTURE_IMPLICIT: return "cudaErrorStreamCaptureImplicit";
    case CAPTURE_WRONG_THREAD: return "cudaErrorStreamCaptureWrongThread";
  }
  return "an error";
}
const char *cudaGetErrorString(int error) { return cudaGetErrorName(error); }
int cudaPeekAtLastError(void) { return last_error; }
int cudaGetLastError(void) { int error = last_error; last_error = 0; return error; }

static int failed(int error) { pthread_mutex_unlock(&device); return last_error = error; }
static int done(void) { pthread_mutex_unlock(&device); return 0; }

/* Whether a capture forbids what is asked of `stream` (NULL: the legacy one, for which all that wait for it count). */
static int forbidden(const Stream *stream) {
  int found = 0;
  for (Stream *s = streams; s; s = s->next)
    if (s->captured && (stream ? s == stream : s->waits_for_legacy)) found = s->spoilt = 1;
  return found;
}

int emulated_unsafe(void) {
  int found = 0;
  pthread_mutex_lock(&device);
  for (Stream *s = streams; s; s = s->next)
    if (s->captured && (s->mode == GLOBAL || (s->mode == THREAD_LOCAL && pthread_equal(s->by, pthread_self()))))
      found = s->spoilt = 1;
  return found ? failed(CAPTURE_UNSUPPORTED) : 0;
}
void emulated_unlock(void) { pthread_mutex_unlock(&device); }

static Work *copied(const Work *work) {
  Work *copy = malloc(work->bytes);
  memcpy(copy, work, work->bytes);
  copy->next = NULL;
  return copy;
}

static void append(Graph *graph, const Work *work) {
  *graph->last = copied(work);
  graph->last = &(*graph->last)->next;
}

static Graph *empty(void) {
  Graph *graph = malloc(sizeof *graph);
  *graph = (Graph){NULL, &graph->first};
  return graph;
}

static size_t length(const Graph *graph) {
  size_t n = 0;
  for (Work *w = graph->first; w; w = w->next) n++;
  return n;
}

static void forget(Graph *graph) {
  for (Work *w = graph->first, *next; w; w = next) { next = w->next; free(w); }
  free(graph);
}

int emulated_submit(void *stream, const Work *work) {
  Stream *to = stream;
  pthread_mutex_lock(&device);
  if (!to && forbidden(NULL)) return failed(CAPTURE_IMPLICIT);
  if (to && to->captured) {
    if (to->spoilt) return failed(CAPTURE_INVALIDATED);
    append(to->captured, work);
    return done();
  }
  Work *own = copied(work); /* the caller may write over what it gave, as it may on a device */
  own->run(own);
  free(own);
  return done();
}

static int create(void **stream, int waits_for_legacy) {
  pthread_mutex_lock(&device);
  Stream *made = calloc(1, sizeof *made);
  *made = (Stream){.waits_for_legacy = waits_for_legacy, .next = streams};
  *stream = streams = made;
  return done();
}
int cudaStreamCreate(void **stream) { return create(stream, 1); }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return create(stream, !(flags & 1)); }

int cudaStreamDestroy(void *stream) {
  pthread_mutex_lock(&device);
  for (Stream **at = &streams; *at; at = &(*at)->next)
    if (*at == stream) {
      Stream *gone = *at;
      *at = gone->next;
      if (gone->captured) forget(gone->captured);
      free(gone);
      return done();
    }
  return failed(INVALID_VALUE);
}

int cudaStreamSynchronize(void *stream) {
  pthread_mutex_lock(&device);
  if (forbidden(stream)) return failed(stream ? CAPTURE_UNSUPPORTED : CAPTURE_IMPLICIT);
  return done();
}

int cudaStreamBeginCapture(void *stream, int mode) {
  Stream *s = stream;
  pthread_mutex_lock(&device);
  if (!s) return failed(CAPTURE_UNSUPPORTED);
  if (s->captured) return failed(ILLEGAL_STATE);
  s->captured = empty(), s->mode = mode, s->spoilt = 0, s->by = pthread_self();
  return done();
}

int cudaStreamEndCapture(void *stream, void **graph) {
  Stream *s = stream;
  pthread_mutex_lock(&device);
  *graph = NULL;
  if (!s || !s->captured) return failed(ILLEGAL_STATE);
  if (s->mode != RELAXED && !pthread_equal(s->by, pthread_self())) return failed(CAPTURE_WRONG_THREAD);
  if (s->spoilt) forget(s->captured);
  else *graph = s->captured;
  s->captured = NULL;
  return s->spoilt ? failed(CAPTURE_INVALIDATED) : done();
}

int cudaGraphInstantiate(void **exec, void *graph, void *node, void *log, size_t bytes) {
  if (!graph) return last_error = INVALID_VALUE;
  Graph *copy = empty();
  for (Work *w = ((Graph *)graph)->first; w; w = w->next) append(copy, w);
  *exec = copy;
  return 0;
}
int cudaGraphDestroy(void *graph) {
  if (!graph) return last_error = INVALID_VALUE;
  forget(graph);
  return 0;
}
int cudaGraphExecDestroy(void *exec) { return cudaGraphDestroy(exec); }

int cudaGraphLaunch(void *exec, void *stream) {
  pthread_mutex_lock(&device);
  if (!exec) return failed(INVALID_VALUE);
  if (forbidden(stream)) return failed(stream ? CAPTURE_UNSUPPORTED : CAPTURE_IMPLICIT);
  Graph *graph = exec;
  if (!getenv("GRAPHOPT_EMULATED_KERNELS")) printf("graph %zu\n", length(graph));
  for (Work *w = graph->first; w; w = w->next) w->run(w);
  return done();
}
