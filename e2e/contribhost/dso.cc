#include "dso.h"

#include <dlfcn.h>

#include <map>
#include <mutex>

#include "log.h"

namespace {
std::mutex lock_;
std::map<std::string, std::shared_ptr<Dso>> by_id_;
} // namespace

// contrib/golang/common/dso/dso.cc: Dso::Dso, dlsymInternal, NetworkFilterDsoImpl's constructor.
// All ten must be there. The handle is never closed: Go cannot be unloaded.
void loadDso(const std::string& id, const std::string& path) {
  std::lock_guard<std::mutex> lock(lock_);
  if (by_id_.count(id) != 0) {
    return;
  }
  void* handle = dlopen(path.c_str(), RTLD_LAZY);
  if (handle == nullptr) {
    logf(Level::error, "misc", "cannot load : %s error: %s", path.c_str(), dlerror());
    return;
  }
  auto dso = std::make_shared<Dso>();
  bool loaded = true;
#define SYMBOL(name)                                                                               \
  dso->name = reinterpret_cast<decltype(&::name)>(dlsym(handle, #name));                                       \
  if (dso->name == nullptr) {                                                                      \
    logf(Level::error, "misc", "lib: %s, cannot find symbol: %s, err: %s", path.c_str(), #name,    \
         dlerror());                                                                               \
    loaded = false;                                                                                \
  }
  SYMBOL(envoyGoFilterOnNetworkFilterConfig)
  SYMBOL(envoyGoFilterOnDownstreamConnection)
  SYMBOL(envoyGoFilterOnDownstreamData)
  SYMBOL(envoyGoFilterOnDownstreamEvent)
  SYMBOL(envoyGoFilterOnDownstreamWrite)
  SYMBOL(envoyGoFilterOnUpstreamConnectionReady)
  SYMBOL(envoyGoFilterOnUpstreamConnectionFailure)
  SYMBOL(envoyGoFilterOnUpstreamData)
  SYMBOL(envoyGoFilterOnUpstreamEvent)
  SYMBOL(envoyGoFilterOnSemaDec)
#undef SYMBOL
  if (loaded) {
    by_id_[id] = dso;
  }
}

std::shared_ptr<Dso> dsoByID(const std::string& id) {
  std::lock_guard<std::mutex> lock(lock_);
  auto it = by_id_.find(id);
  return it == by_id_.end() ? nullptr : it->second;
}
