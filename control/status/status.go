// Package status says in which form the control plane tells what has become of services.
package status

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
)

// Path is where the operator serves a List, at the address of its metrics. The parameter
// namespace asks for services of a namespace only, host for one host: its whole name, or
// what that begins with, up to a dot.
const Path = "/status"

// List is of services, in the order of their hosts.
type List struct {
	Services []Service `json:"services"`
}

// Service is what is programmed for a host.
type Service struct {
	Host string `json:"host"`
	// Object that has the host's ports, as Kind namespace/name; "" if there is none.
	Object string `json:"object,omitempty"`
	// Router is the MetaRouter that counts, as namespace/name; "" if there is none.
	Router string `json:"router,omitempty"`
	// Delivery is how routes come to proxies: ECDS or RDS.
	Delivery string `json:"delivery,omitempty"`
	// Written is what there is in the cluster for the host, and what is missing.
	Written []Object `json:"written,omitempty"`
	// Routes are those by RDS.
	Routes []Routes `json:"routes,omitempty"`
	// Problems of all objects that say something of the host.
	Problems []Problem `json:"problems,omitempty"`
}

// Object is one that is written for proxies.
type Object struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Version of its content, "" if it is not there.
	Version string `json:"version,omitempty"`
	// Current: it is as it shall be.
	Current bool `json:"current"`
}

// Routes are a route configuration, and what the proxies that ask for it say of its
// version.
type Routes struct {
	Name string `json:"name"`
	// Version is the current one; "": there is none.
	Version  string `json:"version"`
	Accepted int    `json:"accepted"`
	// Waiting have not answered yet.
	Waiting int `json:"waiting"`
	Refused int `json:"refused"`
	// Refusals are the first few.
	Refusals []Refusal `json:"refusals,omitempty"`
	// Unknown are addresses of replicas whose proxies are not counted, as they cannot be
	// asked.
	Unknown []string `json:"unknown,omitempty"`
}

// Counts says how many proxies say what.
func (r *Routes) Counts() string {
	return fmt.Sprintf("accepted by %d, refused by %d, not answered by %d", r.Accepted, r.Refused, r.Waiting)
}

// Add adds what other proxies say.
func (r *Routes) Add(o *Routes) {
	r.Accepted += o.Accepted
	r.Waiting += o.Waiting
	r.Refused += o.Refused
	r.Refusals = append(r.Refusals, o.Refusals...)
}

// Refusal is why a proxy has refused routes.
type Refusal struct {
	// Node is the proxy's name for itself, that of its pod, and Identity the SPIFFE identity
	// that its certificate says it is, "" without TLS.
	Node     string `json:"node"`
	Identity string `json:"identity,omitempty"`
	Reason   string `json:"reason"`
}

// Proxy names who has refused.
func (f *Refusal) Proxy() string {
	if f.Identity == "" {
		return f.Node
	}
	return f.Node + " (" + f.Identity + ")"
}

// Problem is what is wrong with a field of an object, or with all of it.
type Problem struct {
	Object string `json:"object"`
	Field  string `json:"field,omitempty"`
	Reason string `json:"reason"`
}

// versionLength is how much of a version people are shown.
const versionLength = 8

// Short is what people are shown of versions, by the names of what has them.
func Short(versions map[string]string) string {
	if len(versions) == 1 {
		for _, v := range versions {
			return Brief(v)
		}
	}
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(versions)) {
		h.Write([]byte(name + " " + versions[name] + "\n"))
	}
	return Brief(hex.EncodeToString(h.Sum(nil)))
}

// Brief is what people are shown of a version.
func Brief(version string) string { return version[:min(len(version), versionLength)] }
