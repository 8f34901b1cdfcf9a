#include "hooks.h"

#include <stdlib.h>
#include <string.h>

#include "_cgo_export.h"

// The version of the ABI for which this was written. Envoy only warns of another.
static const char abi_version[] = "v0.1.0";

// What a filter wants of the filters behind it.
enum { CONTINUE = 0, STOP = 1 };
// A connection's events; those of others mean nothing here.
enum { REMOTE_CLOSE = 0, LOCAL_CLOSE = 1 };

// How much memory a batch begins with and keeps, and the array of chunks keeps.
enum { FIRST_OPS = 64, KEEP_OPS = 4096, KEEP_CHUNKS = 1024 };

static __thread mt_worker self;

mt_worker* mt_self(void) { return &self; }

static void* must(void* p) {
  if (p == NULL) abort(); // as Envoy does without memory
  return p;
}

void mt_want(mt_filter* f, const char* host, size_t n) {
  f->wanted = must(malloc(n));
  memcpy(f->wanted, host, n);
  f->wanted_length = n;
}

void mt_batch_grow(mt_batch* b) {
  b->cap = b->cap ? 2 * b->cap : FIRST_OPS;
  b->ops = must(realloc(b->ops, b->cap * sizeof *b->ops));
}

// tcp_proxy reads a server as long as the "client" takes the answers, which is
// the dialing side of the carrier. To stop it, more bytes than that side's
// socket holds are written there while nobody reads it.
enum { FILL = 256 << 10, FILL_LIMIT = 16 << 10 };
static const char filler[FILL];

static void fill(mt_filter* f) {
  if (!MT_CALL(network_filter_set_buffer_limits)) return;
  MT_CALL(network_filter_set_buffer_limits)(f->envoy, FILL_LIMIT);
  MT_CALL(network_filter_inject_write_data)(f->envoy, (mt_buf){filler, FILL}, false);
}

// No buffer grows so large: with it as the limit none is above its watermarks.
enum { NO_LIMIT = INT32_MAX };

static bool more_unsent(mt_filter* f, uint32_t than) {
  MT_CALL(network_filter_set_buffer_limits)(f->envoy, NO_LIMIT); // takes back what the last one told
  MT_CALL(network_filter_set_buffer_limits)(f->envoy, than);
  return MT_CALL(network_filter_above_high_watermark)(f->envoy);
}

// Returns how many bytes wait to be sent to a client, or most if they are not
// fewer. Envoy tells only whether they are more than a limit; 0 sets none.
uint32_t mt_unsent(mt_filter* f, uint32_t most) {
  if (f->closed || !MT_CALL(network_filter_set_buffer_limits) || !MT_CALL(network_filter_above_high_watermark) ||
      !MT_CALL(network_filter_get_buffer_limit))
    return most;
  uint32_t limit = MT_CALL(network_filter_get_buffer_limit)(f->envoy);
  f->measured = true;
  uint32_t low = 0, high = most;
  if (most > 1 && more_unsent(f, most - 1)) low = high;
  while (high - low > 1) { // more than low, no more than high
    uint32_t middle = low + (high - low) / 2;
    if (more_unsent(f, middle)) low = middle;
    else high = middle;
  }
  MT_CALL(network_filter_set_buffer_limits)(f->envoy, limit);
  f->measured = false;
  return high;
}

static void carry_out(mt_op* op) {
  mt_filter* f = op->filter;
  if (f->closed) return;
  mt_buf data = {op->ptr, op->length};
  switch (op->kind) {
  case MT_SEND_UP:
    MT_CALL(network_filter_inject_read_data)(f->envoy, data, op->arg == MT_END);
    // tcp_proxy stops the reading of a carrier whose server does not take
    // bytes; nothing else tells.
    if (!f->closed && !f->blocked && f->ready && !MT_CALL(network_filter_read_enabled)(f->envoy)) {
      f->blocked = true;
      mtBlocked(f->worker, f->slot, true, false);
      self.ended = false;
    }
    break;
  case MT_SEND_DOWN:
    MT_CALL(network_filter_inject_write_data)(f->envoy, data, false);
    break;
  case MT_CLOSE:
    MT_CALL(network_filter_close)(f->envoy, (int)op->arg);
    break;
  case MT_CONTINUE:
    // tcp_proxy has a host chosen at once, if the cluster's load balancer is ours by
    // lb_choose_host.
    self.wanted = (mt_buf){f->wanted, f->wanted_length};
    MT_CALL(network_filter_continue_reading)(f->envoy);
    self.wanted = (mt_buf){NULL, 0};
    break;
  case MT_PAUSE:
    if (f->paused) fill(f);
    break;
  }
}

// Each hook is enter, one Go call, leave.
static bool enter(void) { return self.depth++ == 0; }

static void leave(uint32_t worker) {
  if (self.depth > 1) {
    self.depth--;
    return;
  }
  for (;;) {
    mt_batch* b = &self.batch[self.filling];
    if (b->n > 0) {
      self.filling ^= 1;
      for (uint32_t i = 0; i < b->n; i++) carry_out(&b->ops[i]);
      b->n = 0;
      if (b->cap > KEEP_OPS) {
        free(b->ops);
        b->ops = NULL;
        b->cap = 0;
      }
    } else if (!self.ended) {
      self.ended = true;
      mtEndEvent(worker);
    } else {
      break;
    }
  }
  self.depth = 0;
}

static size_t chunks_for(size_t n) {
  if (n > self.chunks_cap || self.chunks_cap > KEEP_CHUNKS) {
    self.chunks_cap = n < KEEP_CHUNKS ? KEEP_CHUNKS : n;
    self.chunks = must(realloc(self.chunks, self.chunks_cap * sizeof *self.chunks));
  }
  return n;
}

MT_HOOK const char* MT_ON(program_init)(void) {
  mt_loaded();
  return abi_version;
}

MT_HOOK const void* MT_ON(network_filter_config_new)(void* envoy, mt_buf name, mt_buf config) {
  mt_config* c = must(calloc(1, sizeof *c));
  if (!mtConfigNew(c, envoy, (char*)name.ptr, name.length, (char*)config.ptr, config.length)) {
    free(c);
    return NULL;
  }
  return c;
}

MT_HOOK void MT_ON(network_filter_config_destroy)(const void* config) {
  mtConfigDestroy(((mt_config*)config)->id);
  free((void*)config);
}

MT_HOOK void MT_ON(network_filter_config_scheduled)(const void* config, uint64_t event) {
  (void)event;
  mtConfigScheduled(((mt_config*)config)->id);
}

MT_HOOK const void* MT_ON(network_filter_new)(const void* config, void* envoy) {
  mt_filter* f = must(calloc(1, sizeof *f));
  f->envoy = envoy;
  f->config = config;
  f->slot = MT_NO_SLOT;
  f->worker = MT_CALL(network_filter_get_worker_index)(envoy);
  return f;
}

MT_HOOK int MT_ON(network_filter_new_connection)(void* envoy, const void* module) {
  mt_filter* f = (mt_filter*)module;
  if (f->config->role == MT_CLIENT) MT_CALL(network_filter_enable_half_close)(envoy, true);
  bool outer = enter();
  self.ended = false;
  bool taken = mtNewConnection(f, &self, outer);
  leave(f->worker);
  if (!taken) {
    MT_CALL(network_filter_close)(envoy, MT_NO_FLUSH);
    return STOP;
  }
  // A client is ours alone; a carrier waits here until it is claimed.
  return f->config->role == MT_CLIENT || f->tunnel ? CONTINUE : STOP;
}

MT_HOOK int MT_ON(network_filter_read)(void* envoy, const void* module, size_t length, bool end) {
  mt_filter* f = (mt_filter*)module;
  if (f->tunnel) return CONTINUE;
  if (f->slot == MT_NO_SLOT || f->closed) return STOP;
  bool outer = enter();
  self.ended = outer && f->config->role == MT_CLIENT; // mtRead ends its event itself
  size_t n = 0, consumed;
  if (f->config->role == MT_CLIENT) {
    n = chunks_for(MT_CALL(network_filter_get_read_buffer_chunks_size)(envoy));
    if (n > 0) MT_CALL(network_filter_get_read_buffer_chunks)(envoy, self.chunks);
    consumed = mtRead(f->worker, f->slot, self.chunks, n, length, end, outer);
  } else {
    consumed = mtMark(f->worker, f->slot, length, end, outer);
  }
  if (consumed > 0) MT_CALL(network_filter_drain_read_buffer)(envoy, consumed);
  leave(f->worker);
  return STOP;
}

MT_HOOK int MT_ON(network_filter_write)(void* envoy, const void* module, size_t length, bool end) {
  mt_filter* f = (mt_filter*)module;
  if (f->config->role == MT_CLIENT || f->tunnel) return CONTINUE;
  if (f->slot != MT_NO_SLOT && !f->closed) {
    bool outer = enter();
    self.ended = outer; // mtAnswer ends its event itself
    size_t n = chunks_for(MT_CALL(network_filter_get_write_buffer_chunks_size)(envoy));
    if (n > 0) MT_CALL(network_filter_get_write_buffer_chunks)(envoy, self.chunks);
    mtAnswer(f->worker, f->slot, self.chunks, n, length, end, outer);
    MT_CALL(network_filter_drain_write_buffer)(envoy, length);
    leave(f->worker);
  } else {
    MT_CALL(network_filter_drain_write_buffer)(envoy, length);
  }
  return STOP; // the dialing side gets nothing
}

MT_HOOK void MT_ON(network_filter_event)(void* envoy, const void* module, int event) {
  mt_filter* f = (mt_filter*)module;
  (void)envoy;
  if (event != REMOTE_CLOSE && event != LOCAL_CLOSE) return;
  f->closed = true;
  if (f->slot == MT_NO_SLOT) return;
  bool outer = enter();
  self.ended = false;
  mtClosed(f->worker, f->slot, event == REMOTE_CLOSE, true, outer);
  leave(f->worker);
}

MT_HOOK void MT_ON(network_filter_destroy)(const void* module) {
  mt_filter* f = (mt_filter*)module;
  f->closed = true;
  if (f->slot != MT_NO_SLOT) { // closed before our callbacks were registered
    bool outer = enter();
    self.ended = false;
    mtClosed(f->worker, f->slot, false, false, outer);
    leave(f->worker);
  }
  free(f->wanted);
  free(f);
}

MT_HOOK void MT_ON(network_filter_scheduled)(void* envoy, const void* module, uint64_t event) {
  mt_filter* f = (mt_filter*)module;
  (void)envoy;
  (void)event;
  bool outer = enter();
  self.ended = false;
  mtRun(f->worker, outer);
  leave(f->worker);
}

static void watermark(const void* module, bool above) {
  mt_filter* f = (mt_filter*)module;
  if (f->slot == MT_NO_SLOT || f->closed || f->measured) return;
  if (f->config->role != MT_CLIENT) {
    if (!above && f->paused) fill(f); // the socket holds more than was thought
    return;
  }
  bool outer = enter();
  self.ended = false;
  mtBlocked(f->worker, f->slot, above, outer);
  leave(f->worker);
}

MT_HOOK void MT_ON(network_filter_above_write_buffer_high_watermark)(void* envoy, const void* module) {
  (void)envoy;
  watermark(module, true);
}

MT_HOOK void MT_ON(network_filter_below_write_buffer_low_watermark)(void* envoy, const void* module) {
  (void)envoy;
  watermark(module, false);
}

MT_HOOK void MT_ON(network_filter_http_callout_done)(void* envoy, const void* module, uint64_t id, int result,
                                                     void* headers, size_t headers_size, void* body,
                                                     size_t body_size) {
  (void)envoy, (void)module, (void)id, (void)result;
  (void)headers, (void)headers_size, (void)body, (void)body_size;
}
