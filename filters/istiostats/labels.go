package istiostats

import (
	"cmp"
	"strconv"
	"strings"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/telemetry"
)

// What stands for what is not known.
const (
	unknown = "unknown"
	latest  = "latest" // of a revision
)

// workload is one end of a request, by the names of labels.
type workload struct {
	workload, namespace, service, revision, app, version, cluster, principal string
}

// service is what was called, by the names of labels.
type service struct{ host, name, namespace string }

// labels are those of a series. None is empty.
type labels struct {
	inbound             bool
	source, destination workload
	service             service
	policy              string // of the connection's security
	protocol            string // telemetry.Other: what is not told apart
	code                int
	flags               filter.Flags
}

// other is what is not told apart: of it the outcome is told alone.
func other(l labels) labels {
	n := nobody("")
	return labels{
		inbound: l.inbound, source: n, destination: n, service: service{unknown, unknown, unknown},
		policy: unknown, protocol: telemetry.Other, code: l.code,
	}
}

// nobody is a workload of which its principal is known at most.
func nobody(principal string) workload {
	return workloadOf(nil, principal)
}

// workloadOf is that of a workload, which may be nil. What a certificate says of its
// namespace counts more than what it says itself.
func workloadOf(w *filter.Workload, principal string) workload {
	field := func(name, otherwise string) string {
		return cmp.Or(telemetry.Label(w.Field(name)), otherwise)
	}
	return workload{
		workload: field("workload", unknown), namespace: cmp.Or(telemetry.Label(namespaceIn(principal)), field("namespace", unknown)),
		service: field("service", unknown), revision: field("revision", latest),
		app: field("app", unknown), version: field("version", unknown), cluster: field("cluster", unknown),
		principal: cmp.Or(telemetry.Label(principal), unknown),
	}
}

// namespaceIn is that of a SPIFFE identity of Istio's, "" if it has none. It keeps nothing
// of that, which may be long.
func namespaceIn(principal string) string {
	_, rest, _ := strings.Cut(principal, "/ns/")
	namespace, _, _ := strings.Cut(rest, "/")
	return strings.Clone(namespace)
}

// labels are those of messages of a client with a key.
func (p *part) labels(c *client, k key, protocol string) labels {
	l := labels{inbound: p.inbound, policy: unknown, protocol: telemetry.Label(protocol), code: k.code, flags: k.flags}
	server := k.server
	if server == nil {
		server = &host.Server{}
	}
	if p.inbound {
		peer, own := sans(c.tls)
		l.policy = "none"
		if mutual(c.tls) {
			l.policy = "mutual_tls"
		}
		l.source = workloadOf(cmp.Or(k.source, c.peer), peer)
		l.destination = workloadOf(cmp.Or(p.own, k.destination), "")
		l.destination.principal = cmp.Or(telemetry.Label(own), unknown)
		l.service = p.served(k, server, l.destination)
		return l
	}
	l.source = workloadOf(cmp.Or(p.own, k.source), "")
	l.source.principal = cmp.Or(telemetry.Label(server.OwnPrincipal), unknown)
	l.destination = workloadOf(cmp.Or(k.destination, endpoint(server.Workload)), server.Principal)
	l.service = p.called(k, server, l.destination)
	return l
}

// sans are the identities in the certificates of a client and of the proxy.
func sans(t *host.TLS) (peer, own string) {
	if t == nil {
		return "", ""
	}
	if len(t.URISANs) > 0 {
		peer = t.URISANs[0]
	}
	return peer, t.OwnURISAN
}

// mutual reports whether both sides of a client's connection have an identity. Where the
// host does not tell the own one the client's is enough: who has asked for it has one.
func mutual(t *host.TLS) bool { return t != nil && t.Mutual && len(t.URISANs) > 0 }

// called is the service that a request goes to, as its client's proxy knows it. For what
// has come to no cluster it is that which the listener is for, where its stat_prefix is
// the name of a cluster of Istio's, as in what the tool generates.
func (p *part) called(k key, s *host.Server, destination workload) service {
	if name := special(k); name != "" {
		return service{unknown, name, destination.namespace}
	}
	of := found(s.Services)
	if of.host == "" {
		of = named(cmp.Or(k.cluster, p.prefix))
	}
	return of.complete(unknown, destination.namespace)
}

// served is the service that a request has come to.
func (p *part) served(k key, s *host.Server, own workload) service {
	of := service{host: telemetry.Label(p.service)}
	if of.host == "" {
		of = found(s.Services)
	}
	if name := special(k); name != "" {
		of.name = name
	}
	of.namespace = own.namespace
	return of.complete(own.service, own.namespace)
}

// complete says what s leaves open.
func (s service) complete(name, namespace string) service {
	if s.name == "" {
		s.name, _, _ = strings.Cut(s.host, ".")
	}
	return service{cmp.Or(s.host, name), cmp.Or(s.name, name), cmp.Or(s.namespace, namespace)}
}

// special is the name of Istio's clusters for what belongs to no service, "" of others.
func special(k key) string {
	switch k.route {
	case "block_all":
		return "BlackHoleCluster"
	case "allow_any":
		return "PassthroughCluster"
	}
	switch k.cluster {
	case "BlackHoleCluster", "PassthroughCluster", "InboundPassthroughCluster", "InboundPassthroughClusterIpv4", "InboundPassthroughClusterIpv6":
		return k.cluster
	}
	return ""
}

// names are those of all labels, in their order.
var names = [...]string{
	"application_protocol", "connection_security_policy",
	"destination_app", "destination_canonical_revision", "destination_canonical_service", "destination_cluster", "destination_principal",
	"destination_service", "destination_service_name", "destination_service_namespace",
	"destination_version", "destination_workload", "destination_workload_namespace",
	"grpc_response_status", "reporter", "request_protocol", "response_code", "response_flags",
	"source_app", "source_canonical_revision", "source_canonical_service", "source_cluster", "source_principal",
	"source_version", "source_workload", "source_workload_namespace",
}

// values are those of all labels, in the order of names. Kiali knows the protocols http,
// grpc and tcp, and leaves out what says another.
func (l *labels) values() [len(names)]string {
	reporter := "source"
	if l.inbound {
		reporter = "destination"
	}
	s, d := &l.source, &l.destination
	return [...]string{
		l.protocol, l.policy,
		d.app, d.revision, d.service, d.cluster, d.principal,
		l.service.host, l.service.name, l.service.namespace,
		d.version, d.workload, d.namespace,
		"", reporter, "http", strconv.Itoa(l.code), l.flags.String(),
		s.app, s.revision, s.service, s.cluster, s.principal,
		s.version, s.workload, s.namespace,
	}
}
