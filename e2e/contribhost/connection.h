// A TCP connection and its chain of filters.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "buffer.h"
#include "dispatcher.h"

// envoy/network/connection.h: ConnectionEvent
enum class ConnectionEvent { RemoteClose, LocalClose, Connected, ConnectedZeroRtt };
// envoy/network/connection.h: ConnectionCloseType
enum class CloseType { FlushWrite, NoFlush, FlushWriteAndDelay, Abort, AbortReset };
// envoy/network/filter.h: FilterStatus
enum class FilterStatus { Continue, StopIteration };

class Connection;

// envoy/network/connection.h: ConnectionCallbacks
class ConnectionCallbacks {
public:
  virtual ~ConnectionCallbacks() = default;
  virtual void onEvent(ConnectionEvent event) = 0;
};

// envoy/network/filter.h: Filter
class NetworkFilter {
public:
  virtual ~NetworkFilter() = default;
  virtual void initialize(Connection& connection) = 0;
  virtual FilterStatus onNewConnection() = 0;
  virtual FilterStatus onData(Buffer& data, bool end_stream) = 0;
  virtual FilterStatus onWrite(Buffer&, bool) { return FilterStatus::Continue; }
};

// source/common/network/connection_impl.cc: ConnectionImpl over raw_buffer_socket.cc, with
// filter_manager_impl.cc: FilterManagerImpl. Left out is what a library cannot see: stats,
// watermarks of the read buffer (the golang filter drains it within the event that filled it) and
// delayed closes with a time (only HTTP sets one).
class Connection {
public:
  // connected is false for one that this process dials.
  Connection(Dispatcher& dispatcher, int fd, bool connected, std::string local, std::string remote);
  ~Connection();

  void addFilter(std::shared_ptr<NetworkFilter> filter);
  bool initializeReadFilters();
  void addCallbacks(ConnectionCallbacks* callbacks) { callbacks_.push_back(callbacks); }

  void write(Buffer& data, bool end_stream);
  void close(CloseType type);
  void readDisable(bool disable);
  void enableHalfClose(bool enabled) { enable_half_close_ = enabled; }
  void detectEarlyClose(bool detect) { detect_early_close_ = detect; }
  void setBufferLimit(size_t limit) { buffer_limit_ = limit; }

  enum class State { Open, Closing, Closed };
  State state() const {
    return fd_ < 0 ? State::Closed : closing_ ? State::Closing : State::Open;
  }

  Dispatcher& dispatcher() { return dispatcher_; }
  const std::string& local() const { return local_; }
  const std::string& remote() const { return remote_; }
  // source/common/stream_info/filter_state_impl.h, for strings only
  std::unordered_map<std::string, std::string>& filterState() { return filter_state_; }

private:
  void onFileEvent(uint32_t events);
  void onReadReady();
  void onWriteReady();
  void onRead();
  void closeInternal(CloseType type);
  void closeSocket(ConnectionEvent event, bool reset = false);
  void raiseEvent(ConnectionEvent event);
  bool bothSidesHalfClosed() const {
    return read_end_stream_ && write_end_stream_ && write_buffer_.length() == 0;
  }

  struct Active {
    std::shared_ptr<NetworkFilter> filter;
    bool initialized = false;
  };
  FilterStatus filtersOnWrite(Buffer& data, bool end_stream);

  Dispatcher& dispatcher_;
  int fd_;
  const std::string local_, remote_;
  std::vector<Active> filters_;
  std::vector<ConnectionCallbacks*> callbacks_;
  std::unordered_map<std::string, std::string> filter_state_;
  Buffer read_buffer_, write_buffer_;
  size_t buffer_limit_ = 0;
  int read_disable_count_ = 0;
  bool connecting_;
  bool closing_ = false; // DelayedCloseState::CloseAfterFlush
  bool enable_half_close_ = false, detect_early_close_ = true;
  bool transport_wants_read_ = false;
  bool read_end_stream_ = false, read_end_stream_raised_ = false;
  bool write_end_stream_ = false, shutdown_ = false;
  std::unique_ptr<FileEvent> event_;
};
