// The golang network filter: contrib/golang/filters/network/source/{config,golang}.{h,cc}.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "connection.h"
#include "dso.h"

// golang.h: FilterConfig
struct FilterConfig {
  std::string library_id, library_path, plugin_name;
  std::string plugin_config; // a serialized google.protobuf.Any
};

struct FilterWrapper;

// golang.h: Filter
class Filter : public NetworkFilter,
               public ConnectionCallbacks,
               public std::enable_shared_from_this<Filter> {
public:
  Filter(std::shared_ptr<const FilterConfig> config, uint64_t config_id, std::shared_ptr<Dso> dynamic_lib);
  ~Filter() override;

  void initialize(Connection& connection) override;
  FilterStatus onNewConnection() override;
  FilterStatus onData(Buffer& data, bool end_stream) override;
  FilterStatus onWrite(Buffer& data, bool end_stream) override;
  void onEvent(ConnectionEvent event) override;

  void write(Buffer& data, bool end_stream);
  void close(CloseType type);
  Dispatcher* dispatcher() { return dispatcher_; }
  const std::string& localAddr() const { return local_addr_; }
  const std::string& remoteAddr() const { return addr_; }
  CAPIStatus setFilterState(const std::string& key, const std::string& value);
  CAPIStatus getFilterState(const std::string& key, GoString* value);

private:
  const std::shared_ptr<const FilterConfig> config_;
  const uint64_t config_id_;
  const std::string plugin_name_;
  const std::shared_ptr<Dso> dynamic_lib_;
  FilterWrapper* wrapper_ = nullptr;
  Dispatcher* dispatcher_ = nullptr;
  Connection* connection_ = nullptr;
  bool closed_ = false;
  std::string local_addr_, addr_;
  std::mutex mutex_;
};

// golang.h: FilterWrapper, what a library has of a connection. Only Finalize deletes it.
struct FilterWrapper {
  explicit FilterWrapper(std::weak_ptr<Filter> filter);
  ~FilterWrapper();

  std::weak_ptr<Filter> filter_ptr;
  std::string str_value; // what Info and GetFilterState point to until the next call
};

// config.cc: GolangConfigFactory::createFilterFactoryFromProtoTyped. Called on the main thread,
// once for each chain that has such a filter; the factory for each connection, on its worker.
std::function<std::shared_ptr<NetworkFilter>()> golangFactory(std::shared_ptr<const FilterConfig> config);

// A library's array of what is in a buffer: address and length of each slice.
std::vector<unsigned long long> slicesOf(const Buffer& data);
