#include "listener.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>

#include "address.h"
#include "counts.h"
#include "log.h"
#include "upstream.h"

// source/common/listener_manager/active_stream_listener_base.cc: ActiveTcpConnection
class ActiveTcpListener::ActiveTcpConnection : public ConnectionCallbacks, public DeferredDeletable {
public:
  ActiveTcpConnection(ActiveTcpListener& listener, std::unique_ptr<Connection> connection, FilterChainPtr chain)
      : listener(listener), stats_(listener.stats_), connection(std::move(connection)), chain(std::move(chain)) {
    counts.connections++;
    stats_->downstream_cx_total++;
    stats_->downstream_cx_active++;
  }
  ~ActiveTcpConnection() override {
    counts.connections--;
    stats_->downstream_cx_active--;
  }

  // ActiveTcpConnection::onEvent: it is destroyed at the end of this turn, or before callbacks that
  // were posted.
  void onEvent(ConnectionEvent event) override {
    if (event == ConnectionEvent::LocalClose || event == ConnectionEvent::RemoteClose) {
      listener.removeConnection(this);
    }
  }

  ActiveTcpListener& listener;
  const std::shared_ptr<ListenerStats> stats_;
  const std::unique_ptr<Connection> connection;
  const FilterChainPtr chain;
};

ActiveTcpListener::ActiveTcpListener(Dispatcher& dispatcher, int fd, FilterChainPtr chain,
                                     std::shared_ptr<ListenerStats> stats)
    : dispatcher_(dispatcher), fd_(fd), chain_(std::move(chain)), stats_(std::move(stats)),
      event_(new FileEvent(dispatcher, fd, false, Ready::read, [this](uint32_t) { onSocketEvent(); })) {
  sockaddr_storage a = {};
  socklen_t length = sizeof a;
  getsockname(fd, reinterpret_cast<sockaddr*>(&a), &length);
  const auto& v4 = reinterpret_cast<sockaddr_in&>(a);
  const auto& v6 = reinterpret_cast<sockaddr_in6&>(a);
  const bool any = a.ss_family == AF_INET6 ? IN6_IS_ADDR_UNSPECIFIED(&v6.sin6_addr) : v4.sin_addr.s_addr == INADDR_ANY;
  if (!any) {
    local_ = addressString(a);
  }
}

// ActiveTcpListener::~ActiveTcpListener: what is left is closed, as if by the library's own side.
ActiveTcpListener::~ActiveTcpListener() {
  stop();
  while (!connections_.empty()) {
    connections_.front()->connection->close(CloseType::NoFlush);
  }
  dispatcher_.clearDeferredDeleteList();
}

void ActiveTcpListener::stop() {
  event_.reset();
  if (fd_ >= 0) {
    close(fd_);
    fd_ = -1;
  }
}

// source/common/network/tcp_listener_impl.cc: TcpListenerImpl::onSocketEvent. The descriptor is
// level triggered.
void ActiveTcpListener::onSocketEvent() {
  while (fd_ >= 0) {
    sockaddr_storage remote = {};
    socklen_t length = sizeof remote;
    const int fd = accept4(fd_, reinterpret_cast<sockaddr*>(&remote), &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
      return;
    }
    newConnection(fd, addressString(remote));
  }
}

// ActiveStreamListenerBase::newConnection, then ActiveTcpListener::newActiveConnection: filters are
// made and hear of the connection before the listener takes it. One that was closed by then is
// destroyed at once.
void ActiveTcpListener::newConnection(int fd, std::string remote) {
  std::string local = local_;
  if (local.empty()) {
    sockaddr_storage a = {};
    socklen_t length = sizeof a;
    getsockname(fd, reinterpret_cast<sockaddr*>(&a), &length);
    local = addressString(a);
  }
  auto connection = std::make_unique<Connection>(dispatcher_, fd, true, std::move(local), std::move(remote));
  connection->setBufferLimit(chain_->buffer_limit);
  // source/common/listener_manager/... FilterChainUtility::buildFilterChain (server/configuration_impl.cc)
  for (const auto& factory : chain_->factories) {
    connection->addFilter(factory());
  }
  if (!connection->initializeReadFilters()) {
    connection->close(CloseType::NoFlush);
  }
  auto active = std::make_unique<ActiveTcpConnection>(*this, std::move(connection), chain_);
  if (active->connection->state() != Connection::State::Closed) {
    active->connection->addCallbacks(active.get());
    connections_.push_front(std::move(active));
  }
}

// OwnedActiveStreamListenerBase::removeConnection
void ActiveTcpListener::removeConnection(ActiveTcpConnection* connection) {
  for (auto it = connections_.begin(); it != connections_.end(); ++it) {
    if (it->get() == connection) {
      dispatcher_.deferredDelete(std::move(*it));
      connections_.erase(it);
      return;
    }
  }
}

// OwnedActiveStreamListenerBase::removeFilterChain
void ActiveTcpListener::removeFilterChain(const FilterChain* chain) {
  std::vector<ActiveTcpConnection*> of;
  for (const auto& c : connections_) {
    if (c->chain.get() == chain) {
      of.push_back(c.get());
    }
  }
  for (ActiveTcpConnection* c : of) {
    c->connection->close(CloseType::NoFlush);
  }
}

Worker::Worker(size_t index) : name_("wrk:worker_" + std::to_string(index)) { UpstreamConn::addWorker(dispatcher); }

// WorkerImpl::start: the thread has a name.
void Worker::start() {
  thread_ = std::thread([this] { threadRoutine(); });
  pthread_setname_np(thread_.native_handle(), name_.substr(0, 15).c_str());
}

void Worker::stop() {
  dispatcher.exit();
  thread_.join();
}

// WorkerImpl::threadRoutine: connections end on their worker, before its thread does; what was
// posted meanwhile never runs.
void Worker::threadRoutine() {
  dispatcher.run();
  listeners.clear();
  closeUpstreams();
  dispatcher.clearDeferredDeleteList();
}

ListenerManager::ListenerManager(Dispatcher& dispatcher, size_t workers, std::chrono::milliseconds drain_time)
    : dispatcher_(dispatcher), drain_time_(drain_time) {
  for (size_t i = 0; i < workers; i++) {
    workers_.push_back(std::make_unique<Worker>(i));
  }
}

ListenerManager::~ListenerManager() = default;

void ListenerManager::startWorkers() {
  for (auto& w : workers_) {
    w->start();
  }
}

void ListenerManager::stopWorkers() {
  for (auto& w : workers_) {
    w->stop();
  }
}

std::vector<std::pair<std::string, std::string>> ListenerManager::listeners() const {
  std::vector<std::pair<std::string, std::string>> all;
  for (const auto& [name, l] : listeners_) {
    all.emplace_back(name, l->bound);
  }
  return all;
}

std::map<std::string, long> ListenerManager::stats() const {
  std::map<std::string, long> all;
  for (const auto& [address, s] : stats_) {
    const std::string prefix = "listener." + address + ".";
    all[prefix + "downstream_cx_total"] = s->downstream_cx_total;
    all[prefix + "downstream_cx_active"] = s->downstream_cx_active;
    all[prefix + "downstream_cx_destroy"] = s->downstream_cx_total - s->downstream_cx_active;
  }
  all["listener_manager.total_filter_chains_draining"] = filter_chains_draining_;
  return all;
}

namespace {
std::string socketName(const std::string& address, size_t worker) { return address + " " + std::to_string(worker); }

// A message is a socket's name, with the socket beside it.
struct SocketMessage {
  char name[128] = {};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  iovec text = {name, sizeof name};
  msghdr header = {};

  SocketMessage() {
    header.msg_iov = &text;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof control;
  }
};

sockaddr_un unixAddress(const std::string& path) {
  sockaddr_un a = {};
  a.sun_family = AF_UNIX;
  path.copy(a.sun_path, sizeof a.sun_path - 1);
  return a;
}
} // namespace

// source/server/hot_restarting_parent.cc: HotRestartingParent::Internal::getListenSocketsForChild, for
// all that a child could ask for.
std::string ListenerManager::passSockets(const std::string& path) {
  const int to = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  const sockaddr_un a = unixAddress(path);
  bool passed = connect(to, reinterpret_cast<const sockaddr*>(&a), sizeof a) == 0;
  for (const auto& [name, l] : listeners_) {
    for (size_t i = 0; i < l->fds.size() && passed; i++) {
      SocketMessage m;
      socketName(l->bound, i).copy(m.name, sizeof m.name - 1);
      cmsghdr* c = CMSG_FIRSTHDR(&m.header);
      c->cmsg_level = SOL_SOCKET;
      c->cmsg_type = SCM_RIGHTS;
      c->cmsg_len = CMSG_LEN(sizeof(int));
      memcpy(CMSG_DATA(c), &l->fds[i], sizeof(int));
      passed = sendmsg(to, &m.header, 0) > 0;
    }
  }
  const std::string why = passed ? "" : std::string("cannot pass sockets: ") + strerror(errno);
  close(to);
  return why;
}

// source/common/listener_manager/listener_manager_impl.cc: ListenerManagerImpl::stopListeners, as
// source/server/server.cc: InstanceBase::drainListeners calls it. Connections go on.
void ListenerManager::stopListeners() {
  for (const auto& [name, l] : listeners_) {
    for (auto& w : workers_) {
      w->dispatcher.post([w = w.get(), tag = l->tag] { w->listeners[tag]->stop(); });
    }
  }
}

std::string ListenerManager::inherit(const std::string& path) {
  const int at = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  const sockaddr_un a = unixAddress(path);
  if (::bind(at, reinterpret_cast<const sockaddr*>(&a), sizeof a) != 0 || ::listen(at, 1) != 0) {
    return "cannot wait for sockets: " + std::string(strerror(errno));
  }
  printf("waiting\n");
  fflush(stdout);
  const int from = accept4(at, nullptr, nullptr, SOCK_CLOEXEC);
  for (;;) {
    SocketMessage m;
    if (recvmsg(from, &m.header, MSG_CMSG_CLOEXEC) <= 0) {
      break;
    }
    if (const cmsghdr* c = CMSG_FIRSTHDR(&m.header); c != nullptr && c->cmsg_type == SCM_RIGHTS) {
      memcpy(&inherited_[m.name], CMSG_DATA(c), sizeof(int));
    }
  }
  close(from);
  close(at);
  return "";
}

// source/common/listener_manager/listener_impl.cc: ListenSocketFactoryImpl. Each worker has a socket
// of its own, and the kernel says which gets a connection (enable_reuse_port).
std::string ListenerManager::bind(Listener* listener) {
  sockaddr_storage a;
  socklen_t length;
  if (!parseAddress(listener->spec.address, &a, &length)) {
    return "malformed IP address: " + listener->spec.address;
  }
  for (size_t i = 0; i < workers_.size(); i++) {
    // HotRestartingChild::duplicateParentListenSocket
    if (auto it = inherited_.find(socketName(listener->spec.address, i)); it != inherited_.end()) {
      listener->fds.push_back(it->second);
      inherited_.erase(it);
      continue;
    }
    const int fd = socket(a.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    const int one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
    if (::bind(fd, reinterpret_cast<sockaddr*>(&a), length) != 0 || ::listen(fd, 4096) != 0) {
      const std::string why = strerror(errno);
      close(fd);
      for (const int other : listener->fds) {
        close(other);
      }
      return "cannot bind '" + listener->spec.address + "': " + why;
    }
    // A port that the kernel chose for the first is the others' too.
    getsockname(fd, reinterpret_cast<sockaddr*>(&a), &length);
    listener->fds.push_back(fd);
  }
  listener->bound = addressString(a);
  return "";
}

// source/server/drain_manager_impl.cc: DrainManagerImpl::startDrainSequence
void ListenerManager::afterDrainTime(std::function<void()> then) {
  timers_.push_back(std::make_unique<Timer>(dispatcher_, std::move(then)));
  timers_.back()->enable(drain_time_);
}

// ListenerManagerImpl::addOrUpdateListener, endListenerUpdate. Filters' factories are made first, on
// this thread, with nothing taken back if a later listener is refused.
std::string ListenerManager::update(const Config& config) {
  std::map<std::string, std::shared_ptr<Listener>> all;
  for (const ListenerSpec& spec : config.listeners) {
    auto old = listeners_.find(spec.name);
    if (old != listeners_.end() && old->second->spec.text == spec.text) {
      all[spec.name] = old->second;
      continue;
    }
    auto l = std::make_shared<Listener>();
    l->spec = spec;
    auto chain = std::make_shared<FilterChain>();
    chain->buffer_limit = spec.buffer_limit;
    for (const FilterSpec& f : spec.filters) {
      chain->factories.push_back(f.factory());
    }
    l->chain = chain;
    std::string address = spec.address;
    std::replace(address.begin(), address.end(), ':', '_');
    auto& stats = stats_[address];
    if (stats == nullptr) {
      stats = std::make_shared<ListenerStats>();
    }
    l->stats = stats;
    const bool in_place = old != listeners_.end() && old->second->spec.address == spec.address;
    l->tag = in_place ? old->second->tag : next_tag_++;
    if (in_place) {
      l->fds = old->second->fds;
      l->bound = old->second->bound;
    } else if (const std::string wrong = bind(l.get()); !wrong.empty()) {
      return "error adding listener '" + spec.name + "': " + wrong;
    }
    all[spec.name] = l;
  }
  for (const auto& [name, fd] : inherited_) { // which a child would not have asked for
    close(fd);
  }
  inherited_.clear();
  std::map<std::string, std::shared_ptr<Listener>> before;
  before.swap(listeners_);
  listeners_ = all;
  for (const auto& [name, l] : all) {
    auto old = before.find(name);
    if (old != before.end() && old->second == l) {
      continue;
    }
    for (size_t i = 0; i < workers_.size(); i++) {
      Worker* w = workers_[i].get();
      w->dispatcher.post([w, tag = l->tag, fd = l->fds[i], chain = l->chain, stats = l->stats] {
        auto it = w->listeners.find(tag);
        if (it != w->listeners.end()) {
          it->second->updateChain(chain); // ActiveTcpListener::updateListenerConfig
        } else {
          w->listeners[tag] = std::make_unique<ActiveTcpListener>(w->dispatcher, fd, chain, stats);
        }
      });
    }
  }
  for (const auto& [name, old] : before) {
    auto now = all.find(name);
    if (now != all.end() && now->second == old) {
      continue;
    }
    if (now != all.end() && now->second->tag == old->tag) {
      // ListenerManagerImpl::inPlaceFilterChainUpdate, drainFilterChains: connections of the old
      // chain go on until the drain time is over.
      filter_chains_draining_++;
      afterDrainTime([this, old = old] {
        filter_chains_draining_--;
        for (auto& w : workers_) {
          w->dispatcher.post([w = w.get(), tag = old->tag, chain = old->chain] {
            auto it = w->listeners.find(tag);
            if (it != w->listeners.end()) {
              it->second->removeFilterChain(chain.get());
            }
          });
        }
      });
      continue;
    }
    // ListenerManagerImpl::drainListener: no new connections from now on.
    for (auto& w : workers_) {
      w->dispatcher.post([w = w.get(), tag = old->tag] { w->listeners[tag]->stop(); });
    }
    afterDrainTime([this, tag = old->tag] {
      for (auto& w : workers_) {
        w->dispatcher.post([w = w.get(), tag] { w->listeners.erase(tag); });
      }
    });
  }
  return "";
}
