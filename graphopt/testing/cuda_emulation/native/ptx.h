/* The PTX instructions that TVM writes as inline assembly, one function each: `translate.py` calls
   ptx_<mnemonic, every other sign an underscore>(operands...). One that is missing here is a compile error. */
#pragma once
#include "threads.h"
#include "types.h"
