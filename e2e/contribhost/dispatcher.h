// An event loop that orders what it does as Envoy's over libevent does.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

class Dispatcher;

// envoy/event/file_event.h: FileReadyType
namespace Ready {
constexpr uint32_t read = 1, write = 2, closed = 4;
} // namespace Ready

// What a turn of the loop has to do. It is in at most one queue.
class Task {
public:
  explicit Task(std::function<void()> run) : run(std::move(run)) {}
  const std::function<void()> run;
};

// source/common/event/file_event_impl.cc: FileEventImpl
class FileEvent {
public:
  using Callback = std::function<void(uint32_t events)>;
  // Listeners are level triggered, connections edge triggered.
  FileEvent(Dispatcher& dispatcher, int fd, bool edge, uint32_t events, Callback cb);
  ~FileEvent();
  // Has the callback called in the next turn, as if the descriptor were ready.
  void activate(uint32_t events);
  void setEnabled(uint32_t events);

private:
  friend class Dispatcher;
  void onPolled(uint32_t events);
  void run(uint32_t events);
  void control(int op);

  Dispatcher& dispatcher_;
  const int fd_;
  const bool edge_;
  uint32_t enabled_;
  uint32_t polled_ = 0, injected_ = 0;
  const Callback cb_;
  Task polled_task_, activation_task_;
};

// What is destroyed at the end of a turn, by Dispatcher::deferredDelete.
class DeferredDeletable {
public:
  virtual ~DeferredDeletable() = default;
};

class Timer {
public:
  Timer(Dispatcher& dispatcher, std::function<void()> cb) : dispatcher_(dispatcher), cb_(std::move(cb)) {}
  ~Timer() { disable(); }
  void enable(std::chrono::milliseconds in);
  void disable();

private:
  friend class Dispatcher;
  Dispatcher& dispatcher_;
  const std::function<void()> cb_;
  std::multimap<std::chrono::steady_clock::time_point, Timer*>::iterator at_;
  bool enabled_ = false;
};

// source/common/event/dispatcher_impl.cc: DispatcherImpl
class Dispatcher {
public:
  Dispatcher();
  ~Dispatcher();
  // From any thread. Runs in this turn of the loop if it is called within one, behind what is
  // ready already, in the order of the calls.
  void post(std::function<void()> callback);
  void deferredDelete(std::unique_ptr<DeferredDeletable> object);
  void clearDeferredDeleteList();
  // Whether the caller is the thread of the loop, or the loop does not run yet.
  bool isThreadSafe() const;
  void run();
  void exit();

private:
  friend class FileEvent;
  friend class Timer;
  void scheduleCurrent(Task* task);
  void scheduleNext(Task* task);
  void cancel(Task* task);
  void runPostCallbacks();
  void wake();

  int epoll_, wake_;
  std::thread::id run_tid_;
  bool exit_ = false;

  std::mutex active_lock_;
  std::deque<Task*> active_;    // of this turn
  std::deque<Task*> next_;      // of the next one
  std::multimap<std::chrono::steady_clock::time_point, Timer*> timers_;

  std::mutex post_lock_;
  std::list<std::function<void()>> post_callbacks_;
  Task post_task_, delete_task_;

  std::vector<std::unique_ptr<DeferredDeletable>> to_delete_;
  bool deferred_deleting_ = false;
};
