package loopback

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// tunnelPause is between attempts to dial a tunnel.
const tunnelPause = 50 * time.Millisecond

var errNoListener = errors.New("there is none yet")

// Tunnel dials a connection that carries bytes to one host of a cluster: it is
// accepted by the loopback listener as a carrier is, whose filter lets it pass
// (TunnelTo). The listener may have to come first: it is tried until ctx is done.
func (d *Dialer) Tunnel(ctx context.Context, cluster string) (net.Conn, error) {
	for {
		c, err := d.tunnel(cluster)
		if err == nil {
			return c, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("loopback listener: %w", err)
		case <-time.After(tunnelPause):
		}
	}
}

func (d *Dialer) tunnel(cluster string) (net.Conn, error) {
	path := d.path.Load()
	if path == nil {
		return nil, errNoListener
	}
	c, err := d.connect(*path)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.last++
	id := d.last
	d.tunnels[id] = cluster
	d.mu.Unlock()
	time.AfterFunc(bornTime, func() { d.takeTunnel(id) }) // it never appeared
	if _, err := c.Write(prologue(d.nonce.token(id), netip.Addr{})); err != nil {
		c.Close()
		d.takeTunnel(id)
		return nil, err
	}
	return c, nil
}

// TunnelTo returns the cluster of a tunnel that has appeared on a worker by its token,
// false if it is none. A token is good once.
func (d *Dialer) TunnelTo(token []byte) (cluster string, ok bool) {
	id, ok := d.nonce.id(token)
	if !ok {
		return "", false
	}
	return d.takeTunnel(id)
}

func (d *Dialer) takeTunnel(id uint64) (cluster string, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	cluster, ok = d.tunnels[id]
	delete(d.tunnels, id)
	return cluster, ok
}
