// Package rds serves route configurations to proxies by Envoy's RDS: state of the world
// and delta, in Envoy's own type and in Meltemi's.
package rds

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/control/translate/rds"
	"github.com/meltemi-mesh/meltemi/filter/config"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// Resource is a route configuration, and whose proxies may have it.
type Resource struct {
	Routes *routev1alpha.RouteConfiguration
	// Namespaces of these proxies, in order; nil: all.
	Namespaces []string
}

// Store holds what there is to be served, by name. It wakes the streams that want what
// has changed.
type Store struct {
	mu      sync.RWMutex
	entries map[string]*entry
	hosts   map[string][]string // the names of each host
	streams map[string]map[*stream]struct{}

	watching sync.Mutex // no other lock is taken while it is held, but watchers' own
	watchers map[*watcher]struct{}
}

// NewStore returns an empty one.
func NewStore() *Store {
	return &Store{
		entries: map[string]*entry{}, hosts: map[string][]string{}, streams: map[string]map[*stream]struct{}{},
		watchers: map[*watcher]struct{}{},
	}
}

// entry is a resource as it is served. It never changes.
type entry struct {
	namespaces []string
	own        form
	http       func() form
	changed    time.Time
	refused    atomic.Bool // some proxy cannot have it, or has refused it, which has been logged
}

// form is a resource in one of its types.
type form struct {
	resource *anypb.Any
	version  string // of its content
	fault    error  // why there is none in this type
}

// of is what a type has of the entry.
func (e *entry) of(typeURL string) form {
	if typeURL == config.ProxyRoutes {
		return e.own
	}
	return e.http()
}

func pack(m proto.Message) form {
	a := &anypb.Any{}
	if err := anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		return form{fault: err}
	}
	return form{resource: a, version: digest([]byte(a.GetTypeUrl()), a.GetValue())}
}

// digest is the version of some content.
func digest(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
		h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// Put has the resources of a host be those, and no others. What is as it was is not sent
// again. No two hosts have the same names.
func (s *Store) Put(host string, resources []Resource) error {
	made := make(map[string]*entry, len(resources))
	names := make([]string, 0, len(resources))
	now := time.Now()
	for _, r := range resources {
		own := pack(r.Routes)
		if own.fault != nil {
			return own.fault
		}
		name := r.Routes.GetName()
		names = append(names, name)
		made[name] = &entry{namespaces: r.Namespaces, own: own, http: sync.OnceValue(own.toHTTP), changed: now}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range s.hosts[host] {
		if made[name] == nil {
			delete(s.entries, name)
			s.wake(name)
		}
	}
	for name, e := range made {
		old := s.entries[name]
		if old != nil && old.own.version == e.own.version && (old.namespaces == nil) == (e.namespaces == nil) && slices.Equal(old.namespaces, e.namespaces) {
			continue
		}
		s.entries[name] = e
		s.wake(name)
	}
	if len(names) == 0 {
		delete(s.hosts, host)
	} else {
		s.hosts[host] = names
	}
	return nil
}

// toHTTP is made when somebody asks for it, of the bytes that are kept in any case.
func (f form) toHTTP() form {
	rc := &routev1alpha.RouteConfiguration{}
	if err := f.resource.UnmarshalTo(rc); err != nil {
		return form{fault: err}
	}
	http, err := rds.HTTP(rc)
	if err != nil {
		return form{fault: err}
	}
	return pack(http)
}

// get is what who may have of a name, nil for nothing.
func (s *Store) get(name string, who Identity) *entry {
	s.mu.RLock()
	e := s.entries[name]
	s.mu.RUnlock()
	if e == nil || !who.may(e.namespaces) {
		return nil
	}
	return e
}

// wake tells the streams that want a name. s.mu is held.
func (s *Store) wake(name string) {
	s.touch(name)
	for st := range s.streams[name] {
		select {
		case st.wake <- struct{}{}:
		default: // it has not looked since the last time
		}
	}
}

func (s *Store) watch(name string, st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams[name] == nil {
		s.streams[name] = map[*stream]struct{}{}
	}
	s.streams[name][st] = struct{}{}
	s.touch(name)
}

func (s *Store) unwatch(name string, st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams[name], st)
	s.touch(name)
	if len(s.streams[name]) == 0 {
		delete(s.streams, name)
	}
}
