#include "golang.h"

#include "counts.h"
#include "log.h"
#include "upstream.h"

std::function<std::shared_ptr<NetworkFilter>()> golangFactory(std::shared_ptr<const FilterConfig> config) {
  UpstreamConn::registerWorkers();
  loadDso(config->library_id, config->library_path);
  // One that could not be loaded is not refused: each connection then calls what is null.
  uint64_t config_id = 0;
  auto dlib = dsoByID(config->library_id);
  if (dlib) {
    const std::string& id = config->library_id;
    const std::string& any = config->plugin_config;
    counts.configs++;
    config_id = dlib->envoyGoFilterOnNetworkFilterConfig(
        reinterpret_cast<GoUint64>(id.data()), id.length(), reinterpret_cast<GoUint64>(any.data()),
        any.length());
    if (config_id == 0) {
      logf(Level::warning, "golang", "config id is zero: a build with assertions ends here");
    }
  }
  return [config, config_id, dlib] { return std::make_shared<Filter>(config, config_id, dlib); };
}

FilterWrapper::FilterWrapper(std::weak_ptr<Filter> filter) : filter_ptr(std::move(filter)) { counts.wrappers++; }
FilterWrapper::~FilterWrapper() { counts.wrappers--; }

Filter::Filter(std::shared_ptr<const FilterConfig> config, uint64_t config_id, std::shared_ptr<Dso> dynamic_lib)
    : config_(std::move(config)), config_id_(config_id), plugin_name_(config_->plugin_name),
      dynamic_lib_(std::move(dynamic_lib)) {
  counts.filters++;
}

Filter::~Filter() { counts.filters--; }

// golang.cc: Filter::initializeReadFilterCallbacks
void Filter::initialize(Connection& connection) {
  connection_ = &connection;
  dispatcher_ = &connection.dispatcher();
  connection.addCallbacks(this);
  local_addr_ = connection.local();
  addr_ = connection.remote();
}

// golang.cc: Filter::close
void Filter::close(CloseType type) {
  if (closed_) {
    logf(Level::warning, "golang", "connection has closed, addr: %s", addr_.c_str());
    return;
  }
  logf(Level::debug, "golang", "close addr: %s, type: %d", addr_.c_str(), static_cast<int>(type));
  connection_->close(type);
}

// golang.cc: Filter::write. It comes back as onWrite before this returns.
void Filter::write(Buffer& data, bool end_stream) {
  if (closed_) {
    logf(Level::warning, "golang", "connection has closed, addr: %s", addr_.c_str());
    return;
  }
  logf(Level::debug, "golang", "write to addr: %s, len: %zu, end: %d", addr_.c_str(), data.length(), end_stream);
  connection_->write(data, end_stream);
}

// golang.cc: Filter::onNewConnection
FilterStatus Filter::onNewConnection() {
  logf(Level::debug, "golang", "onNewConnection, addr: %s, localAddr: %s", addr_.c_str(), local_addr_.c_str());
  wrapper_ = new FilterWrapper(weak_from_this());
  return static_cast<FilterStatus>(dynamic_lib_->envoyGoFilterOnDownstreamConnection(
      wrapper_, reinterpret_cast<GoUint64>(plugin_name_.data()), plugin_name_.length(), config_id_));
}

// golang.cc: Filter::onEvent. The wrapper is null if onNewConnection has not been called, because a
// filter before this one closed the connection.
void Filter::onEvent(ConnectionEvent event) {
  logf(Level::debug, "golang", "onEvent addr: %s, event: %d", addr_.c_str(), static_cast<int>(event));
  if (event == ConnectionEvent::LocalClose || event == ConnectionEvent::RemoteClose) {
    closed_ = true;
  }
  dynamic_lib_->envoyGoFilterOnDownstreamEvent(wrapper_, static_cast<GoInt>(event));
}

std::vector<unsigned long long> slicesOf(const Buffer& data) {
  std::vector<unsigned long long> slices;
  for (const Buffer::RawSlice& s : data.rawSlices()) {
    slices.push_back(reinterpret_cast<unsigned long long>(s.mem));
    slices.push_back(s.len);
  }
  return slices;
}

// golang.cc: Filter::onData. Whatever the library says, nothing of it is kept.
FilterStatus Filter::onData(Buffer& data, bool end_stream) {
  logf(Level::debug, "golang", "onData, addr: %s, len: %zu, end: %d", addr_.c_str(), data.length(), end_stream);
  const auto slices = slicesOf(data);
  const auto ret = dynamic_lib_->envoyGoFilterOnDownstreamData(
      wrapper_, data.length(), reinterpret_cast<GoUint64>(slices.data()),
      static_cast<GoInt>(slices.size() / 2), end_stream);
  data.drain(data.length());
  return static_cast<FilterStatus>(ret);
}

// golang.cc: Filter::onWrite. StopIteration drops what was written.
FilterStatus Filter::onWrite(Buffer& data, bool end_stream) {
  logf(Level::debug, "golang", "onWrite, addr: %s, len: %zu, end: %d", addr_.c_str(), data.length(), end_stream);
  const auto slices = slicesOf(data);
  const auto ret = dynamic_lib_->envoyGoFilterOnDownstreamWrite(
      wrapper_, data.length(), reinterpret_cast<GoUint64>(slices.data()),
      static_cast<GoInt>(slices.size() / 2), end_stream);
  return static_cast<FilterStatus>(ret);
}

// golang.cc: Filter::setFilterState. At once on the worker, else posted. A second value takes the
// first one's place, as by source/common/stream_info/filter_state_impl.cc: FilterStateImpl::setData;
// life spans are not imitated.
CAPIStatus Filter::setFilterState(const std::string& key, const std::string& value) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (closed_) {
    logf(Level::warning, "golang", "connection has closed, addr: %s", addr_.c_str());
    return CAPIFilterIsDestroy;
  }
  if (dispatcher_->isThreadSafe()) {
    connection_->filterState()[key] = value;
  } else {
    std::weak_ptr<Filter> weak = weak_from_this();
    dispatcher_->post([this, weak, key, value] {
      if (!weak.expired() && !closed_) {
        std::lock_guard<std::mutex> lock(mutex_);
        connection_->filterState()[key] = value;
      } else {
        logf(Level::info, "golang", "golang filter has gone or destroyed in setStringFilterState");
      }
    });
  }
  return CAPIOK;
}

// golang.cc: Filter::getFilterState. From another thread the value arrives later, announced by
// OnSemaDec, which does not come if the connection closes meanwhile.
CAPIStatus Filter::getFilterState(const std::string& key, GoString* value) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (closed_) {
    logf(Level::warning, "golang", "connection has closed, addr: %s", addr_.c_str());
    return CAPIFilterIsDestroy;
  }
  const auto get = [this, value](const std::string& key) {
    auto it = connection_->filterState().find(key);
    if (it != connection_->filterState().end()) {
      wrapper_->str_value = it->second;
      value->p = wrapper_->str_value.data();
      value->n = static_cast<ptrdiff_t>(wrapper_->str_value.length());
    }
  };
  if (dispatcher_->isThreadSafe()) {
    get(key);
    return CAPIOK;
  }
  std::weak_ptr<Filter> weak = weak_from_this();
  dispatcher_->post([this, weak, key, get] {
    if (!weak.expired() && !closed_) {
      get(key);
      dynamic_lib_->envoyGoFilterOnSemaDec(wrapper_);
    } else {
      logf(Level::info, "golang", "golang filter has gone or destroyed in setStringFilterState");
    }
  });
  return CAPIYield;
}
