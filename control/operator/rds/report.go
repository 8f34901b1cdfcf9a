package rds

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/control/status"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// Bounds of what is told of proxies.
const (
	// MaxRefusals are told of a resource; of further ones there is their number.
	MaxRefusals = 5
	// maxReason is told of why.
	maxReason = 512
	// maxWatchers are replicas to which one tells.
	maxWatchers = 16
	// reportPace is the time between two reports, and maxVisits how many streams are
	// looked at for one, so that what proxies say costs little however many there are.
	reportPace = time.Second
	maxVisits  = 100_000
	// maxSummaries are in a report.
	maxSummaries = 128
)

func sortRefusals(all []status.Refusal) []status.Refusal {
	slices.SortFunc(all, func(a, b status.Refusal) int {
		return cmp.Or(strings.Compare(a.Identity, b.Identity), strings.Compare(a.Node, b.Node), strings.Compare(a.Reason, b.Reason))
	})
	return all[:min(len(all), MaxRefusals)]
}

// Version is that of a route configuration: the same for the same content.
func Version(rc *routev1alpha.RouteConfiguration) string { return pack(rc).version }

// report is what a replica tells of its proxies.
type report struct {
	// Replica is the name that a server has given itself.
	Replica   string          `json:"replica"`
	Summaries []status.Routes `json:"summaries"`
	// Complete: with this one all has been told that there was at the beginning.
	Complete bool `json:"complete,omitempty"`
}

// watcher is who wants to know what proxies say.
type watcher struct {
	wake chan struct{}

	mu    sync.Mutex
	names []string // of which something has been said, in order
	known map[string]bool
}

func (w *watcher) touch(names ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range names {
		if !w.known[name] {
			w.known[name] = true
			w.names = append(w.names, name)
		}
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// next is the first name, "" if there is none.
func (w *watcher) next() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.names) == 0 {
		w.names = nil
		return ""
	}
	name := w.names[0]
	w.names = w.names[1:]
	delete(w.known, name)
	return name
}

func (w *watcher) empty() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.names) == 0
}

// touch tells that something has been said of a name.
func (s *Store) touch(name string) {
	s.watching.Lock()
	defer s.watching.Unlock()
	for w := range s.watchers {
		w.touch(name)
	}
}

// watchAll has a watcher know of all names.
func (s *Store) watchAll() (w *watcher, end func(), err error) {
	w = &watcher{wake: make(chan struct{}, 1), known: map[string]bool{}}
	s.watching.Lock()
	full := len(s.watchers) >= maxWatchers
	if !full {
		s.watchers[w] = struct{}{}
	}
	s.watching.Unlock()
	if full {
		return nil, nil, grpcstatus.Errorf(codes.ResourceExhausted, "there are %d watchers", maxWatchers)
	}
	s.mu.RLock()
	for name := range s.entries {
		w.touch(name)
	}
	for name := range s.streams {
		w.touch(name)
	}
	s.mu.RUnlock()
	return w, func() {
		s.watching.Lock()
		defer s.watching.Unlock()
		delete(s.watchers, w)
	}, nil
}

// summary is what there is to be told of a name, for which some streams are looked at.
func (s *Store) summary(name string) (sum status.Routes, visited int) {
	sum.Name = name
	s.mu.RLock()
	if e := s.entries[name]; e != nil {
		sum.Version = e.own.version
	}
	all := make([]*stream, 0, len(s.streams[name]))
	for st := range s.streams[name] {
		all = append(all, st)
	}
	s.mu.RUnlock()
	var refusals []status.Refusal
	for _, st := range all {
		switch said, reason := st.said(name); said {
		case accepted:
			sum.Accepted++
		case waiting:
			sum.Waiting++
		case refused:
			sum.Refused++
			refusals = append(refusals, status.Refusal{Node: st.node, Identity: st.who.String(), Reason: reason})
		}
	}
	sum.Refusals = sortRefusals(refusals)
	return sum, len(all)
}

// What a client has said of the current version.
const (
	nothing = iota // it is not for it
	waiting
	accepted
	refused
)

func (st *stream) said(name string) (what int, reason string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	w, e := st.wants[name], st.store.get(name, st.who)
	if w == nil || e == nil {
		return nothing, ""
	}
	switch f := e.of(st.typeURL); {
	case f.fault != nil:
		return refused, reasonOf(f.fault.Error())
	case w.accepted == f.version:
		return accepted, ""
	case w.refused == f.version:
		return refused, reasonOf(w.reason)
	}
	return waiting, ""
}

func reasonOf(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), maxReason)], "?")
}

// watch tells what proxies say, again and again, until ctx is done.
func (s *Server) watch(ctx context.Context, tell func(*report) error) error {
	w, end, err := s.store.watchAll()
	if err != nil {
		return err
	}
	defer end()
	for complete := false; ; {
		r := &report{Replica: s.name, Summaries: []status.Routes{}}
		for visits := 0; visits < maxVisits && len(r.Summaries) < maxSummaries; {
			name := w.next()
			if name == "" {
				break
			}
			sum, visited := s.store.summary(name)
			visits += visited
			r.Summaries = append(r.Summaries, sum)
		}
		r.Complete = !complete && w.empty()
		if len(r.Summaries) > 0 || r.Complete {
			if err := tell(r); err != nil {
				return err
			}
		}
		switch {
		case r.Complete:
			complete = true
		case !complete:
			continue
		}
		if err := await(ctx, s, time.After(reportPace)); err != nil {
			return err
		}
		if w.empty() {
			if err := await(ctx, s, w.wake); err != nil {
				return err
			}
		}
	}
}

// await waits for c, but no longer than ctx lasts and s serves.
func await[T any](ctx context.Context, s *Server, c <-chan T) error {
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closing:
		return errShutdown
	}
}

// reportService is how replicas tell each other, in JSON: only they need to know it.
var reportService = grpc.ServiceDesc{
	ServiceName: "meltemi.operator.Reports", HandlerType: (*any)(nil),
	Streams: []grpc.StreamDesc{{StreamName: "Watch", ServerStreams: true, Handler: func(s any, g grpc.ServerStream) error {
		return s.(*Server).serveReports(g)
	}}},
}

const watchMethod = "/meltemi.operator.Reports/Watch"

func (s *Server) serveReports(g grpc.ServerStream) error {
	who, err := identify(g.Context(), s.TrustDomain)
	if err != nil {
		return err
	}
	if s.Credentials != nil {
		if own, err := s.Credentials.identity(); err != nil || who != own {
			return grpcstatus.Errorf(codes.PermissionDenied, "%s is no replica", who)
		}
	}
	if err := g.RecvMsg(&emptypb.Empty{}); err != nil {
		return err
	}
	return s.watch(g.Context(), func(r *report) error {
		b, err := json.Marshal(r)
		if err != nil {
			return err
		}
		return g.SendMsg(wrapperspb.Bytes(b))
	})
}
