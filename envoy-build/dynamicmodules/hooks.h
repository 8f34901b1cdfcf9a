// What the hooks (hooks.c) and the Go side share.
#pragma once
#include "abi.h"

#define MT_HOOK __attribute__((visibility("default")))
#define MT_ON(name) envoy_dynamic_module_on_##name

enum { MT_CLIENT = 1, MT_CARRIER = 2 };

#define MT_NO_SLOT UINT32_MAX

// Envoy's types of closing a connection.
enum { MT_FLUSH = 0, MT_NO_FLUSH = 1 };

// The kinds of metrics.
enum { MT_COUNTER, MT_GAUGE, MT_HISTOGRAM };

// The one event that is scheduled, on filters and on configurations.
enum { MT_EVENT = 0 };

// One configuration, as Envoy holds it.
typedef struct {
  uint32_t id; // of the Go side
  uint32_t role;
  size_t panics; // Envoy's id of the counter of panics
} mt_config;

// One filter, so one connection, as Envoy holds it.
typedef struct {
  void* envoy;
  const mt_config* config;
  uint32_t worker;
  uint32_t slot; // in the Go side's table of the worker
  bool closed;   // Envoy takes nothing for it any more
  bool ready;    // carrier: the server is connected
  bool blocked;  // carrier: the server does not take bytes
  bool paused;   // carrier: the server shall not be read
  bool tunnel;   // carrier: none, its bytes pass
  bool measured; // client: its watermarks move, and mean nothing
  char* wanted;  // carrier: the host that its cluster's load balancer shall choose, if that is ours
  size_t wanted_length;
} mt_filter;

// What the Go side wants done once it has returned.
enum { MT_SEND_UP, MT_SEND_DOWN, MT_CLOSE, MT_CONTINUE, MT_PAUSE };

// Whether an end of stream is behind what is sent to a server.
enum { MT_MORE = 0, MT_END = 1 };

typedef struct {
  mt_filter* filter;
  const char* ptr;
  size_t length;
  uint32_t kind;
  uint32_t arg; // MT_SEND_UP: MT_MORE or MT_END; MT_CLOSE: the type
} mt_op;

typedef struct {
  mt_op* ops;
  uint32_t n, cap;
} mt_batch;

// A worker thread's own. Hooks nest, as carrying out an operation can call
// them; only the outermost one carries out, so the Go side is never re-entered
// and a batch does not change while it is carried out.
typedef struct {
  mt_batch batch[2];
  uint32_t filling; // which batch the Go side appends to
  uint32_t depth;   // of nested hooks
  bool ended;       // the Go side has been told of the end of the event
  mt_buf* chunks;
  size_t chunks_cap;
  mt_buf wanted; // the host that a load balancer shall choose now; 0 bytes: any
} mt_worker;

mt_worker* mt_self(void);
void mt_want(mt_filter*, const char* host, size_t);

void mt_batch_grow(mt_batch*);
uint32_t mt_unsent(mt_filter*, uint32_t most);
void mt_loaded(void); // the shared object, and with it Go's runtime
