package rds

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/control/status"
)

// askAgain is the time until a replica that could not be asked is asked again.
const askAgain = 2 * time.Second

// Board holds what the proxies of all replicas say.
type Board struct {
	server *Server
	// changed is told the names of which something new is known. It does not ask back.
	changed func(names []string)
	// dial is how other replicas are connected to.
	dial []grpc.DialOption

	mu       sync.Mutex
	replicas map[string]*replica // by their addresses, "" for the own one
	ctx      context.Context     // while it runs
	running  sync.WaitGroup
}

// replica is what is known from one.
type replica struct {
	stop context.CancelFunc
	// self: it is the own one, under its address.
	self bool
	// complete: it has told all that there was when it was asked.
	complete  bool
	summaries map[string]status.Routes
}

// NewBoard returns one of a server's replica. changed is called with the names of which
// something new is known, and must not call the board.
func NewBoard(s *Server, changed func(names []string), dial ...grpc.DialOption) *Board {
	creds := insecure.NewCredentials()
	if s.Credentials != nil {
		creds = s.Credentials.client()
	}
	dial = append([]grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: probeTime, Timeout: probeAnswer}),
	}, dial...)
	return &Board{server: s, changed: changed, dial: dial, replicas: map[string]*replica{}}
}

// Run asks all replicas until ctx is done.
func (b *Board) Run(ctx context.Context) {
	own := &replica{summaries: map[string]status.Routes{}, stop: func() {}}
	b.mu.Lock()
	b.ctx, b.replicas[""] = ctx, own
	for address, r := range b.replicas {
		if address != "" {
			b.follow(address, r)
		}
	}
	b.mu.Unlock()
	_ = b.server.watch(ctx, func(r *report) error { // it ends with ctx, or the server
		b.hear(own, r)
		return nil
	})
	<-ctx.Done()
	b.running.Wait()
}

// Replicas are to be asked at these addresses, HOST:PORT, and at no others. The own one
// may be among them.
func (b *Board) Replicas(addresses []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for address, r := range b.replicas {
		if address != "" && !slices.Contains(addresses, address) {
			r.stop()
			b.lose(r)
			delete(b.replicas, address)
		}
	}
	for _, address := range addresses {
		if b.replicas[address] == nil {
			r := &replica{summaries: map[string]status.Routes{}, stop: func() {}}
			b.replicas[address] = r
			if b.ctx != nil {
				b.follow(address, r)
			}
		}
	}
}

// lose forgets what a replica has said. mu is held.
func (b *Board) lose(r *replica) {
	b.news()
	r.complete, r.summaries = false, map[string]status.Routes{}
}

// news tells of all names: who has not told yet concerns them all. mu is held.
func (b *Board) news() {
	names := map[string]bool{}
	for _, r := range b.replicas {
		for name := range r.summaries {
			names[name] = true
		}
	}
	b.changed(slices.Collect(maps.Keys(names)))
}

// follow asks a replica as long as it is one. mu is held.
func (b *Board) follow(address string, r *replica) {
	ctx, cancel := context.WithCancel(b.ctx)
	r.stop = cancel
	b.running.Go(func() {
		defer cancel()
		failed := false
		for ctx.Err() == nil {
			err := b.ask(ctx, address, r)
			b.mu.Lock()
			b.lose(r)
			self := r.self
			b.mu.Unlock()
			if self {
				return
			}
			if ctx.Err() == nil && !failed {
				b.server.Log.Info("what the proxies of a replica say is not known", "replica", address, "reason", err.Error())
			}
			failed = true
			select {
			case <-ctx.Done():
			case <-time.After(askAgain):
			}
		}
	})
}

func (b *Board) ask(ctx context.Context, address string, r *replica) error {
	conn, err := grpc.NewClient("passthrough:///"+address, b.dial...)
	if err != nil {
		return err
	}
	defer conn.Close()
	// What the stream's goroutines hold ends with it.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, watchMethod)
	if err != nil {
		return err
	}
	if err := st.SendMsg(&emptypb.Empty{}); err != nil {
		return err
	}
	if err := st.CloseSend(); err != nil {
		return err
	}
	for {
		m := &wrapperspb.BytesValue{}
		if err := st.RecvMsg(m); err != nil {
			return err
		}
		told := &report{}
		if err := json.Unmarshal(m.GetValue(), told); err != nil {
			return err
		}
		if told.Replica == b.server.name {
			b.mu.Lock()
			r.self = true
			b.mu.Unlock()
			return nil
		}
		b.hear(r, told)
	}
}

// hear notes what a replica tells.
func (b *Board) hear(r *replica, told *report) {
	b.mu.Lock()
	defer b.mu.Unlock()
	names := make([]string, 0, len(told.Summaries))
	for _, s := range told.Summaries {
		names = append(names, s.Name)
		if s.Accepted+s.Waiting+s.Refused == 0 {
			delete(r.summaries, s.Name)
		} else {
			r.summaries[s.Name] = s
		}
	}
	b.changed(names)
	if told.Complete {
		r.complete = true
		b.news()
	}
}

// Total is what the proxies of all replicas say of a version of a resource. Who has
// another one waits. Replicas that have not told yet are Unknown.
func (b *Board) Total(name, version string) status.Routes {
	sum := status.Routes{Name: name, Version: version}
	b.mu.Lock()
	defer b.mu.Unlock()
	for address, r := range b.replicas {
		if !r.complete && !r.self {
			sum.Unknown = append(sum.Unknown, address)
		}
		s := r.summaries[name]
		if s.Version != version {
			sum.Waiting += s.Accepted + s.Waiting + s.Refused
			continue
		}
		sum.Add(&s)
	}
	sum.Refusals = sortRefusals(sum.Refusals)
	slices.Sort(sum.Unknown)
	return sum
}
