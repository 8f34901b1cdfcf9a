// Package rds discovers route configurations: a client of Envoy's RDS over gRPC and of
// watched files. Whoever wants a route configuration of a server shares one
// subscription with all others that do.
package rds

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/filter/config"
	"github.com/meltemi-mesh/meltemi/filter/grpcclient"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
	"github.com/meltemi-mesh/meltemi/filter/route"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// MaxBytes bounds a route configuration. A larger one is refused; a message of more
// than twice that is not read at all, which ends its stream.
const MaxBytes = 32 << 20

const (
	// The pause after a failure is between half of this and all of it, doubled with
	// each further one up to the longest.
	firstPause = 500 * time.Millisecond
	maxPause   = 30 * time.Second
	// firstRest and maxRest are how long the word waits that an answer is refused,
	// when the one before was too: servers may send what is refused again at once.
	firstRest = 100 * time.Millisecond
	maxRest   = 5 * time.Second
	// maxFaults of a configuration are told to its server.
	maxFaults = 5
)

// Event is what a subscription's users hear of.
type Event uint8

const (
	// Accepted: an answer has brought routes that all users take.
	Accepted Event = iota
	// Refused: an answer was refused. What was held before stays.
	Refused
	// Empty: an answer has brought no routes. What was held before stays.
	Empty
	// Failed: the server could not be asked, or is lost.
	Failed

	// Events is how many there are.
	Events
)

// User wants a route configuration. Its methods are called by goroutines, or by
// Subscribe, one at a time; they do not call the Registry.
type User interface {
	// Compile makes a table of rc, which must not be changed, and returns what puts it
	// into use, or what is wrong with it.
	Compile(rc *routev1alpha.RouteConfiguration) (use func(), faults []*route.Error)
	// Heard tells of what has happened, behind use.
	Heard(e Event)
}

// Registry is the subscriptions of a process.
type Registry struct {
	mu          sync.Mutex
	subs        map[string]*subscription
	connections grpcclient.Pool
}

// NewRegistry returns one without subscriptions.
func NewRegistry() *Registry {
	return &Registry{subs: map[string]*subscription{}}
}

// Subscribe has u told of the route configuration that cfg names, at once if it is
// held for somebody else, until the returned function is called. Behind that u is
// called no more. A subscription begins with its first user and ends with the last.
func (r *Registry) Subscribe(cfg *config.RDS, bg host.Background, u User) (cancel func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.subs[cfg.Key]
	if s != nil {
		s.join(u)
	} else {
		ctx, stop := context.WithCancel(context.Background())
		s = &subscription{cfg: cfg, bg: bg, stop: stop, users: []User{u}}
		r.subs[cfg.Key] = s
		go s.run(ctx, r.source(cfg, bg))
	}
	return func() { r.leave(s, u) }
}

func (r *Registry) leave(s *subscription, u User) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users = slices.DeleteFunc(s.users, func(o User) bool { return o == u })
	if len(s.users) == 0 && r.subs[s.cfg.Key] == s {
		delete(r.subs, s.cfg.Key)
		s.stop()
	}
}

// source asks a server, or looks at a file.
type source interface {
	// run asks until ctx is done or the source has failed, and hands each answer to
	// answered. An error of that is what the server is told. held is the version of
	// what is held, and whether anything is.
	run(ctx context.Context, held func() (version string, ok bool), answered func(answer) error) error
	// pause is how long to wait after so many failures in a row.
	pause(failures int) time.Duration
}

func (r *Registry) source(cfg *config.RDS, bg host.Background) source {
	if cfg.File != "" {
		return &file{path: cfg.File}
	}
	return &grpcSource{cfg, bg, &r.connections}
}

// answer is what a source says.
type answer struct {
	// version is that of the answer, or, if it is partial, of its resource.
	version   string
	partial   bool
	resources []*anypb.Any
	// names of resources, where they are beside them: without one it is in the
	// resource.
	names []string
	// fault is why the answer cannot be read.
	fault error
}

// subscription is one route configuration of one server.
type subscription struct {
	cfg  *config.RDS
	bg   host.Background
	stop context.CancelFunc

	mu      sync.Mutex
	users   []User
	held    *routev1alpha.RouteConfiguration // nil while there is none
	paths   paths                            // of held
	version string                           // of what was accepted last
	said    bool                             // that something has been answered
	last    Event                            // by which
	updated time.Time                        // when held was taken
	failure failure                          // since the last answer that was taken

	// Of the goroutine.
	refusals int    // in a row
	refused  string // the last of them
	lost     bool   // and said so
}

// join adds a user, and gives it what is held.
func (s *subscription) join(u User) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users = append(s.users, u)
	if s.held == nil {
		if s.said {
			u.Heard(s.last)
		}
		return
	}
	var use func()
	var faults []*route.Error
	if err := guard.Do(func() { use, faults = u.Compile(s.held) }); err != nil {
		s.panicked(err)
	} else if len(faults) == 0 {
		use()
		u.Heard(Accepted)
		return
	} else {
		s.bg.Logf(host.Warn, "meltemi: rds: routes %q, version %q, from %s refused by another listener: %v",
			s.cfg.Name, s.version, s.cfg.Server(), s.paths.faults(faults))
	}
	u.Heard(Refused)
}

// tell tells all users. s.mu is held.
func (s *subscription) tell(e Event) {
	for _, u := range s.users {
		u.Heard(e)
	}
}

// run asks until ctx is done.
func (s *subscription) run(ctx context.Context, src source) {
	failures := 0
	answered := func(a answer) error {
		failures = 0
		err := s.answered(a)
		if err != nil {
			s.rest(ctx)
		}
		return err
	}
	for {
		var err error
		if p := guard.Do(func() { err = src.run(ctx, s.heldVersion, answered) }); p != nil {
			s.panicked(p)
			err = p
		}
		if ctx.Err() != nil {
			return
		}
		s.failed(err)
		sleep(ctx, src.pause(failures))
		failures++
	}
}

func (s *subscription) heldVersion() (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.version, s.held != nil
}

func (s *subscription) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tell(Failed)
	level := host.Debug
	if !s.lost {
		s.lost, level = true, host.Warn
	}
	s.failure = failure{time.Now(), err.Error(), ""}
	having := "there are none yet"
	if s.held != nil {
		having = fmt.Sprintf("going on with version %q", s.version)
	}
	s.bg.Logf(level, "meltemi: rds: routes %q from %s: %v; %s", s.cfg.Name, s.cfg.Server(), err, having)
}

// answered takes an answer, or says what is wrong with it.
func (s *subscription) answered(a answer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost {
		s.lost = false
		s.bg.Logf(host.Info, "meltemi: rds: routes %q: %s answers again", s.cfg.Name, s.cfg.Server())
	}
	var e Event
	var err error
	if p := guard.Do(func() { e, err = s.take(a) }); p != nil {
		s.panicked(p)
		err = p
	}
	s.failure = failure{}
	if err != nil {
		e = Refused
		s.failure = failure{time.Now(), err.Error(), a.version}
		s.refusals++
		level := host.Warn
		if text := a.version + ": " + err.Error(); text == s.refused {
			level = host.Debug // said before
		} else {
			s.refused = text
		}
		s.bg.Logf(level, "meltemi: rds: routes %q, version %q, from %s refused: %v", s.cfg.Name, a.version, s.cfg.Server(), err)
	} else {
		s.refusals, s.refused = 0, ""
	}
	s.said, s.last = true, e
	s.tell(e)
	return err
}

// take puts into use what an answer has. s.mu is held.
func (s *subscription) take(a answer) (Event, error) {
	if a.fault != nil {
		return Refused, a.fault
	}
	if len(a.resources) == 0 {
		// As in Envoy: a route configuration is gone when nobody uses it any more, and
		// until then the last one counts.
		if !a.partial {
			s.version = a.version
		}
		s.bg.Logf(host.Debug, "meltemi: rds: version %q from %s has no routes %q", a.version, s.cfg.Server(), s.cfg.Name)
		return Empty, nil
	}
	rc, ps, err := s.read(a)
	if err != nil {
		return Refused, err
	}
	if proto.Equal(rc, s.held) {
		s.version = a.version
		return Accepted, nil
	}
	uses := make([]func(), 0, len(s.users))
	for _, u := range s.users {
		use, faults := u.Compile(rc)
		if len(faults) > 0 {
			return Refused, ps.faults(faults)
		}
		uses = append(uses, use)
	}
	for _, use := range uses {
		use()
	}
	s.held, s.paths, s.version, s.updated = rc, ps, a.version, time.Now()
	s.bg.Logf(host.Info, "meltemi: rds: routes %q, version %q, from %s", s.cfg.Name, s.version, s.cfg.Server())
	return Accepted, nil
}

// read finds the one resource that was asked for.
func (s *subscription) read(a answer) (*routev1alpha.RouteConfiguration, paths, error) {
	if n := len(a.resources); n != 1 {
		return nil, paths{}, fmt.Errorf("resources: want one, has %d", n)
	}
	rc, ps, err := parse(a.resources[0])
	if err != nil {
		return nil, ps, err
	}
	name := rc.GetName()
	if len(a.names) > 0 && a.names[0] != s.cfg.Name {
		name = a.names[0]
	}
	if name != s.cfg.Name {
		return nil, ps, fmt.Errorf("%sname: want %q, is %q", ps.prefix, s.cfg.Name, name)
	}
	return rc, ps, nil
}

func (s *subscription) panicked(err error) {
	if p := guard.In(err); p != nil {
		s.bg.Logf(host.Error, "meltemi: panic in rds: %v\n%s", p.Value, p.Stack)
	}
}

// rest waits before a refusal is told that is not the first in a row.
func (s *subscription) rest(ctx context.Context) {
	if s.refusals > 1 {
		sleep(ctx, min(firstRest<<min(s.refusals-2, 10), maxRest))
	}
}

// jittered is the pause after so many failures in a row.
func jittered(failures int) time.Duration {
	d := min(firstPause<<min(failures, 10), maxPause)
	return d/2 + rand.N(d/2)
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// faultsError joins the first of faults.
func faultsError(faults []string) error {
	if n := len(faults) - maxFaults; n > 0 {
		faults = append(faults[:maxFaults:maxFaults], fmt.Sprintf("and %d more", n))
	}
	return errors.New(strings.Join(faults, "; "))
}
