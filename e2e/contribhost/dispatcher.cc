#include "dispatcher.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

FileEvent::FileEvent(Dispatcher& dispatcher, int fd, bool edge, uint32_t events, Callback cb)
    : dispatcher_(dispatcher), fd_(fd), edge_(edge), enabled_(events), cb_(std::move(cb)),
      polled_task_([this] { run(std::exchange(polled_, 0)); }), activation_task_([this] { run(0); }) {
  control(EPOLL_CTL_ADD);
}

FileEvent::~FileEvent() {
  dispatcher_.cancel(&polled_task_);
  dispatcher_.cancel(&activation_task_);
  control(EPOLL_CTL_DEL);
}

void FileEvent::control(int op) {
  epoll_event e = {};
  e.events = (edge_ ? EPOLLET : 0u) | (enabled_ & Ready::read ? EPOLLIN : 0u) |
             (enabled_ & Ready::write ? EPOLLOUT : 0u) | (enabled_ & Ready::closed ? EPOLLRDHUP : 0u);
  e.data.ptr = this;
  epoll_ctl(dispatcher_.epoll_, op, fd_, &e);
}

// FileEventImpl::activate
void FileEvent::activate(uint32_t events) {
  if (injected_ == 0) {
    dispatcher_.scheduleNext(&activation_task_);
  }
  injected_ |= events;
}

// FileEventImpl::setEnabled, updateEvents: registering once more makes the kernel tell again what
// is ready, so what was injected is dropped.
void FileEvent::setEnabled(uint32_t events) {
  injected_ = polled_ = 0;
  dispatcher_.cancel(&activation_task_);
  dispatcher_.cancel(&polled_task_);
  control(EPOLL_CTL_DEL);
  enabled_ = events;
  control(EPOLL_CTL_ADD);
}

// libevent's epoll.c, epoll_dispatch, and evmap.c, evmap_io_active_
void FileEvent::onPolled(uint32_t what) {
  uint32_t events = 0;
  if ((what & EPOLLERR) || ((what & EPOLLHUP) && !(what & EPOLLRDHUP))) {
    events = Ready::read | Ready::write;
  } else {
    events = (what & EPOLLIN ? Ready::read : 0u) | (what & EPOLLOUT ? Ready::write : 0u) |
             (what & EPOLLRDHUP ? Ready::closed : 0u);
  }
  events &= enabled_;
  if (events != 0) {
    polled_ |= events;
    dispatcher_.scheduleCurrent(&polled_task_);
  }
}

// FileEventImpl::mergeInjectedEventsAndRunCb
void FileEvent::run(uint32_t events) {
  if (injected_ != 0) {
    events |= std::exchange(injected_, 0);
    dispatcher_.cancel(&activation_task_);
  }
  if (events != 0) {
    const Callback cb = cb_; // it may destroy this
    cb(events);
  }
}

void Timer::enable(std::chrono::milliseconds in) {
  disable();
  at_ = dispatcher_.timers_.emplace(std::chrono::steady_clock::now() + in, this);
  enabled_ = true;
}

void Timer::disable() {
  if (std::exchange(enabled_, false)) {
    dispatcher_.timers_.erase(at_);
  }
}

Dispatcher::Dispatcher()
    : epoll_(epoll_create1(EPOLL_CLOEXEC)), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      post_task_([this] { runPostCallbacks(); }), delete_task_([this] { clearDeferredDeleteList(); }) {
  epoll_event e = {};
  e.events = EPOLLIN;
  epoll_ctl(epoll_, EPOLL_CTL_ADD, wake_, &e);
}

Dispatcher::~Dispatcher() {
  close(wake_);
  close(epoll_);
}

bool Dispatcher::isThreadSafe() const {
  return run_tid_ == std::thread::id() || run_tid_ == std::this_thread::get_id();
}

void Dispatcher::wake() {
  const uint64_t one = 1;
  ssize_t ignored = write(wake_, &one, sizeof one);
  static_cast<void>(ignored);
}

// source/common/event/schedulable_cb_impl.cc: scheduleCallbackCurrentIteration. libevent's
// event_active puts it behind what is active, also from another thread.
void Dispatcher::scheduleCurrent(Task* task) {
  {
    std::lock_guard<std::mutex> lock(active_lock_);
    if (std::find(active_.begin(), active_.end(), task) != active_.end()) {
      return;
    }
    active_.push_back(task);
  }
  if (run_tid_ != std::this_thread::get_id()) {
    wake();
  }
}

// source/common/event/schedulable_cb_impl.cc: scheduleCallbackNextIteration, a timer of no time:
// timers become active behind descriptors.
void Dispatcher::scheduleNext(Task* task) {
  if (std::find(next_.begin(), next_.end(), task) == next_.end()) {
    next_.push_back(task);
  }
}

// libevent's event_del takes an event also out of what is active.
void Dispatcher::cancel(Task* task) {
  next_.erase(std::remove(next_.begin(), next_.end(), task), next_.end());
  std::lock_guard<std::mutex> lock(active_lock_);
  active_.erase(std::remove(active_.begin(), active_.end(), task), active_.end());
}

// DispatcherImpl::post
void Dispatcher::post(std::function<void()> callback) {
  bool do_post;
  {
    std::lock_guard<std::mutex> lock(post_lock_);
    do_post = post_callbacks_.empty();
    post_callbacks_.push_back(std::move(callback));
  }
  if (do_post) {
    scheduleCurrent(&post_task_);
  }
}

// DispatcherImpl::runPostCallbacks: what was to be deleted goes first, and what callbacks post
// comes in a round of its own.
void Dispatcher::runPostCallbacks() {
  clearDeferredDeleteList();
  std::list<std::function<void()>> callbacks;
  {
    std::lock_guard<std::mutex> lock(post_lock_);
    callbacks.swap(post_callbacks_);
  }
  while (!callbacks.empty()) {
    callbacks.front()();
    callbacks.pop_front();
  }
}

// DispatcherImpl::deferredDelete
void Dispatcher::deferredDelete(std::unique_ptr<DeferredDeletable> object) {
  to_delete_.push_back(std::move(object));
  if (to_delete_.size() == 1) {
    scheduleCurrent(&delete_task_);
  }
}

// DispatcherImpl::clearDeferredDeleteList: what a destructor adds waits for the next call.
void Dispatcher::clearDeferredDeleteList() {
  if (deferred_deleting_ || to_delete_.empty()) {
    return;
  }
  deferred_deleting_ = true;
  std::vector<std::unique_ptr<DeferredDeletable>> objects;
  objects.swap(to_delete_);
  for (auto& o : objects) {
    o.reset();
  }
  deferred_deleting_ = false;
}

// DispatcherImpl::run over libevent's event_base_loop
void Dispatcher::run() {
  run_tid_ = std::this_thread::get_id();
  runPostCallbacks();
  std::vector<epoll_event> ready(256);
  while (!exit_) {
    int timeout = -1;
    {
      std::lock_guard<std::mutex> lock(active_lock_);
      if (!active_.empty() || !next_.empty()) {
        timeout = 0;
      }
    }
    if (timeout != 0 && !timers_.empty()) {
      const auto left = timers_.begin()->first - std::chrono::steady_clock::now();
      timeout = std::max<int>(0, std::chrono::ceil<std::chrono::milliseconds>(left).count());
    }
    const int n = epoll_wait(epoll_, ready.data(), static_cast<int>(ready.size()), timeout);
    if (n < 0 && errno != EINTR) {
      abort();
    }
    for (int i = 0; i < n; i++) {
      if (ready[i].data.ptr == nullptr) {
        uint64_t count;
        ssize_t ignored = read(wake_, &count, sizeof count);
        static_cast<void>(ignored);
      } else {
        static_cast<FileEvent*>(ready[i].data.ptr)->onPolled(ready[i].events);
      }
    }
    for (Task* t : std::exchange(next_, {})) {
      scheduleCurrent(t);
    }
    while (!timers_.empty() && timers_.begin()->first <= std::chrono::steady_clock::now()) {
      Timer* t = timers_.begin()->second;
      t->disable();
      t->cb_();
    }
    while (true) {
      Task* t;
      {
        std::lock_guard<std::mutex> lock(active_lock_);
        if (active_.empty()) {
          break;
        }
        t = active_.front();
        active_.pop_front();
      }
      const std::function<void()> run = t->run; // the task may be destroyed by what it does
      run();
    }
  }
}

// DispatcherImpl::exit: the turn is ended first, as event_base_loopexit does.
void Dispatcher::exit() {
  post([this] { exit_ = true; });
}
