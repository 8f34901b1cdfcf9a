// The hooks of load balancers, of clusters that name us.
#include "hooks.h"

#include "_cgo_export.h"

MT_HOOK const void* MT_ON(lb_config_new)(void* envoy, mt_buf name, mt_buf config) {
  static const char one; // there is nothing that configurations could differ in
  (void)envoy;
  return mtLBConfig((char*)name.ptr, name.length, (char*)config.ptr, config.length) ? &one : NULL;
}

MT_HOOK void MT_ON(lb_config_destroy)(const void* config) { (void)config; }

MT_HOOK const void* MT_ON(lb_new)(const void* config, void* envoy) {
  (void)config;
  return (const void*)(uintptr_t)mtLBNew(envoy, mt_self()); // its id; 0, that it cannot be made, is NULL
}

MT_HOOK void MT_ON(lb_destroy)(const void* lb) {
  mtLBDestroy((uintptr_t)lb);
}

// Health and weights that change come as an update without a host added or removed.
MT_HOOK void MT_ON(lb_on_host_membership_update)(void* envoy, const void* lb, size_t added, size_t removed) {
  (void)added, (void)removed;
  mtLBUpdate((uintptr_t)lb, envoy);
}

MT_HOOK bool MT_ON(lb_choose_host)(void* envoy, const void* lb, void* context, uint32_t* priority, uint32_t* index) {
  (void)envoy, (void)context;
  mt_buf wanted = mt_self()->wanted;
  return mtLBChoose((uintptr_t)lb, (char*)wanted.ptr, wanted.length, priority, index);
}
