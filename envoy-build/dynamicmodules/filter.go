package dynamicmodules

/*
#include "hooks.h"

static void mt_commit(void* s) { MT_CALL(network_filter_scheduler_commit)(s, MT_EVENT); }
static void* mt_scheduler(mt_filter* f) { return MT_CALL(network_filter_scheduler_new)(f->envoy); }
static void mt_scheduler_delete(void* s) { MT_CALL(network_filter_scheduler_delete)(s); }

static bool mt_token(mt_filter* f, mt_buf* out) {
  static const char ns[] = "meltemi", key[] = "token";
  return MT_CALL(network_get_dynamic_metadata_string)(f->envoy, (mt_buf){ns, sizeof ns - 1}, (mt_buf){key, sizeof key - 1}, out);
}
static bool mt_set_state(mt_filter* f, char* key, size_t key_n, char* p, size_t n) {
  return MT_CALL(network_set_filter_state_typed)(f->envoy, (mt_buf){key, key_n}, (mt_buf){p, n});
}
static bool mt_state(mt_filter* f, const char* key, size_t n, mt_buf* out) {
  return MT_CALL(network_get_filter_state_typed) && MT_CALL(network_get_filter_state_typed)(f->envoy, (mt_buf){key, n}, out);
}
static bool mt_attribute(mt_filter* f, int attribute, mt_buf* out) {
  return MT_CALL(network_filter_get_attribute_string) && MT_CALL(network_filter_get_attribute_string)(f->envoy, attribute, out);
}
static bool mt_upstream(mt_filter* f, mt_buf* out, uint32_t* port) {
  return MT_CALL(network_filter_get_upstream_host_address)(f->envoy, out, port);
}
static bool mt_has_upstream(mt_filter* f) { return MT_CALL(network_filter_has_upstream_host)(f->envoy); }
static uint64_t mt_flags(mt_filter* f) {
  enum { RESPONSE_FLAGS = 17 }; // the attribute
  uint64_t v = 0;
  if (MT_CALL(network_filter_get_attribute_int)) MT_CALL(network_filter_get_attribute_int)(f->envoy, RESPONSE_FLAGS, &v);
  return v;
}
*/
import "C"

import (
	"net"
	"strconv"
	"unsafe"

	"github.com/meltemi-mesh/meltemi/envoy-build/internal/waker"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// filter is one of Envoy's filters. It is C's memory. It implements waker.Filter,
// and, for a carrier, carrier.Filter.
type filter C.mt_filter

func (f *filter) c() *C.mt_filter { return (*C.mt_filter)(f) }

func (f *filter) on() *worker { return workers[f.worker].Load() }

// Closed reports whether Envoy takes nothing for f any more.
func (f *filter) Closed() bool { return bool(f.closed) }

// op records an operation without bytes.
func (f *filter) op(kind, arg uint32) { f.on().record(f, kind, arg, nil, 0) }

// Close implements carrier.Filter.
func (f *filter) Close() { f.op(C.MT_CLOSE, C.MT_NO_FLUSH) }

// Scheduler implements waker.Filter.
func (f *filter) Scheduler() waker.Scheduler { return scheduler{C.mt_scheduler(f.c())} }

// scheduler implements waker.Scheduler.
type scheduler struct{ p unsafe.Pointer }

func (s scheduler) Commit() { C.mt_commit(s.p) }
func (s scheduler) Delete() { C.mt_scheduler_delete(s.p) }

// Token implements carrier.Filter.
func (f *filter) Token() []byte {
	var b C.mt_buf
	if !bool(C.mt_token(f.c(), &b)) {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(b.ptr)), int(b.length))
}

// Generation implements carrier.Filter.
func (f *filter) Generation() uint32 { return uint32(f.config.id) }

// SetState implements carrier.Filter.
func (f *filter) SetState(key, value string) {
	C.mt_set_state(f.c(), (*C.char)(unsafe.Pointer(unsafe.StringData(key))), C.size_t(len(key)),
		(*C.char)(unsafe.Pointer(unsafe.StringData(value))), C.size_t(len(value)))
}

// State implements carrier.Filter. It returns a copy: what Envoy tells may go with the
// next such question.
func (f *filter) State(key string) string {
	var b C.mt_buf
	if !bool(C.mt_state(f.c(), (*C.char)(unsafe.Pointer(unsafe.StringData(key))), C.size_t(len(key)), &b)) {
		return ""
	}
	return text(b)
}

// Attributes of Envoy's that are names.
const (
	tlsVersion     = 31 // connection.tls_version
	localSubject   = 32 // connection.subject_local_certificate
	localDNSSAN    = 34 // connection.dns_san_local_certificate
	localURISAN    = 36 // connection.uri_san_local_certificate
	peerDigest     = 38 // connection.sha256_peer_certificate_digest
	upstreamOurs   = 48 // upstream.uri_san_local_certificate
	upstreamTheirs = 49 // upstream.uri_san_peer_certificate
)

// attribute is one of them, "" if there is none.
func (f *filter) attribute(which C.int) string {
	var b C.mt_buf
	if !bool(C.mt_attribute(f.c(), which, &b)) {
		return ""
	}
	return text(b)
}

// Principals implements carrier.Filter.
func (f *filter) Principals() (ours, theirs string) {
	return f.attribute(upstreamOurs), f.attribute(upstreamTheirs)
}

// Continue implements carrier.Filter.
func (f *filter) Continue(wanted string) {
	if wanted != "" {
		C.mt_want(f.c(), (*C.char)(unsafe.Pointer(unsafe.StringData(wanted))), C.size_t(len(wanted)))
	}
	f.op(C.MT_CONTINUE, 0)
}

// Send implements carrier.Filter.
func (f *filter) Send(b *host.Buffer) {
	w := f.on()
	p, n := w.take(b)
	w.record(f, C.MT_SEND_UP, C.MT_MORE, p, n)
}

// End implements carrier.Filter.
func (f *filter) End() { f.op(C.MT_SEND_UP, C.MT_END) }

// Connected implements carrier.Filter.
func (f *filter) Connected() { f.ready = true }

// Unblocked implements carrier.Filter.
func (f *filter) Unblocked() { f.blocked = false }

// Pause implements carrier.Filter.
func (f *filter) Pause() {
	f.paused = true
	f.op(C.MT_PAUSE, 0)
}

// Resume implements carrier.Filter.
func (f *filter) Resume() { f.paused = false }

// Upstream implements carrier.Filter.
func (f *filter) Upstream() string {
	var b C.mt_buf
	var port C.uint32_t
	if !bool(C.mt_upstream(f.c(), &b, &port)) {
		return ""
	}
	return joined(b, port)
}

func joined(b C.mt_buf, port C.uint32_t) string {
	if b.length == 0 {
		return ""
	}
	return net.JoinHostPort(C.GoStringN(b.ptr, C.int(b.length)), strconv.Itoa(int(port)))
}

// HasUpstream implements carrier.Filter.
func (f *filter) HasUpstream() bool { return bool(C.mt_has_upstream(f.c())) }

// Flags implements carrier.Filter.
func (f *filter) Flags() uint64 { return uint64(C.mt_flags(f.c())) }
