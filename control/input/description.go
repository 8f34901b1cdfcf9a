// Package input reads the descriptions of services that people write in YAML, or
// in JSON, and remembers where each field is written.
package input

import "go.yaml.in/yaml/v3"

// description is a file's form. What the fields are for is told in package ir,
// and for users in docs/istio.md.
type description struct {
	Host      string   `yaml:"host"`
	Name      string   `yaml:"name"`
	Namespace string   `yaml:"namespace"`
	Addresses []string `yaml:"addresses"`
	Headless  bool     `yaml:"headless"`
	Ports     []port   `yaml:"ports"`
	// Observed are ports that stay Istio's, with a filter of Envoy's own in front.
	Observed []observedPort `yaml:"observed"`
	// Protocol and Routes of the ports that have none of their own.
	Protocol     string        `yaml:"protocol"`
	Routes       *yaml.Node    `yaml:"routes"`
	LoadBalancer *loadBalancer `yaml:"loadBalancer"`
	Server       *server       `yaml:"server"`
	Clients      []workloads   `yaml:"clients"`
	Gateways     []gateway     `yaml:"gateways"`
	// Authorization has the specs of Istio's AuthorizationPolicy.
	Authorization []authorization `yaml:"authorization"`
	Telemetry     *telemetry      `yaml:"telemetry"`
	Outbound      *yaml.Node      `yaml:"outbound"`
	Inbound       *yaml.Node      `yaml:"inbound"`
	Delivery      string          `yaml:"delivery"`
	// InitialFetchTimeout is one of Go's durations.
	InitialFetchTimeout string            `yaml:"initialFetchTimeout"`
	ProxyMetadata       map[string]string `yaml:"proxyMetadata"`
	ProxyVersion        string            `yaml:"proxyVersion"`
	Golang              golang            `yaml:"golang"`
	Module              string            `yaml:"module"`
	Socket              string            `yaml:"socket"`
	AdminAddress        string            `yaml:"adminAddress"`
}

type port struct {
	Port       int `yaml:"port"`
	TargetPort int `yaml:"targetPort"`
	// Protocol are the names of codecs, with commas between them.
	Protocol string     `yaml:"protocol"`
	Codec    *yaml.Node `yaml:"codec"`
	// Routes: instead of a cluster they may name {subset, host, port}.
	Routes *yaml.Node `yaml:"routes"`
}

type observedPort struct {
	Port       int    `yaml:"port"`
	TargetPort int    `yaml:"targetPort"`
	Filter     string `yaml:"filter"`
}

type loadBalancer struct {
	Simple         string          `yaml:"simple"`
	ConsistentHash *consistentHash `yaml:"consistentHash"`
}

type consistentHash struct {
	Metadata       string    `yaml:"metadata"`
	HTTPHeaderName string    `yaml:"httpHeaderName"`
	UseSourceIP    bool      `yaml:"useSourceIp"`
	RingHash       *ringHash `yaml:"ringHash"`
	Maglev         *maglev   `yaml:"maglev"`
}

type ringHash struct {
	MinimumRingSize int `yaml:"minimumRingSize"`
}

type maglev struct {
	TableSize int `yaml:"tableSize"`
}

type workloads struct {
	Namespace string            `yaml:"namespace"`
	Selector  map[string]string `yaml:"selector"`
	Name      string            `yaml:"name"`
}

type server struct {
	Namespace      string            `yaml:"namespace"`
	Selector       map[string]string `yaml:"selector"`
	PreserveSource bool              `yaml:"preserveSource"`
}

type gateway struct {
	Namespace   string            `yaml:"namespace"`
	Selector    map[string]string `yaml:"selector"`
	Name        string            `yaml:"name"`
	Port        int               `yaml:"port"`
	ServicePort int               `yaml:"servicePort"`
	SNIHosts    []string          `yaml:"sniHosts"`
}

type golang struct {
	ProxyVersion string `yaml:"proxyVersion"`
	LibraryPath  string `yaml:"libraryPath"`
	Socket       string `yaml:"socket"`
	// Connect: absent is true.
	Connect *bool `yaml:"connect"`
}

type telemetry struct {
	// IstioStats: absent is true.
	IstioStats *bool      `yaml:"istioStats"`
	Metrics    *yaml.Node `yaml:"metrics"`
	Tracing    *yaml.Node `yaml:"tracing"`
	AccessLog  *yaml.Node `yaml:"accessLog"`
}

type authorization struct {
	Name   string `yaml:"name"`
	Action string `yaml:"action"`
	DryRun bool   `yaml:"dryRun"`
	Rules  []struct {
		From []struct {
			Source caller `yaml:"source"`
		} `yaml:"from"`
		To []struct {
			Operation operation `yaml:"operation"`
		} `yaml:"to"`
		When []condition `yaml:"when"`
	} `yaml:"rules"`
}

type caller struct {
	Principals        []string `yaml:"principals"`
	NotPrincipals     []string `yaml:"notPrincipals"`
	Namespaces        []string `yaml:"namespaces"`
	NotNamespaces     []string `yaml:"notNamespaces"`
	IPBlocks          []string `yaml:"ipBlocks"`
	NotIPBlocks       []string `yaml:"notIpBlocks"`
	RemoteIPBlocks    []string `yaml:"remoteIpBlocks"`
	NotRemoteIPBlocks []string `yaml:"notRemoteIpBlocks"`
}

type operation struct {
	Methods    []string `yaml:"methods"`
	NotMethods []string `yaml:"notMethods"`
	Paths      []string `yaml:"paths"`
	NotPaths   []string `yaml:"notPaths"`
	Ports      []string `yaml:"ports"`
	NotPorts   []string `yaml:"notPorts"`
}

type condition struct {
	Key       string   `yaml:"key"`
	Values    []string `yaml:"values"`
	NotValues []string `yaml:"notValues"`
}
