#include "buffer.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#define POISON(p, n) ASAN_POISON_MEMORY_REGION(p, n)
#define UNPOISON(p, n) ASAN_UNPOISON_MEMORY_REGION(p, n)
#else
#define POISON(p, n) static_cast<void>(0)
#define UNPOISON(p, n) static_cast<void>(0)
#endif

namespace {
// source/common/buffer/buffer_impl.h: Slice::default_slice_size_
constexpr size_t slice_size = 16384;
// source/common/buffer/buffer_impl.h: default_read_reservation_size_
constexpr int read_slices = 8;
// source/common/network/io_socket_handle_impl.cc: IoSocketHandleImpl::write, MaxSlices
constexpr int write_slices = 16;

// source/common/buffer/buffer_impl.h: OwnedImplReservationSlicesOwnerMultiple::free_list_. Each
// thread keeps what a short read did not need.
thread_local std::vector<std::unique_ptr<char[]>> spare;

std::unique_ptr<char[]> reserve() {
  if (spare.empty()) {
    return std::unique_ptr<char[]>(new char[slice_size]);
  }
  auto mem = std::move(spare.back());
  spare.pop_back();
  return mem;
}
} // namespace

Buffer::~Buffer() { drain(length_); }

void Buffer::append(std::unique_ptr<char[]> mem, size_t size, size_t len) {
  POISON(mem.get() + len, size - len);
  slices_.push_back({std::move(mem), size, 0, len});
  length_ += len;
}

void Buffer::add(const void* data, size_t len) {
  const char* p = static_cast<const char*>(data);
  while (len > 0) {
    const size_t n = std::min(len, slice_size);
    std::unique_ptr<char[]> mem(new char[n]);
    memcpy(mem.get(), p, n);
    append(std::move(mem), n, n);
    p += n;
    len -= n;
  }
}

void Buffer::move(Buffer& other) {
  for (Slice& s : other.slices_) {
    slices_.push_back(std::move(s));
  }
  length_ += other.length_;
  other.slices_.clear();
  other.length_ = 0;
}

void Buffer::drain(size_t len) {
  length_ -= len;
  while (len > 0) {
    Slice& s = slices_.front();
    const size_t n = std::min(len, s.end - s.start);
    s.start += n;
    len -= n;
    if (s.start == s.end) {
      UNPOISON(s.mem.get(), s.size);
      slices_.pop_front();
    }
  }
}

std::vector<Buffer::RawSlice> Buffer::rawSlices() const {
  std::vector<RawSlice> raw;
  raw.reserve(slices_.size());
  for (const Slice& s : slices_) {
    raw.push_back({s.mem.get() + s.start, s.end - s.start});
  }
  return raw;
}

ssize_t Buffer::readFrom(int fd) {
  std::unique_ptr<char[]> mem[read_slices];
  iovec iov[read_slices];
  for (int i = 0; i < read_slices; i++) {
    mem[i] = reserve();
    iov[i] = {mem[i].get(), slice_size};
  }
  const ssize_t n = readv(fd, iov, read_slices);
  const int error = errno;
  size_t left = n > 0 ? static_cast<size_t>(n) : 0;
  for (auto& m : mem) {
    const size_t len = std::min(left, slice_size);
    left -= len;
    if (len > 0) {
      append(std::move(m), slice_size, len);
    } else if (spare.size() < read_slices) {
      spare.push_back(std::move(m));
    }
  }
  errno = error;
  return n;
}

ssize_t Buffer::writeTo(int fd) {
  iovec iov[write_slices];
  msghdr message = {};
  message.msg_iov = iov;
  for (const Slice& s : slices_) {
    iov[message.msg_iovlen++] = {s.mem.get() + s.start, s.end - s.start};
    if (message.msg_iovlen == write_slices) {
      break;
    }
  }
  const ssize_t n = sendmsg(fd, &message, MSG_NOSIGNAL);
  if (n > 0) {
    drain(static_cast<size_t>(n));
  }
  return n;
}
