// What the host is told to serve, in lines of words. Go code of the tests writes them from a
// bootstrap: whatever is no listener with a golang filter is a stock Envoy's.
//
//   plaintext CONNECT_TIMEOUT_MS              the cluster that upstream connections go through
//   listener NAME ADDRESS BUFFER_LIMIT        followed by its filters, in the order of the chain
//   local_ratelimit MAX_TOKENS                envoy.filters.network.local_ratelimit, never filled again
//   golang LIBRARY_ID LIBRARY_PATH PLUGIN_NAME PLUGIN_CONFIG
//
// Words are escaped as in URLs: a blank is %20.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "connection.h"
#include "upstream.h"

struct FilterSpec {
  // Makes a factory of filters, on the main thread, as NamedNetworkFilterConfigFactory's
  // createFilterFactoryFromProto does.
  std::function<std::function<std::shared_ptr<NetworkFilter>()>()> factory;
};

struct ListenerSpec {
  std::string name, address;
  size_t buffer_limit = 0;
  std::vector<FilterSpec> filters;
  std::string text; // to tell whether it has changed
};

struct Config {
  PlainTextCluster plain_text;
  std::vector<ListenerSpec> listeners;
};

// "" or what is wrong with the file.
std::string readConfig(const std::string& path, Config* config);
std::string escape(const std::string& word);
