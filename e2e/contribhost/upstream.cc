#include "upstream.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <list>
#include <mutex>
#include <utility>
#include <vector>

#include "address.h"
#include "counts.h"
#include "golang.h"
#include "log.h"

// source/common/tcp/conn_pool.cc: ActiveTcpClient
class TcpClient : public ConnectionCallbacks, public DeferredDeletable {
public:
  TcpClient(Dispatcher& dispatcher, int fd, const std::string& addr, UpstreamConn* first);
  void onEvent(ConnectionEvent event) override;
  void attach(UpstreamConn* conn);
  void clearCallbacks() { callbacks_ = nullptr; }
  void cancel() { pending_ = nullptr; }

  const std::string addr;
  Connection connection;
  bool connected = false;

private:
  friend class TcpReads;
  friend TcpClient* idleClient(const std::string& addr);
  UpstreamConn* pending_;
  UpstreamConn* callbacks_ = nullptr;
  bool associated_before_ = false, timed_out_ = false;
  Timer connect_timer_;
};

namespace {
// The pool of this worker.
thread_local std::list<std::unique_ptr<TcpClient>> clients;

std::mutex store_lock;
bool registered = false;
std::vector<Dispatcher*> workers, dispatchers;
size_t dispatcher_idx = 0;
} // namespace

// source/common/tcp/conn_pool.h: ActiveTcpClient::ConnReadFilter
class TcpReads : public NetworkFilter {
public:
  explicit TcpReads(TcpClient& client) : client_(client) {}
  void initialize(Connection&) override {}
  FilterStatus onNewConnection() override { return FilterStatus::Continue; }
  FilterStatus onData(Buffer& data, bool end_stream) override {
    if (client_.callbacks_ != nullptr) {
      client_.callbacks_->onUpstreamData(data, end_stream);
    } else {
      client_.connection.close(CloseType::NoFlush);
    }
    return FilterStatus::StopIteration;
  }

private:
  TcpClient& client_;
};

// source/common/conn_pool/conn_pool_base.cc: ActiveClient's constructor
TcpClient::TcpClient(Dispatcher& dispatcher, int fd, const std::string& addr, UpstreamConn* first)
    : addr(addr), connection(dispatcher, fd, false, "", addr), pending_(first),
      connect_timer_(dispatcher, [this] {
        timed_out_ = true;
        connection.close(CloseType::NoFlush);
      }) {
  connection.addCallbacks(this);
  connection.addFilter(std::make_shared<TcpReads>(*this));
  connection.initializeReadFilters();
  connection.setBufferLimit(1 << 20);
  connect_timer_.enable(plain_text.connect_timeout);
}

// conn_pool.cc: ActiveTcpClient::onEvent, conn_pool_base.cc: ConnPoolImplBase::onConnectionEvent
void TcpClient::onEvent(ConnectionEvent event) {
  if (event == ConnectionEvent::Connected) {
    connected = true;
    connect_timer_.disable();
    connection.readDisable(true);
    if (UpstreamConn* conn = std::exchange(pending_, nullptr)) {
      attach(conn);
    }
    return;
  }
  connect_timer_.disable();
  for (auto it = clients.begin(); it != clients.end(); ++it) {
    if (it->get() == this) {
      connection.dispatcher().deferredDelete(std::move(*it));
      clients.erase(it);
      break;
    }
  }
  if (UpstreamConn* conn = std::exchange(pending_, nullptr)) {
    using Reason = UpstreamConn::PoolFailureReason;
    conn->onPoolFailure(timed_out_ ? Reason::Timeout
                        : event == ConnectionEvent::RemoteClose ? Reason::RemoteConnectionFailure
                                                                : Reason::LocalConnectionFailure);
  }
  if (UpstreamConn* conn = std::exchange(callbacks_, nullptr)) {
    conn->onEvent(event);
  }
}

// conn_pool.cc: ConnPoolImpl::onPoolReady, ActiveTcpClient::readEnableIfNew
void TcpClient::attach(UpstreamConn* conn) {
  if (!associated_before_) {
    associated_before_ = true;
    connection.readDisable(false);
    connection.detectEarlyClose(false);
  }
  callbacks_ = conn;
  conn->onPoolReady(this);
}

// A connection that a library dropped without closing it is given out again, in the middle of
// whatever it was used for: conn_pool.cc, ActiveTcpClient::clearCallbacks.
TcpClient* idleClient(const std::string& addr) {
  for (auto& c : clients) {
    if (c->addr == addr && c->connected && c->callbacks_ == nullptr) {
      return c.get();
    }
  }
  return nullptr;
}

void closeUpstreams() {
  while (!clients.empty()) {
    clients.front()->connection.close(CloseType::NoFlush);
  }
}

UpstreamConnWrapper::UpstreamConnWrapper(std::shared_ptr<UpstreamConn> conn) : conn_ptr(std::move(conn)) {
  counts.upstream_wrappers++;
}
UpstreamConnWrapper::~UpstreamConnWrapper() { counts.upstream_wrappers--; }

void UpstreamConn::registerWorkers() {
  std::lock_guard<std::mutex> lock(store_lock);
  if (std::exchange(registered, true)) {
    return;
  }
  for (Dispatcher* d : workers) {
    d->post([d] {
      std::lock_guard<std::mutex> lock(store_lock);
      dispatchers.push_back(d);
    });
  }
}

// source/common/thread_local/thread_local_impl.cc: InstanceImpl::registerThread
void UpstreamConn::addWorker(Dispatcher& dispatcher) {
  std::lock_guard<std::mutex> lock(store_lock);
  workers.push_back(&dispatcher);
}

// upstream.cc: UpstreamConn::UpstreamConn. Connections are given to the workers in turn, whoever
// asks; with none running yet the modulo ends the process.
UpstreamConn::UpstreamConn(std::string addr, std::shared_ptr<Dso> dynamic_lib, uint64_t go_conn_id)
    : dynamic_lib_(std::move(dynamic_lib)), go_conn_id_(go_conn_id), addr_(std::move(addr)) {
  std::lock_guard<std::mutex> lock(store_lock);
  dispatcher_ = dispatchers[dispatcher_idx++ % dispatchers.size()];
  counts.upstreams++;
}

UpstreamConn::~UpstreamConn() {
  if (connecting_ != nullptr) {
    connecting_->cancel();
  }
  if (conn_ != nullptr) {
    conn_->clearCallbacks();
  }
  counts.upstreams--;
}

// upstream.cc: UpstreamConn::connect
void UpstreamConn::connect() {
  logf(Level::debug, "golang", "do connect addr: %s", addr_.c_str());
  if (!plain_text.exists) {
    logf(Level::error, "golang", "cluster not found");
    onPoolFailure(PoolFailureReason::LocalConnectionFailure);
    return;
  }
  sockaddr_storage to;
  socklen_t length;
  if (!parseAddress(addr_, &to, &length)) {
    // What is no address leaves the ORIGINAL_DST cluster without a host.
    logf(Level::error, "golang", "no host available for cluster");
    onPoolFailure(PoolFailureReason::LocalConnectionFailure);
    return;
  }
  if (TcpClient* idle = idleClient(addr_)) {
    idle->attach(this);
    return;
  }
  const int fd = socket(to.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) {
    onPoolFailure(PoolFailureReason::LocalConnectionFailure);
    return;
  }
  const int rc = ::connect(fd, reinterpret_cast<sockaddr*>(&to), length);
  if (rc != 0 && errno != EINPROGRESS) {
    ::close(fd);
    onPoolFailure(PoolFailureReason::RemoteConnectionFailure);
    return;
  }
  clients.push_back(std::make_unique<TcpClient>(*dispatcher_, fd, addr_, this));
  connecting_ = clients.back().get();
}

void UpstreamConn::enableHalfClose(bool enabled) {
  if (closed_) {
    logf(Level::warning, "golang", "connection has closed, addr: %s", addr_.c_str());
    return;
  }
  conn_->connection.enableHalfClose(enabled);
}

void UpstreamConn::write(Buffer& data, bool end_stream) {
  if (closed_) {
    logf(Level::warning, "golang", "connection has closed, addr: %s", addr_.c_str());
    return;
  }
  conn_->connection.write(data, end_stream);
}

void UpstreamConn::close(CloseType type) {
  if (closed_) {
    logf(Level::warning, "golang", "connection has closed, addr: %s", addr_.c_str());
    return;
  }
  conn_->connection.close(type);
}

// upstream.cc: UpstreamConn::onPoolReady
void UpstreamConn::onPoolReady(TcpClient* client) {
  connecting_ = nullptr;
  conn_ = client;
  remote_addr_ = client->connection.remote();
  dynamic_lib_->envoyGoFilterOnUpstreamConnectionReady(wrapper_, go_conn_id_);
}

// upstream.cc: UpstreamConn::onPoolFailure
void UpstreamConn::onPoolFailure(PoolFailureReason reason) {
  logf(Level::error, "golang", "onPoolFailure, addr: %s, reason: %d", addr_.c_str(), static_cast<int>(reason));
  connecting_ = nullptr;
  dynamic_lib_->envoyGoFilterOnUpstreamConnectionFailure(wrapper_, static_cast<GoInt>(reason), go_conn_id_);
}

// upstream.cc: UpstreamConn::onEvent
void UpstreamConn::onEvent(ConnectionEvent event) {
  if (event == ConnectionEvent::LocalClose || event == ConnectionEvent::RemoteClose) {
    closed_ = true;
    conn_ = nullptr;
  }
  dynamic_lib_->envoyGoFilterOnUpstreamEvent(wrapper_, static_cast<GoInt>(event));
}

// upstream.cc: UpstreamConn::onUpstreamData
void UpstreamConn::onUpstreamData(Buffer& data, bool end_stream) {
  const auto slices = slicesOf(data);
  dynamic_lib_->envoyGoFilterOnUpstreamData(wrapper_, data.length(),
                                            reinterpret_cast<GoUint64>(slices.data()),
                                            static_cast<GoInt>(slices.size() / 2), end_stream);
  data.drain(data.length());
}
