// The libraries that are loaded.
#pragma once

#include <memory>
#include <string>

#include "abi.h"

// contrib/golang/common/dso/dso.h: NetworkFilterDsoImpl
struct Dso {
#define MEMBER(name) decltype(&::name) name = nullptr;
  MEMBER(envoyGoFilterOnNetworkFilterConfig)
  MEMBER(envoyGoFilterOnDownstreamConnection)
  MEMBER(envoyGoFilterOnDownstreamData)
  MEMBER(envoyGoFilterOnDownstreamEvent)
  MEMBER(envoyGoFilterOnDownstreamWrite)
  MEMBER(envoyGoFilterOnUpstreamConnectionReady)
  MEMBER(envoyGoFilterOnUpstreamConnectionFailure)
  MEMBER(envoyGoFilterOnUpstreamData)
  MEMBER(envoyGoFilterOnUpstreamEvent)
  MEMBER(envoyGoFilterOnSemaDec)
#undef MEMBER
};

// contrib/golang/common/dso/dso.h: DsoManager::load. What a library_id has been loaded from stays:
// another path is ignored. Nothing is kept if it fails.
void loadDso(const std::string& id, const std::string& path);
// DsoManager::getDsoByID: null if there is none.
std::shared_ptr<Dso> dsoByID(const std::string& id);
