/* What CUDA C as TVM writes it needs to be compiled as C++ and run on the CPU. */
#pragma once
#include "memory.h"
#include "threads.h"
#include "types.h"
#include "wmma.h"
#include "ptx.h"

extern "C" size_t emulated_bytes_from(const void* at); /* the driver's: how many bytes its allocation has from here on */
using emulated::ptr;
