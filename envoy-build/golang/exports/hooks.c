// The ten functions that Envoy's golang network filter looks up in a shared object
// (contrib/golang/common/dso/dso.cc, NetworkFilterDsoImpl): all of them have to be there.
#include "abi.h"

#include "_cgo_export.h"

#define MG_HOOK __attribute__((visibility("default")))

// Of package dynamicmodules, if it is linked too: this object is loaded.
__attribute__((weak)) void mt_loaded(void);

enum { CONTINUE = 0, STOP = 1 };
enum { REMOTE_CLOSE = 0, LOCAL_CLOSE = 1 };

MG_HOOK uint64_t envoyGoFilterOnNetworkFilterConfig(uint64_t library, uint64_t library_length, uint64_t config,
                                                    uint64_t config_length) {
  (void)library, (void)library_length;
  if (mt_loaded) mt_loaded();
  return mgConfig((char*)(uintptr_t)config, config_length);
}

MG_HOOK uint64_t envoyGoFilterOnDownstreamConnection(void* f, uint64_t plugin, uint64_t plugin_length, uint64_t config) {
  mgConnection(f, (char*)(uintptr_t)plugin, plugin_length, config);
  return CONTINUE;
}

// Nobody is behind a terminal filter, and Envoy drains what it has shown.
MG_HOOK uint64_t envoyGoFilterOnDownstreamData(void* f, uint64_t size, uint64_t slices, int64_t n, int64_t end) {
  mgData(f, size, (mg_slice*)(uintptr_t)slices, n, end != 0);
  return STOP;
}

// Envoy has no filter for us if one before has closed the connection at once.
MG_HOOK void envoyGoFilterOnDownstreamEvent(void* f, int64_t event) {
  if (f && (event == REMOTE_CLOSE || event == LOCAL_CLOSE)) mgClosed(f, event == REMOTE_CLOSE);
}

// What is shown here is what we have written; of nothing, when what came before is through.
MG_HOOK uint64_t envoyGoFilterOnDownstreamWrite(void* f, uint64_t size, uint64_t slices, int64_t n, int64_t end) {
  (void)slices, (void)n;
  if (size == 0 && !end) mgTurned(f);
  return CONTINUE;
}

// We have Envoy make no connections, and ask for no filter state.
MG_HOOK void envoyGoFilterOnUpstreamConnectionReady(void* u, uint64_t id) { (void)u, (void)id; }
MG_HOOK void envoyGoFilterOnUpstreamConnectionFailure(void* u, int64_t reason, uint64_t id) { (void)u, (void)reason, (void)id; }
MG_HOOK void envoyGoFilterOnUpstreamData(void* u, uint64_t size, uint64_t slices, int64_t n, int64_t end) {
  (void)u, (void)size, (void)slices, (void)n, (void)end;
}
MG_HOOK void envoyGoFilterOnUpstreamEvent(void* u, int64_t event) { (void)u, (void)event; }
MG_HOOK void envoyGoFilterOnSemaDec(void* f) { (void)f; }
