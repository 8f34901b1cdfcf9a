// Package ir is what the control plane knows of a service, in plain Go: whoever
// describes one (a file, an object of Kubernetes) is read into it, and what proxies
// need is made of it.
//
// Paths of faults are those of the fields here, in lowerCamelCase.
package ir

import "time"

// Object is an object of JSON. Its values are Object, []any, string, bool, nil,
// int64, uint64 and float64.
//
// What is Meltemi's own configuration has this form here, as in the files of
// those who write it: the filter's loader is the one to judge it.
type Object = map[string]any

// Service is a service to be governed.
type Service struct {
	// Host is its full name in Istio: of a Kubernetes service
	// name.namespace.svc.cluster.local, of a ServiceEntry the first host.
	Host string
	// Name is what the names of what is made are made of, at most 63 letters,
	// digits, dashes and dots. Default: the host without ".svc.cluster.local".
	Name string
	// Namespace of its workloads, and of those that call it unless they say
	// otherwise. Default: the one in the host.
	Namespace string

	// RootNamespace is Istio's. With it the loopback listener is one of it, for the
	// proxies of all namespaces, and there may be clients in all of them. Absent: each
	// namespace has one of its own.
	RootNamespace string

	// Addresses at which clients find it: cluster IPs, or the addresses of a
	// ServiceEntry, spelled as there. Required, unless Headless.
	//
	// A service without an address has no listener of its own: those of a port
	// share 0.0.0.0_PORT, with what is passed through. For it, and for one whose
	// addresses are ranges, they are the ranges to which clients connect, such as
	// 10.1.0.0/16 or 10.1.1.1/32.
	Addresses []string
	// Headless: clients connect to the endpoints themselves. The filter is put
	// into every outbound listener of the port, of whatever service, and a
	// connection goes where its client wanted it to go: there are no subsets.
	Headless bool
	// Ports of the service. At least one, unless there are Observed.
	Ports []Port
	// Observed are ports whose traffic is Istio's, with a filter of Envoy's own that counts
	// what passes by put in front.
	Observed []ObservedPort

	// LoadBalancer is how calls choose hosts, on the side of clients and gateways.
	// Absent: as the cluster's load balancer sends connections.
	LoadBalancer *LoadBalancer

	// Server are the workloads behind the service. Absent: nothing is done on
	// their side.
	Server *Server
	// Clients are the workloads that call it. Absent: all of the namespace;
	// empty: none.
	Clients []Workloads
	// Gateways that lead to it.
	Gateways []Gateway

	// Authorization says who may call what, to the servers' proxies.
	Authorization []Authorization

	// Telemetry is what is told of calls.
	Telemetry Telemetry

	// Outbound and Inbound are further fields of MetaProtocolProxy, for clients
	// and gateways, and for servers: request_timeout, upstream, limits, ….
	Outbound, Inbound Object

	// RDS is where clients and gateways ask for the routes of their ports. Absent: the
	// routes are in the filters' configurations.
	RDS *Destination

	// Delivery of the filters' configurations. Default: ECDS.
	Delivery Delivery
	// InitialFetchTimeout is how long a listener that is new to a proxy waits
	// for the filter's configuration before it goes on as plain TCP. At least 1ms;
	// default: 5s.
	InitialFetchTimeout time.Duration
	// ProxyMetadata is what the metadata of a proxy must have for it to get
	// anything at all. Default: DefaultProxyMetadata.
	ProxyMetadata map[string]string
	// ProxyVersion is a regular expression that the proxy's version of Istio must
	// match, too, to get what is for dynamic modules; NoProxies: none does. Default:
	// DefaultProxyVersion.
	ProxyVersion string
	// Golang is for the proxies that are older.
	Golang Golang
	// Module is the name of the shared object without lib and .so. Default:
	// meltemi.
	Module string
	// Socket is the loopback listener's. Default: @meltemi, which is its own in
	// every pod. It must be the same for all services of a proxy.
	Socket string
	// Admin is where the process tells about itself, routes and metrics: IP:PORT,
	// unix:/PATH, or none. Default: 127.0.0.1:15880, where the pod's agent finds the
	// metrics. It must be the same for all services of a proxy.
	Admin string
}

// Telemetry is what is told of calls.
type Telemetry struct {
	// NoIstioStats has calls not be counted as Istio's standard metrics, and leaves
	// Istio's own filter in the chains, which counts their connections as TCP.
	NoIstioStats bool
	// Metrics is where the process pushes its metrics: the carrier filter's field of
	// that name, {otlp: {grpc_service, …}}. It must be the same for all services of a
	// proxy.
	Metrics Object
	// Tracing and AccessLog are MetaProtocolProxy's tracing and access_log, on each side
	// that has none of its own in Outbound or Inbound.
	Tracing   Object
	AccessLog []any
}

// NoAdmin is the Admin of a process that tells nothing.
const NoAdmin = "none"

// NoProxies is the version of Istio that no proxy has.
const NoProxies = "none"

// Golang says how proxies are served that have Envoy's golang filter instead of dynamic
// modules. Their loopback listener is made of Envoy's own filters alone.
type Golang struct {
	// ProxyVersion is as that of Service. None may match both. Default:
	// DefaultGolangVersion.
	ProxyVersion string
	// LibraryPath is where the shared object is in the proxy's container. Default: the
	// module in /usr/local/lib/meltemi.
	LibraryPath string
	// Socket is the loopback listener's, an absolute path in a folder of which only the
	// proxy has a mount: nothing in the listener can ask who connects. Default: the
	// Service's, if that is a path, else /etc/istio/proxy/meltemi.sock.
	Socket string
	// NoConnect has the process not told which host each of its connections leads to, or
	// why to none, which else HTTP's CONNECT tells it. It must be the same for all services
	// of a proxy.
	NoConnect bool
}

// Delivery is how a filter's configuration comes to a proxy.
type Delivery string

const (
	// ECDS is extension config discovery: changes reach open connections, and
	// nothing drains.
	ECDS Delivery = "ECDS"
	// Listener is within the listener, which then drains.
	Listener Delivery = "LISTENER"
)

// Port is a port of a service.
type Port struct {
	// Port at which clients call, and TargetPort at which the workload listens;
	// default: Port.
	Port, TargetPort int
	// Unresolved: nobody knows TargetPort yet. The port's servers get nothing.
	Unresolved bool
	// Behind is how many filters of other services come before this one's at TargetPort of
	// workloads that they share: proxies have the first one's, and were that gone the next's.
	Behind int
	// Protocol are the names of codecs, long or short. Of several the first bytes
	// of a connection choose; so they do with "auto" alone.
	Protocol []string
	// Codec has options for the codec, instead of Protocol: {name, config}.
	Codec Object
	// Routes are those of config.route.v1alpha.RouteConfiguration, in which a
	// Destination may stand for the name of a cluster, see Clusters; one that names
	// none leads to the service itself. Default: everything to the service itself.
	Routes []Object
}

// ObservedPort is a port of a service, see Port, of which a filter observes what is said.
type ObservedPort struct {
	Port, TargetPort int
	Unresolved       bool
	Filter           StockFilter
}

// StockFilter is a filter of Envoy's own that counts the requests and responses of a
// protocol and changes nothing.
type StockFilter string

const (
	// ZooKeeper is Envoy's zookeeper_proxy, which all of Istio's proxies have.
	ZooKeeper StockFilter = "zookeeper"
	// Kafka is its kafka_broker, which none of Istio's own builds has: 1.19 to 1.31 leave
	// it out of Envoy's contrib. It is for proxies whose metadata has KafkaMetadata, too.
	Kafka StockFilter = "kafka"
)

// KafkaMetadata is what a proxy says that has the filter kafka_broker; its value is "true".
const KafkaMetadata = "MELTEMI_KAFKA"

// LoadBalancer says what a DestinationRule's trafficPolicy.loadBalancer says, for each
// call. The service's clusters get Meltemi as their load balancer, which then knows their
// hosts; of those of other services what their connections tell is known.
type LoadBalancer struct {
	// Simple is RoundRobin or LeastRequest; one of Simple and ConsistentHash is
	// required.
	Simple         string
	ConsistentHash *ConsistentHash
}

// What Simple may be.
const (
	RoundRobin   = "ROUND_ROBIN"
	LeastRequest = "LEAST_REQUEST"
)

// ConsistentHash sends calls with one key to one host. One of Metadata, HTTPHeaderName and
// UseSourceIP is required.
type ConsistentHash struct {
	// Metadata is the property of calls that is the key; so is HTTPHeaderName, as a
	// DestinationRule has it.
	Metadata, HTTPHeaderName string
	// UseSourceIP has the client's address be the key.
	UseSourceIP bool
	// RingHash or Maglev; default: RingHash.
	RingHash *RingHash
	Maglev   *Maglev
}

// RingHash has a ring of entries, at least 1 and at most 8388608. Default: 1024, as in
// Istio.
type RingHash struct{ MinimumRingSize int }

// Maglev has a table of so many places, a prime up to 5000011. Default: 65537.
type Maglev struct{ TableSize int }

// Destination is where a route leads in Istio's words, instead of the name of a
// cluster. What is left out is the service's own.
type Destination struct {
	Host   string // full name of a service
	Subset string
	Port   int
}

// Workloads are proxies of one namespace.
type Workloads struct {
	// Namespace; default: the service's.
	Namespace string
	// Selector holds labels of the pods. Absent: all of the namespace.
	Selector map[string]string
	// Name tells those of one namespace apart.
	Name string
	// MeshWide are those of all namespaces, instead of Namespace. Needs RootNamespace.
	MeshWide bool
}

// Server are the workloads behind a service.
type Server struct {
	// Namespace; default: the service's.
	Namespace string
	// Selector holds labels of the pods. At least one.
	Selector map[string]string
	// PreserveSource has the workload see its clients' IP addresses, as it does
	// without Meltemi if its pods are intercepted by TPROXY; those that are not
	// get no inbound filter. Needs Inbound's protocol.connection_mode to be
	// EXCLUSIVE.
	PreserveSource bool
}

// Gateway is a port of a gateway that leads to the service.
type Gateway struct {
	Namespace string
	Selector  map[string]string
	Name      string
	// Port at which the gateway's pods listen.
	Port int
	// ServicePort is the one of Ports that it leads to. May be left out if there
	// is just one.
	ServicePort int
	// SNIHosts are the sniHosts or hosts by which TLS connections to the service
	// are told from others at the same port: only theirs get the filter. Required;
	// empty if the port leads to this service alone.
	SNIHosts []string
}

const (
	// DefaultProxyVersion is Istio 1.31 and later, as those before it do not know
	// the filters' type, and refuse every listener that has it.
	DefaultProxyVersion = `^(1\.(3[1-9]|[4-9]\d|\d{3,})|[2-9]|[1-9]\d+)\b`

	// DefaultGolangVersion is Istio 1.20 to 1.30. Before it Envoy has no filter
	// set_filter_state for connections, without which no stock filter can lead one to
	// the cluster that it asks for.
	DefaultGolangVersion = `^1\.(2\d|30)\b`

	// DefaultAdmin is nobody's port in Istio.
	DefaultAdmin = "127.0.0.1:15880"

	defaultModule  = "meltemi"
	defaultSocket  = "@meltemi"
	defaultFolder  = "/usr/local/lib/meltemi" // of the shared object
	privateSocket  = "/etc/istio/proxy/meltemi.sock"
	defaultTimeout = 5 * time.Second
)

// DefaultProxyMetadata says of a proxy that it has the shared object. A pod sets
// it by the annotation proxy.istio.io/config.
func DefaultProxyMetadata() map[string]string { return map[string]string{"MELTEMI": "true"} }
