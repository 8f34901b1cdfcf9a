// Bytes in slices, as Envoy's buffers hold them.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <deque>
#include <memory>
#include <vector>

// source/common/buffer/buffer_impl.h: OwnedImpl. Slices are of 16 KiB, so that what a library
// gets by one event comes in several pieces if it is long. Under the address sanitizer nobody
// may look behind the end of a slice.
class Buffer {
public:
  struct RawSlice {
    const void* mem;
    size_t len;
  };

  ~Buffer();
  size_t length() const { return length_; }
  void add(const void* data, size_t len);
  // Takes everything out of another buffer, without a copy.
  void move(Buffer& other);
  void drain(size_t len);
  std::vector<RawSlice> rawSlices() const;
  // One readv into up to eight slices; as read(2).
  ssize_t readFrom(int fd);
  // One writev of up to sixteen slices; as write(2). What was written is drained.
  ssize_t writeTo(int fd);

private:
  struct Slice {
    std::unique_ptr<char[]> mem;
    size_t size, start, end;
  };
  void append(std::unique_ptr<char[]> mem, size_t size, size_t len);

  std::deque<Slice> slices_;
  size_t length_ = 0;
};
