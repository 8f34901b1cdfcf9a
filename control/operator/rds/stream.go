package rds

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	routeservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/filter/config"
)

var errShutdown = status.Error(codes.Unavailable, "the server is shutting down")

// dialect is one of the two ways to ask and to answer.
type dialect interface {
	receive() (*request, error)
	// send tells what is current of changed, and which names are gone.
	send(r *response) error
	// wholesale: each answer has all that is wanted.
	wholesale() bool
}

type request struct {
	node    *corev3.Node
	typeURL string
	nonce   string
	refused *rpcstatus.Status
	// names are all that are wanted (wholesale), or those that are wanted now, too.
	names []string
	// enough are wanted no longer.
	enough []string
	// held are versions that the client has, by name, or version that of all.
	held    map[string]string
	version string
}

type response struct {
	typeURL, nonce, version string
	resources               []resource
	gone                    []string
}

type resource struct {
	name, version string
	*anypb.Any
}

// stream is one of a proxy. It has one answer on its way at a time: what changes until
// the proxy has judged that goes into the next one, and what was refused is not sent
// again before it has changed.
type stream struct {
	*Server
	dialect
	who  Identity
	wake chan struct{} // something that is wanted has changed

	// typeURL and node are said once. Server.mu is held to set node.
	typeURL, node string
	nonce         int
	sent          map[string]string // versions on their way, by name; nil: none are

	mu    sync.Mutex // held to change wants, and by others to read them
	wants map[string]*want
}

// want is a name that the stream wants.
type want struct {
	since time.Time
	told  string // the version that the client was sent last, or had
	// accepted and refused are versions, and reason why.
	accepted, refused, reason string
}

func (st *stream) run(ctx context.Context) error {
	requests := make(chan *request)
	failed := make(chan error, 1)
	// It ends with the stream, by which Recv fails.
	go func() {
		for {
			r, err := st.receive()
			if err != nil {
				failed <- err
				return
			}
			select {
			case requests <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case <-st.closing:
			return errShutdown
		case err := <-failed:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case r := <-requests:
			if err := st.hear(r); err != nil {
				return err
			}
		case <-st.wake:
		}
		if err := st.tell(); err != nil {
			return err
		}
	}
}

// hear takes a request.
func (st *stream) hear(r *request) error {
	first := st.typeURL == ""
	if first {
		switch r.typeURL {
		case "":
			st.typeURL = config.EnvoyRoutes
		case config.EnvoyRoutes, config.ProxyRoutes:
			st.typeURL = r.typeURL
		default:
			return status.Errorf(codes.InvalidArgument, "type_url: want %s or %s, is %q", config.EnvoyRoutes, config.ProxyRoutes, r.typeURL)
		}
		node := r.node.GetId()
		st.named(st, strings.ToValidUTF8(node[:min(len(node), maxName)], "?"))
	} else if r.typeURL != "" && r.typeURL != st.typeURL {
		return status.Errorf(codes.InvalidArgument, "type_url: the stream's is %s, and this %q", st.typeURL, r.typeURL)
	}
	switch {
	case r.nonce == "":
	case st.sent != nil && r.nonce == strconv.Itoa(st.nonce):
		st.judged(r)
	case st.wholesale():
		return nil // it is about an answer before, and will be said again
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.wholesale() {
		r.enough = nil
		for name := range st.wants {
			if !slices.Contains(r.names, name) {
				r.enough = append(r.enough, name)
			}
		}
	}
	for _, name := range r.enough {
		delete(st.wants, name)
		st.store.unwatch(name, st)
	}
	for _, name := range r.names {
		if name == "" || name == "*" || len(name) > maxName {
			return status.Errorf(codes.InvalidArgument, "resource names: %q is none", name[:min(len(name), maxName)])
		}
		switch w := st.wants[name]; {
		case w == nil:
			w = &want{since: time.Now(), told: r.held[name]}
			st.wants[name] = w
			st.store.watch(name, st)
		case !st.wholesale(): // asked for again, so it has been lost
			w.told = r.held[name]
		}
	}
	if len(st.wants) > MaxNames {
		return status.Errorf(codes.ResourceExhausted, "resource names: %d, at most %d are allowed", len(st.wants), MaxNames)
	}
	if first && st.wholesale() && r.version != "" {
		if current := st.current(); r.version == worldVersion(current) {
			for name, f := range current {
				st.wants[name].told = f.version
			}
		}
	}
	for _, w := range st.wants {
		if first && w.told != "" {
			w.accepted = w.told
		}
	}
	return nil
}

// current is what there is of what is wanted. st.mu is held.
func (st *stream) current() map[string]form {
	forms := make(map[string]form, len(st.wants))
	for name := range st.wants {
		e := st.store.get(name, st.who)
		if e == nil {
			continue
		}
		f := e.of(st.typeURL)
		if f.fault != nil {
			if e.refused.CompareAndSwap(false, true) {
				st.Log.Error(f.fault, "routes cannot be told in Envoy's own type", "routes", name, "node", st.node)
			}
			continue
		}
		forms[name] = f
	}
	return forms
}

// worldVersion is the version of resources together: their own, if it is one.
func worldVersion(forms map[string]form) string {
	var parts [][]byte
	for _, name := range slices.Sorted(maps.Keys(forms)) {
		if len(forms) == 1 {
			return forms[name].version
		}
		parts = append(parts, []byte(name), []byte(forms[name].version))
	}
	return digest(parts...)
}

// tell sends what the client does not have. Of a name for which there is nothing, nothing
// is said: an answer without it would have the proxy refuse calls, and what it may have
// this replica may learn in a moment.
func (st *stream) tell() error {
	if st.sent != nil {
		return nil
	}
	st.mu.Lock()
	current := st.current()
	r := &response{typeURL: st.typeURL, version: worldVersion(current)}
	changed := false
	for name, w := range st.wants {
		if f, ok := current[name]; ok {
			changed = changed || f.version != w.told
		} else if w.told != "" {
			w.told = ""
			r.gone = append(r.gone, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(current)) {
		f, w := current[name], st.wants[name]
		if f.version == w.told && (!changed || !st.wholesale()) {
			continue
		}
		w.told = f.version
		r.resources = append(r.resources, resource{name, f.version, f.resource})
	}
	st.mu.Unlock()
	slices.Sort(r.gone)
	if len(r.resources) == 0 && (st.wholesale() || len(r.gone) == 0) {
		return nil
	}
	st.nonce++
	r.nonce = strconv.Itoa(st.nonce)
	st.sent = make(map[string]string, len(r.resources))
	for _, res := range r.resources {
		st.sent[res.name] = res.version
	}
	pushes.Inc()
	return st.send(r)
}

// judged notes what the client says of the answer on its way.
func (st *stream) judged(r *request) {
	sent := st.sent
	st.sent = nil
	st.mu.Lock()
	defer st.mu.Unlock()
	for name, version := range sent {
		w := st.wants[name]
		if w == nil {
			continue
		}
		st.store.touch(name)
		e := st.store.get(name, st.who)
		if r.refused == nil {
			w.accepted, w.refused, w.reason = version, "", ""
			// Of what has changed again in the meantime the answer behind tells.
			if e != nil && e.of(st.typeURL).version == version {
				start := e.changed
				if w.since.After(start) {
					start = w.since
				}
				latency.Observe(time.Since(start).Seconds())
			}
			continue
		}
		text := r.refused.GetMessage()
		w.refused, w.reason = version, strings.ToValidUTF8(text[:min(len(text), maxText)], "?")
		if e != nil && e.refused.CompareAndSwap(false, true) {
			st.Log.Info("routes refused", "routes", name, "version", version, "node", st.node, "identity", st.who.String(), "reason", w.reason)
		}
	}
	if r.refused == nil {
		acceptedTotal.Inc()
	} else {
		refusedTotal.Inc()
	}
}

// state is what the client has said of a name. Server.mu is held.
func (st *stream) state(name string) (State, bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	w := st.wants[name]
	if w == nil {
		return State{}, false
	}
	s := State{
		Node: st.node, Identity: st.who.String(), Type: st.typeURL,
		Accepted: w.accepted, Refused: w.refused, Reason: w.reason,
	}
	if e := st.store.get(name, st.who); e != nil {
		s.Current = w.accepted == e.of(st.typeURL).version
	}
	return s, true
}

// world is the state of the world.
type world struct {
	routeservicev3.RouteDiscoveryService_StreamRoutesServer
}

func (world) wholesale() bool { return true }

func (d world) receive() (*request, error) {
	r, err := d.Recv()
	if err != nil {
		return nil, err
	}
	return &request{
		node: r.GetNode(), typeURL: r.GetTypeUrl(), nonce: r.GetResponseNonce(), refused: r.GetErrorDetail(),
		names: r.GetResourceNames(), version: r.GetVersionInfo(),
	}, nil
}

func (d world) send(r *response) error {
	answer := &discoveryv3.DiscoveryResponse{VersionInfo: r.version, TypeUrl: r.typeURL, Nonce: r.nonce}
	for _, res := range r.resources {
		answer.Resources = append(answer.Resources, res.Any)
	}
	return d.Send(answer)
}

// delta is changes.
type delta struct {
	routeservicev3.RouteDiscoveryService_DeltaRoutesServer
}

func (delta) wholesale() bool { return false }

func (d delta) receive() (*request, error) {
	r, err := d.Recv()
	if err != nil {
		return nil, err
	}
	return &request{
		node: r.GetNode(), typeURL: r.GetTypeUrl(), nonce: r.GetResponseNonce(), refused: r.GetErrorDetail(),
		names: r.GetResourceNamesSubscribe(), enough: r.GetResourceNamesUnsubscribe(), held: r.GetInitialResourceVersions(),
	}, nil
}

func (d delta) send(r *response) error {
	answer := &discoveryv3.DeltaDiscoveryResponse{SystemVersionInfo: r.version, TypeUrl: r.typeURL, Nonce: r.nonce, RemovedResources: r.gone}
	for _, res := range r.resources {
		answer.Resources = append(answer.Resources, &discoveryv3.Resource{Name: res.name, Version: res.version, Resource: res.Any})
	}
	return d.Send(answer)
}
