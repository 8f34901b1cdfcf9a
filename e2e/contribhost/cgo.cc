// What a library calls: contrib/golang/filters/network/source/cgo.cc. Any thread may: bytes are
// copied at once, and what is to be done is always posted to the connection's worker, also from
// that worker itself.
#include <stdlib.h>

#include "golang.h"
#include "upstream.h"

namespace {
// cgo.cc: copyGoString
std::string copyGoString(void* str) {
  if (str == nullptr) {
    return "";
  }
  auto* s = static_cast<GoString*>(str);
  return {s->p, static_cast<size_t>(s->n)};
}

// cgo.cc: ConnectionInfoType
template <class Conn> void info(Conn& conn, std::string* anchor, int type, void* ret) {
  switch (type) {
  case 0:
    *anchor = conn.localAddr();
    break;
  case 1:
    *anchor = conn.remoteAddr();
    break;
  default:
    abort(); // PANIC_DUE_TO_CORRUPT_ENUM
  }
  auto* s = static_cast<GoString*>(ret);
  s->p = anchor->data();
  s->n = static_cast<ptrdiff_t>(anchor->length());
}
} // namespace

CAPIStatus envoyGoFilterDownstreamClose(void* f, int close_type) {
  std::weak_ptr<Filter>& weak = static_cast<FilterWrapper*>(f)->filter_ptr;
  if (auto filter = weak.lock()) {
    filter->dispatcher()->post([weak, close_type] {
      if (auto filter = weak.lock()) {
        filter->close(static_cast<CloseType>(close_type));
      }
    });
    return CAPIOK;
  }
  return CAPIFilterIsGone;
}

CAPIStatus envoyGoFilterDownstreamWrite(void* f, void* buffer_ptr, int buffer_len, int end_stream) {
  std::weak_ptr<Filter>& weak = static_cast<FilterWrapper*>(f)->filter_ptr;
  if (auto filter = weak.lock()) {
    auto buffer = std::make_shared<Buffer>();
    buffer->add(buffer_ptr, static_cast<size_t>(buffer_len));
    filter->dispatcher()->post([weak, end_stream, buffer] {
      if (auto filter = weak.lock()) {
        filter->write(*buffer, end_stream);
      }
    });
    return CAPIOK;
  }
  return CAPIFilterIsGone;
}

void envoyGoFilterDownstreamFinalize(void* f, int) {
  auto* wrapper = static_cast<FilterWrapper*>(f);
  if (auto filter = wrapper->filter_ptr.lock()) {
    filter->dispatcher()->post([wrapper] { delete wrapper; });
  } else {
    delete wrapper;
  }
}

CAPIStatus envoyGoFilterDownstreamInfo(void* f, int type, void* ret) {
  auto* wrapper = static_cast<FilterWrapper*>(f);
  if (auto filter = wrapper->filter_ptr.lock()) {
    info(*filter, &wrapper->str_value, type, ret);
    return CAPIOK;
  }
  return CAPIFilterIsGone;
}

void* envoyGoFilterUpstreamConnect(void* library_id, void* addr, uint64_t conn_id) {
  auto conn = std::make_shared<UpstreamConn>(copyGoString(addr), dsoByID(copyGoString(library_id)), conn_id);
  auto* wrapper = new UpstreamConnWrapper(conn);
  conn->setWrapper(wrapper);
  conn->dispatcher()->post([conn] { conn->connect(); });
  return wrapper;
}

// Not posted.
CAPIStatus envoyGoFilterUpstreamConnEnableHalfClose(void* u, int enable_half_close) {
  static_cast<UpstreamConnWrapper*>(u)->conn_ptr->enableHalfClose(enable_half_close);
  return CAPIOK;
}

CAPIStatus envoyGoFilterUpstreamWrite(void* u, void* buffer_ptr, int buffer_len, int end_stream) {
  auto& conn = static_cast<UpstreamConnWrapper*>(u)->conn_ptr;
  auto buffer = std::make_shared<Buffer>();
  buffer->add(buffer_ptr, static_cast<size_t>(buffer_len));
  conn->dispatcher()->post([conn, end_stream, buffer] { conn->write(*buffer, end_stream); });
  return CAPIOK;
}

CAPIStatus envoyGoFilterUpstreamClose(void* u, int close_type) {
  auto& conn = static_cast<UpstreamConnWrapper*>(u)->conn_ptr;
  conn->dispatcher()->post([conn, close_type] { conn->close(static_cast<CloseType>(close_type)); });
  return CAPIOK;
}

void envoyGoFilterUpstreamFinalize(void* u, int) {
  auto* wrapper = static_cast<UpstreamConnWrapper*>(u);
  wrapper->conn_ptr->dispatcher()->post([wrapper] { delete wrapper; });
}

CAPIStatus envoyGoFilterUpstreamInfo(void* u, int type, void* ret) {
  auto* wrapper = static_cast<UpstreamConnWrapper*>(u);
  info(*wrapper->conn_ptr, &wrapper->str_value, type, ret);
  return CAPIOK;
}

CAPIStatus envoyGoFilterSetFilterState(void* f, void* key, void* value, int, int, int) {
  if (auto filter = static_cast<FilterWrapper*>(f)->filter_ptr.lock()) {
    return filter->setFilterState(copyGoString(key), copyGoString(value));
  }
  return CAPIFilterIsGone;
}

CAPIStatus envoyGoFilterGetFilterState(void* f, void* key, void* value) {
  if (auto filter = static_cast<FilterWrapper*>(f)->filter_ptr.lock()) {
    return filter->getFilterState(copyGoString(key), static_cast<GoString*>(value));
  }
  return CAPIFilterIsGone;
}
