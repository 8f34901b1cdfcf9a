// Listeners, the workers that serve them, and how they are replaced.
#pragma once

#include <atomic>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "config.h"
#include "connection.h"
#include "dispatcher.h"

// source/common/listener_manager/filter_chain_manager_impl.h: FilterChainImpl. Connections live and
// die with the one that they began with.
struct FilterChain {
  std::vector<std::function<std::shared_ptr<NetworkFilter>()>> factories;
  size_t buffer_limit = 0;
};
using FilterChainPtr = std::shared_ptr<const FilterChain>;

// envoy/network/listener.h, ListenerStats: those that tests look at, of all workers
struct ListenerStats {
  std::atomic<long> downstream_cx_total{0}, downstream_cx_active{0};
};

// source/common/listener_manager/active_tcp_listener.cc: ActiveTcpListener, of one worker
class ActiveTcpListener {
public:
  ActiveTcpListener(Dispatcher& dispatcher, int fd, FilterChainPtr chain, std::shared_ptr<ListenerStats> stats);
  ~ActiveTcpListener();
  void updateChain(FilterChainPtr chain) { chain_ = std::move(chain); }
  void stop();
  void removeFilterChain(const FilterChain* chain);

private:
  class ActiveTcpConnection;
  friend class ActiveTcpConnection;
  void onSocketEvent();
  void newConnection(int fd, std::string remote);
  void removeConnection(ActiveTcpConnection* connection);

  Dispatcher& dispatcher_;
  int fd_;
  std::string local_; // "" if connections have to be asked
  FilterChainPtr chain_;
  const std::shared_ptr<ListenerStats> stats_;
  std::unique_ptr<FileEvent> event_;
  std::list<std::unique_ptr<ActiveTcpConnection>> connections_;
};

// source/server/worker_impl.cc: WorkerImpl
class Worker {
public:
  explicit Worker(size_t index);
  void start();
  void stop();

  Dispatcher dispatcher;
  // By tag, on the worker's thread.
  std::map<uint64_t, std::unique_ptr<ActiveTcpListener>> listeners;

private:
  void threadRoutine();
  const std::string name_;
  std::thread thread_;
};

// source/common/listener_manager/listener_manager_impl.cc: ListenerManagerImpl, on the main thread
class ListenerManager {
public:
  ListenerManager(Dispatcher& dispatcher, size_t workers, std::chrono::milliseconds drain_time);
  ~ListenerManager();

  // Replaces all listeners. "" or what is wrong: then all is as before.
  std::string update(const Config& config);
  void startWorkers();
  void stopWorkers();
  // What an Envoy does for the one that takes its place by a hot restart: hands over its sockets,
  // to who waits at that path, and takes no more connections. "" or what is wrong.
  std::string passSockets(const std::string& path);
  void stopListeners();
  // Waits there for what the one before hands over, for the next update.
  std::string inherit(const std::string& path);
  // Envoy's names of stats with their values: listener.ADDRESS.NAME, the address being the
  // configured one, with underscores.
  std::map<std::string, long> stats() const;
  // Names and the addresses that they got.
  std::vector<std::pair<std::string, std::string>> listeners() const;

private:
  struct Listener {
    ListenerSpec spec;
    uint64_t tag;
    std::vector<int> fds; // one for each worker, which owns it
    std::string bound;
    FilterChainPtr chain;
    std::shared_ptr<ListenerStats> stats;
  };
  std::string bind(Listener* listener);
  void afterDrainTime(std::function<void()> then);

  Dispatcher& dispatcher_;
  const std::chrono::milliseconds drain_time_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::map<std::string, std::shared_ptr<Listener>> listeners_;
  std::list<std::unique_ptr<Timer>> timers_;
  long filter_chains_draining_ = 0;
  std::map<std::string, std::shared_ptr<ListenerStats>> stats_; // by address, for good
  std::map<std::string, int> inherited_;                        // by address and worker
  uint64_t next_tag_ = 1;
};
