// What C and Go share.
#pragma once
#include <stdint.h>

// A stretch of Envoy's memory, of which it shows two numbers.
typedef struct {
  char* ptr;
  uint64_t length;
} mg_slice;
_Static_assert(sizeof(mg_slice) == 2 * sizeof(uint64_t), "as Envoy has them");
