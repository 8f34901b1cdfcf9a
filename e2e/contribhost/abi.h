// What passes between Envoy's golang network filter and a library, as this host has it.
// abi_test.go holds these lines against Envoy's own: contrib/golang/common/go/api/api.h (what
// a library calls) and contrib/golang/common/dso/{dso.h,libgolang.h} (what it exports).
#pragma once

#include <stddef.h>
#include <stdint.h>

typedef long long GoInt;
typedef unsigned long long GoUint64;

typedef struct {
  const char* p;
  ptrdiff_t n;
} GoString;

typedef enum {
  CAPIOK = 0,
  CAPIFilterIsGone = -1,
  CAPIFilterIsDestroy = -2,
  CAPINotInGo = -3,
  CAPIInvalidPhase = -4,
  CAPIValueNotFound = -5,
  CAPIYield = -6,
  CAPIInternalFailure = -7,
  CAPISerializationFailure = -8,
} CAPIStatus;

extern "C" {
// What a library calls.
CAPIStatus envoyGoFilterDownstreamClose(void* wrapper, int close_type);
CAPIStatus envoyGoFilterDownstreamWrite(void* f, void* buffer_ptr, int buffer_len, int end_stream);
void envoyGoFilterDownstreamFinalize(void* wrapper, int reason);
CAPIStatus envoyGoFilterDownstreamInfo(void* wrapper, int t, void* ret);

void* envoyGoFilterUpstreamConnect(void* library_id, void* addr, uint64_t conn_id);
CAPIStatus envoyGoFilterUpstreamConnEnableHalfClose(void* u, int enable_half_close);
CAPIStatus envoyGoFilterUpstreamWrite(void* u, void* buffer_ptr, int buffer_len, int end_stream);
CAPIStatus envoyGoFilterUpstreamClose(void* wrapper, int close_type);
void envoyGoFilterUpstreamFinalize(void* wrapper, int reason);
CAPIStatus envoyGoFilterUpstreamInfo(void* wrapper, int t, void* ret);

CAPIStatus envoyGoFilterSetFilterState(void* wrapper, void* key, void* value, int state_type,
                                       int life_span, int stream_sharing);
CAPIStatus envoyGoFilterGetFilterState(void* wrapper, void* key, void* value);

void envoyGoFilterLog(uint32_t level, void* message_data, int message_len);
uint32_t envoyGoFilterLogLevel();

// What a library exports.
GoUint64 envoyGoFilterOnNetworkFilterConfig(GoUint64 library_id_ptr, GoUint64 library_id_len,
                                                    GoUint64 config_ptr, GoUint64 config_len);
GoUint64 envoyGoFilterOnDownstreamConnection(void* w, GoUint64 plugin_name_ptr,
                                                     GoUint64 plugin_name_len, GoUint64 config_id);
GoUint64 envoyGoFilterOnDownstreamData(void* w, GoUint64 data_size, GoUint64 data_ptr,
                                               GoInt slice_num, GoInt end_of_stream);
void envoyGoFilterOnDownstreamEvent(void* w, GoInt event);
GoUint64 envoyGoFilterOnDownstreamWrite(void* w, GoUint64 data_size, GoUint64 data_ptr,
                                                GoInt slice_num, GoInt end_of_stream);
void envoyGoFilterOnUpstreamConnectionReady(void* w, GoUint64 conn_id);
void envoyGoFilterOnUpstreamConnectionFailure(void* w, GoInt reason, GoUint64 conn_id);
void envoyGoFilterOnUpstreamData(void* w, GoUint64 data_size, GoUint64 data_ptr,
                                         GoInt slice_num, GoInt end_of_stream);
void envoyGoFilterOnUpstreamEvent(void* w, GoInt event);
void envoyGoFilterOnSemaDec(void* w);
}
