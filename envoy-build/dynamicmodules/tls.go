package dynamicmodules

/*
#include "hooks.h"

static bool mt_tls(mt_filter* f) { return MT_CALL(network_filter_is_ssl) && MT_CALL(network_filter_is_ssl)(f->envoy); }
static bool mt_server_name(mt_filter* f, mt_buf* out) {
  return MT_CALL(network_filter_get_requested_server_name) && MT_CALL(network_filter_get_requested_server_name)(f->envoy, out);
}
static bool mt_subject(mt_filter* f, mt_buf* out) {
  return MT_CALL(network_filter_get_ssl_subject) && MT_CALL(network_filter_get_ssl_subject)(f->envoy, out);
}
static size_t mt_sans_size(mt_filter* f, bool uri) {
  if (uri) return MT_CALL(network_filter_get_ssl_uri_sans_size) ? MT_CALL(network_filter_get_ssl_uri_sans_size)(f->envoy) : 0;
  return MT_CALL(network_filter_get_ssl_dns_sans_size) ? MT_CALL(network_filter_get_ssl_dns_sans_size)(f->envoy) : 0;
}
static bool mt_sans(mt_filter* f, bool uri, mt_buf* out) {
  return uri ? MT_CALL(network_filter_get_ssl_uri_sans)(f->envoy, out) : MT_CALL(network_filter_get_ssl_dns_sans)(f->envoy, out);
}
static bool mt_mutual(mt_filter* f) {
  enum { CONNECTION_MTLS = 29 }; // the attribute
  bool v = false;
  return MT_CALL(network_filter_get_attribute_bool) && MT_CALL(network_filter_get_attribute_bool)(f->envoy, CONNECTION_MTLS, &v) && v;
}
*/
import "C"

import "github.com/meltemi-mesh/meltemi/filter/host"

// tls asks Envoy for what it knows of a client's TLS, nil if there is none. It returns
// copies: what Envoy tells may go with its next event.
func tls(f *filter) *host.TLS {
	if !bool(C.mt_tls(f.c())) {
		return nil
	}
	t := &host.TLS{
		URISANs: sans(f, true), DNSSANs: sans(f, false),
		Fingerprint: f.attribute(peerDigest), Version: f.attribute(tlsVersion),
		OwnURISAN: f.attribute(localURISAN), OwnDNSSAN: f.attribute(localDNSSAN), OwnSubject: f.attribute(localSubject),
	}
	var b C.mt_buf
	if bool(C.mt_server_name(f.c(), &b)) {
		t.ServerName = text(b)
	}
	if b = (C.mt_buf{}); bool(C.mt_subject(f.c(), &b)) {
		t.Subject = text(b)
	}
	// Before 1.39 Envoy tells only what is in a certificate.
	t.Mutual = len(t.URISANs) > 0 || len(t.DNSSANs) > 0 || t.Subject != "" || bool(C.mt_mutual(f.c()))
	return t
}

// sans are the alternative names in the client's certificate: URIs or DNS names.
func sans(f *filter, uri bool) []string {
	n := C.mt_sans_size(f.c(), C.bool(uri))
	if n == 0 {
		return nil
	}
	b := make([]C.mt_buf, n)
	if !bool(C.mt_sans(f.c(), C.bool(uri), &b[0])) {
		return nil
	}
	names := make([]string, n)
	for i := range b {
		names[i] = text(b[i])
	}
	return names
}

// text is a copy of what Envoy tells.
func text(b C.mt_buf) string { return C.GoStringN(b.ptr, C.int(b.length)) }
