// What Envoy's golang network filter offers (contrib/golang/common/go/api/api.h) that
// Meltemi uses. Every import is weak: a host that has another filter family only still
// loads the object, and the pointer is NULL.
#pragma once
#include <stdint.h>

#define MG_WEAK __attribute__((weak))

// Of the filter of a client's connection, f. Any thread may call them.
MG_WEAK int envoyGoFilterDownstreamClose(void* f, int close_type);
MG_WEAK int envoyGoFilterDownstreamWrite(void* f, void* buffer_ptr, int buffer_len, int end_stream);
MG_WEAK void envoyGoFilterDownstreamFinalize(void* f, int reason);
// On the connection's thread only. ret is a GoString, whose bytes are valid until the next
// call.
MG_WEAK int envoyGoFilterDownstreamInfo(void* f, int info_type, void* ret);

MG_WEAK void envoyGoFilterLog(uint32_t level, void* message_data, int message_len);
MG_WEAK uint32_t envoyGoFilterLogLevel(void);
