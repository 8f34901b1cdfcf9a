// What there is at a moment, for tests to see that nothing is leaked.
#pragma once

#include <atomic>

struct Counts {
  std::atomic<long> connections, filters, wrappers, upstreams, upstream_wrappers;
  std::atomic<long> configs; // OnNetworkFilterConfig, ever
};

inline Counts counts;
