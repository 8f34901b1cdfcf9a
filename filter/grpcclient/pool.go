package grpcclient

import (
	"cmp"
	"context"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

const (
	// connectTime bounds an attempt to connect.
	connectTime = 5 * time.Second
	// A connection on which nothing comes is probed: servers take offence at probes
	// that are less than 5 minutes apart.
	probeTime   = 6 * time.Minute
	probeAnswer = 20 * time.Second
	// maxPause is the longest one between attempts to connect.
	maxPause = 5 * time.Second
	// maxUsers of a connection: less than the streams that any server allows, as gRPC
	// has what is beyond wait without a word.
	maxUsers = 50
)

// Dial connects to one host of a cluster of the host process. It must do so as long as
// its process lives.
type Dial func(ctx context.Context, cluster string) (net.Conn, error)

// Pool is the connections to all services. Its zero value has none. It may be used by
// several goroutines.
type Pool struct {
	mu   sync.Mutex
	open map[server][]*Conn
}

// server is all that a connection depends on.
type server struct{ cluster, authority, address string }

// Conn is a connection to a service. It connects when it is used, and again when it is
// lost, and so is valid until its Release.
type Conn struct {
	*grpc.ClientConn
	pool  *Pool
	to    server
	users int

	mu   sync.Mutex
	last net.Conn // that was dialled to a cluster
}

// Get returns a connection to t for one user: one that has a stream open for long, or
// makes calls. Clusters are reached by dial. Users share connections, up to 50 each.
// The error says that t can never be reached.
func (p *Pool) Get(t *Target, dial Dial) (*Conn, error) {
	to := server{t.Cluster, t.Authority, t.Address}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.open[to] {
		if c.users < maxUsers {
			c.users++
			return c, nil
		}
	}
	c := &Conn{pool: p, to: to, users: 1}
	if err := c.connect(dial); err != nil {
		return nil, err
	}
	if p.open == nil {
		p.open = map[server][]*Conn{}
	}
	p.open[to] = append(p.open[to], c)
	return c, nil
}

// Release ends one use of the connection, and the last one closes it. One that is lost
// gets no further users.
func (c *Conn) Release() {
	p := c.pool
	p.mu.Lock()
	c.users--
	last := c.users == 0
	if last || c.GetState() != connectivity.Ready {
		left := slices.DeleteFunc(p.open[c.to], func(o *Conn) bool { return o == c })
		if p.open[c.to] = left; len(left) == 0 {
			delete(p.open, c.to)
		}
	}
	p.mu.Unlock()
	if last {
		c.Close()
	}
}

// Hold has the connection made, and made again when it is lost, before somebody asks
// for it, until ctx is done.
func (c *Conn) Hold(ctx context.Context) {
	for {
		s := c.GetState()
		if s == connectivity.Idle {
			c.Connect()
		}
		if !c.WaitForStateChange(ctx, s) || s == connectivity.Shutdown {
			return
		}
	}
}

// Reset ends the connection to the host of a cluster, as nothing comes from there.
// Calls under way fail, later ones have another one made. A connection to an address is
// left to the kernel, which sees itself that nothing is acknowledged.
func (c *Conn) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last != nil {
		c.last.Close()
		c.last = nil
	}
}

func (c *Conn) connect(dial Dial) (err error) {
	pauses := backoff.DefaultConfig
	pauses.MaxDelay = maxPause
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()), // TLS is the cluster's
		grpc.WithUserAgent("meltemi"), grpc.WithDisableServiceConfig(), grpc.WithNoProxy(), grpc.WithDisableRetry(),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: pauses, MinConnectTimeout: connectTime}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: probeTime, Timeout: probeAnswer}),
	}
	if c.to.cluster == "" {
		c.ClientConn, err = grpc.NewClient(c.to.address, options...)
		return err
	}
	options = append(options, grpc.WithAuthority(cmp.Or(c.to.authority, c.to.cluster)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			conn, err := dial(ctx, c.to.cluster)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.last = conn
			return conn, err
		}))
	c.ClientConn, err = grpc.NewClient("passthrough:///cluster", options...)
	return err
}
