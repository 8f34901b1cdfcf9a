// Upstream connections: contrib/golang/filters/network/source/upstream.{h,cc}, over as much of
// Envoy's TCP connection pool as shows through it.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "connection.h"
#include "dso.h"

struct UpstreamConnWrapper;
class TcpClient;

// The cluster whose name upstream.cc has in it: an ORIGINAL_DST one named plainText. Its circuit
// breakers are not imitated, and its transport socket is plain.
struct PlainTextCluster {
  bool exists = false;
  std::chrono::milliseconds connect_timeout{5000};
};
// Of the whole process, from before the first connection.
inline PlainTextCluster plain_text;

// upstream.h: UpstreamConn
class UpstreamConn : public std::enable_shared_from_this<UpstreamConn> {
public:
  UpstreamConn(std::string addr, std::shared_ptr<Dso> dynamic_lib, uint64_t go_conn_id);
  ~UpstreamConn();

  // upstream.cc: UpstreamConn::initThreadLocalStorage. Workers that exist or will take part in the
  // turns in which connections are given out.
  static void registerWorkers();
  static void addWorker(Dispatcher& dispatcher);

  void connect();
  void enableHalfClose(bool enabled);
  void write(Buffer& data, bool end_stream);
  void close(CloseType type);

  // Tcp::ConnectionPool::Callbacks and UpstreamCallbacks
  enum class PoolFailureReason { Overflow, LocalConnectionFailure, RemoteConnectionFailure, Timeout };
  void onPoolReady(TcpClient* client);
  void onPoolFailure(PoolFailureReason reason);
  void onUpstreamData(Buffer& data, bool end_stream);
  void onEvent(ConnectionEvent event);

  Dispatcher* dispatcher() { return dispatcher_; }
  void setWrapper(UpstreamConnWrapper* wrapper) { wrapper_ = wrapper; }
  const std::string& localAddr() const { return addr_; } // sic: what was dialled
  const std::string& remoteAddr() const { return remote_addr_; }

private:
  const std::shared_ptr<Dso> dynamic_lib_;
  const uint64_t go_conn_id_;
  UpstreamConnWrapper* wrapper_ = nullptr;
  Dispatcher* dispatcher_;
  TcpClient* conn_ = nullptr;
  TcpClient* connecting_ = nullptr; // handler_
  bool closed_ = false;
  const std::string addr_;
  std::string remote_addr_;
  friend class TcpClient;
};

// upstream.h: UpstreamConnWrapper. It alone keeps the connection.
struct UpstreamConnWrapper {
  explicit UpstreamConnWrapper(std::shared_ptr<UpstreamConn> conn);
  ~UpstreamConnWrapper();

  std::shared_ptr<UpstreamConn> conn_ptr;
  std::string str_value;
};

// Closes a worker's upstream connections, on that worker.
void closeUpstreams();
