#include "connection.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include "log.h"

// ConnectionImpl::ConnectionImpl
Connection::Connection(Dispatcher& dispatcher, int fd, bool connected, std::string local,
                       std::string remote)
    : dispatcher_(dispatcher), fd_(fd), local_(std::move(local)), remote_(std::move(remote)),
      connecting_(!connected),
      event_(new FileEvent(dispatcher, fd, true, Ready::read | Ready::write,
                           [this](uint32_t events) { onFileEvent(events); })) {
  // source/common/listener_manager/active_stream_listener_base.cc: ActiveTcpConnection's
  // constructor; of those dialled TcpConnPool's.
  const int one = 1;
  setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

Connection::~Connection() { close(CloseType::NoFlush); }

// FilterManagerImpl::addFilter: the filter is told of the connection, and hears its events from
// then on, before onNewConnection.
void Connection::addFilter(std::shared_ptr<NetworkFilter> filter) {
  filter->initialize(*this);
  filters_.push_back({std::move(filter)});
}

// FilterManagerImpl::initializeReadFilters
bool Connection::initializeReadFilters() {
  for (Active& f : filters_) {
    f.initialized = true;
    if (f.filter->onNewConnection() == FilterStatus::StopIteration || state() != State::Open) {
      break;
    }
  }
  return !filters_.empty();
}

// FilterManagerImpl::onWrite: filters in reverse
FilterStatus Connection::filtersOnWrite(Buffer& data, bool end_stream) {
  if (state() != State::Open) {
    return FilterStatus::StopIteration;
  }
  for (auto f = filters_.rbegin(); f != filters_.rend(); ++f) {
    if (f->filter->onWrite(data, end_stream) == FilterStatus::StopIteration || state() != State::Open) {
      return FilterStatus::StopIteration;
    }
  }
  return FilterStatus::Continue;
}

// ConnectionImpl::write(data, end_stream, through_filter_chain): bytes reach the socket in the next
// turn of the loop, with all that was written until then.
void Connection::write(Buffer& data, bool end_stream) {
  if (end_stream && !enable_half_close_) {
    logf(Level::warning, "connection",
         "end_stream without half close: a build with assertions ends here, others go on");
  }
  if (write_end_stream_) {
    return;
  }
  if (filtersOnWrite(data, end_stream) == FilterStatus::StopIteration) {
    return;
  }
  write_end_stream_ = end_stream;
  if (data.length() > 0 || end_stream) {
    write_buffer_.move(data);
    if (!connecting_) {
      event_->activate(Ready::write);
    }
  }
}

// ConnectionImpl::close, closeThroughFilterManager: no filter here holds a close up.
void Connection::close(CloseType type) {
  if (fd_ < 0) {
    return;
  }
  if (type == CloseType::AbortReset) {
    closeSocket(ConnectionEvent::LocalClose, true);
    return;
  }
  closeInternal(type);
}

// ConnectionImpl::closeInternal, without a delayed_close_timeout: FlushWriteAndDelay is FlushWrite.
void Connection::closeInternal(CloseType type) {
  if (write_buffer_.length() == 0 || type == CloseType::NoFlush || type == CloseType::Abort) {
    // What the kernel takes at once goes out.
    if (type != CloseType::Abort) {
      while (write_buffer_.length() > 0 && write_buffer_.writeTo(fd_) > 0) {
      }
    }
    closeSocket(ConnectionEvent::LocalClose);
    return;
  }
  if (closing_) {
    return;
  }
  closing_ = true;
  event_->setEnabled(Ready::write | (enable_half_close_ ? 0 : Ready::closed));
}

// ConnectionImpl::closeSocket: first the descriptor, then the event. What is not written is lost.
void Connection::closeSocket(ConnectionEvent event, bool reset) {
  if (fd_ < 0) {
    return;
  }
  write_buffer_.drain(write_buffer_.length());
  event_.reset();
  if (reset) {
    const linger l = {1, 0};
    setsockopt(fd_, SOL_SOCKET, SO_LINGER, &l, sizeof l);
  }
  ::close(fd_);
  fd_ = -1;
  raiseEvent(event);
}

// ConnectionImplBase::raiseConnectionEvent, in the order in which callbacks were added
void Connection::raiseEvent(ConnectionEvent event) {
  for (size_t i = 0; i < callbacks_.size(); i++) {
    const bool close = event == ConnectionEvent::LocalClose || event == ConnectionEvent::RemoteClose;
    if (!close && state() != State::Open) {
      return;
    }
    callbacks_[i]->onEvent(event);
  }
  if (event == ConnectionEvent::Connected && fd_ >= 0) {
    onWriteReady();
  }
}

// ConnectionImpl::readDisable
void Connection::readDisable(bool disable) {
  read_disable_count_ += disable ? 1 : -1;
  if (state() != State::Open) {
    return;
  }
  if (disable && read_disable_count_ == 1) {
    event_->setEnabled(Ready::write | (detect_early_close_ && !enable_half_close_ ? Ready::closed : 0));
  } else if (read_disable_count_ == 0) {
    event_->setEnabled(Ready::read | Ready::write);
    if (transport_wants_read_) {
      event_->activate(Ready::read);
    }
  }
}

// ConnectionImpl::onFileEvent: writes before reads
void Connection::onFileEvent(uint32_t events) {
  if (events & Ready::closed) {
    closeSocket(ConnectionEvent::RemoteClose);
    return;
  }
  if (events & Ready::write) {
    onWriteReady();
  }
  if (fd_ >= 0 && (events & Ready::read)) {
    onReadReady();
  }
}

// ConnectionImpl::onRead, FilterManagerImpl::onContinueReading
void Connection::onRead() {
  if (closing_ || read_disable_count_ != 0) {
    return;
  }
  if (read_buffer_.length() == 0 && !read_end_stream_) {
    return;
  }
  if (read_end_stream_) {
    if (read_end_stream_raised_) {
      return;
    }
    read_end_stream_raised_ = true;
  }
  for (size_t i = 0; i < filters_.size(); i++) {
    Active& f = filters_[i];
    if (!f.initialized) {
      f.initialized = true;
      if (f.filter->onNewConnection() == FilterStatus::StopIteration || state() != State::Open) {
        return;
      }
    }
    if (read_buffer_.length() > 0 || read_end_stream_) {
      if (f.filter->onData(read_buffer_, read_end_stream_) == FilterStatus::StopIteration ||
          state() != State::Open) {
        return;
      }
    }
  }
}

// ConnectionImpl::onReadReady with RawBufferSocket::doRead
void Connection::onReadReady() {
  if (read_disable_count_ != 0) {
    return;
  }
  transport_wants_read_ = false;
  size_t bytes = 0;
  bool end_stream = false, failed = false, reset = false;
  while (true) {
    const ssize_t n = read_buffer_.readFrom(fd_);
    if (n == 0) {
      end_stream = true;
      break;
    }
    if (n < 0) {
      failed = errno != EAGAIN;
      reset = errno == ECONNRESET;
      break;
    }
    bytes += static_cast<size_t>(n);
    // ConnectionImpl::shouldDrainReadBuffer, setTransportSocketIsReadable: a peer that sends
    // without an end gives others their turn.
    if (buffer_limit_ > 0 && read_buffer_.length() >= buffer_limit_) {
      transport_wants_read_ = true;
      event_->activate(Ready::read);
      break;
    }
  }
  if (reset) {
    // What came before a reset is still read.
    if (bytes != 0) {
      onRead();
    }
    closeSocket(ConnectionEvent::RemoteClose, true);
    return;
  }
  bool close = failed;
  // Without half close a FIN is a close, and a filter never sees end_stream: what it has to answer
  // is lost.
  if (!enable_half_close_ && end_stream) {
    end_stream = false;
    close = true;
  }
  read_end_stream_ |= end_stream;
  if (bytes != 0 || end_stream) {
    onRead();
  }
  if (close || bothSidesHalfClosed()) {
    closeSocket(ConnectionEvent::RemoteClose);
  }
}

// ConnectionImpl::onWriteReady with RawBufferSocket::doWrite
void Connection::onWriteReady() {
  if (connecting_) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) {
      closeSocket(ConnectionEvent::RemoteClose);
      return;
    }
    sockaddr_storage peer;
    socklen_t length = sizeof peer;
    if (getpeername(fd_, reinterpret_cast<sockaddr*>(&peer), &length) != 0) {
      return; // not yet
    }
    connecting_ = false;
    raiseEvent(ConnectionEvent::Connected);
    return;
  }
  while (true) {
    if (write_buffer_.length() == 0) {
      if (write_end_stream_ && !shutdown_) {
        ::shutdown(fd_, SHUT_WR);
        shutdown_ = true;
      }
      break;
    }
    if (write_buffer_.writeTo(fd_) < 0) {
      if (errno == EAGAIN) {
        break;
      }
      closeSocket(ConnectionEvent::RemoteClose, errno == ECONNRESET);
      return;
    }
  }
  if (closing_ && write_buffer_.length() == 0) {
    closeSocket(ConnectionEvent::LocalClose);
  } else if (bothSidesHalfClosed()) {
    closeSocket(ConnectionEvent::LocalClose);
  }
}
