package rds

import (
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/meltemi-mesh/meltemi/filter/config"
)

// maxStreams of a connection: less than any server allows, as gRPC has what is beyond
// wait without a word.
const maxStreams = 50

// connections are those to all servers, shared by the subscriptions of each.
type connections struct {
	mu   sync.Mutex
	open map[server][]*connection
}

// server is all that a connection depends on.
type server struct{ cluster, authority, address string }

// connection is one to a server.
type connection struct {
	*grpc.ClientConn
	to      server
	streams int
}

// get returns a connection to the server of cfg for one stream, by connect if there is
// none that can take it. It goes back by put.
func (cs *connections) get(cfg *config.RDS, connect func() (*grpc.ClientConn, error)) (*connection, error) {
	to := server{cfg.Cluster, cfg.Authority, cfg.Address}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for _, c := range cs.open[to] {
		if c.streams < maxStreams {
			c.streams++
			return c, nil
		}
	}
	conn, err := connect()
	if err != nil {
		return nil, err
	}
	c := &connection{ClientConn: conn, to: to, streams: 1}
	cs.open[to] = append(cs.open[to], c)
	return c, nil
}

// put gives back what a stream has used. A connection that is lost gets no other.
func (cs *connections) put(c *connection) {
	cs.mu.Lock()
	c.streams--
	last := c.streams == 0
	if last || c.GetState() != connectivity.Ready {
		left := slices.DeleteFunc(cs.open[c.to], func(o *connection) bool { return o == c })
		if cs.open[c.to] = left; len(left) == 0 {
			delete(cs.open, c.to)
		}
	}
	cs.mu.Unlock()
	if last {
		c.Close()
	}
}
