package golang

import (
	"net/netip"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lookBytes is how much may be on its way to a client before somebody looks.
	lookBytes = 256 << 10
	// lookTime is between a write and the look, and between one look and the next, which is
	// twice as late each time that nothing has moved, up to maxLookTime.
	lookTime    = 2 * time.Millisecond
	maxLookTime = 256 * time.Millisecond
	// highWatermark is how many bytes Envoy may hold for a client until the pipeline is
	// told that it does not read, and lowWatermark until it is told that it does again:
	// Envoy's own are per_connection_buffer_limit_bytes, 1 MiB, and half of it.
	highWatermark = 1 << 20
	lowWatermark  = highWatermark / 2
)

// unread is what is known of the bytes that a client has not been sent yet. Envoy does
// not tell: it has no watermarks for this filter, and takes everything. But its socket is
// one of this process, and the kernel tells how much of it has arrived, and how much
// waits in the socket. What is in neither place is in Envoy.
type unread struct {
	left    int           // bytes that had been written and had not arrived, when it was looked
	since   int           // bytes written since
	acked   uint64        // that had arrived, by the kernel's count
	looking bool          // somebody will look
	pause   time.Duration // until then
	timer   *time.Timer
	blind   bool // there is nothing to see
	blocked bool
	fd      atomic.Int32 // + 1; 0: unknown
}

// wrote notes that n bytes were given to Envoy.
func (c *Client) wrote(n int) {
	u := &c.unread
	u.since += n
	switch {
	case u.blind || u.left+u.since <= lookBytes:
	case !u.looking:
		c.lookIn(lookTime)
	case u.pause > lookTime && u.since > lookBytes && u.timer.Stop(): // that was for nothing to move
		c.lookIn(lookTime)
	}
}

func (c *Client) lookIn(pause time.Duration) {
	u := &c.unread
	u.looking, u.pause = true, pause
	u.timer = time.AfterFunc(pause, func() {
		s, ok := c.look()
		c.w.Post(func() { c.looked(s, ok) })
	})
}

// sight is what the kernel tells of a client's socket.
type sight struct {
	acked uint64 // bytes that have arrived, ever
	queue int    // bytes in the socket, which have not
}

func (c *Client) looked(s sight, ok bool) {
	u := &c.unread
	u.looking = false
	if c.gone || c.away || c.closing == closes {
		return
	}
	if !ok {
		u.blind = true
		c.setBlocked(false)
		return
	}
	pause := lookTime
	if u.since == 0 && s.acked == u.acked {
		pause = min(2*u.pause, maxLookTime)
	}
	inEnvoy := u.see(s)
	switch {
	case inEnvoy >= highWatermark:
		c.setBlocked(true)
	case inEnvoy <= lowWatermark:
		c.setBlocked(false)
	}
	if u.blocked || u.left > lookBytes {
		c.lookIn(pause)
	}
}

// see returns how many bytes are in Envoy, at the most. With TLS more arrives than was
// written: so differences are taken, and it is never less than nothing that is left.
func (u *unread) see(s sight) int {
	u.left = max(0, u.left+u.since-int(s.acked-u.acked))
	u.since, u.acked = 0, s.acked
	return max(0, u.left-s.queue)
}

func (c *Client) setBlocked(blocked bool) {
	if c.unread.blocked != blocked {
		c.unread.blocked = blocked
		c.w.guard(c, func() { c.ev.WriteBlocked(blocked) })
	}
}

// Unsent implements linger.Client.
func (c *Client) Unsent(most uint32) uint32 {
	s, ok := c.look()
	if !ok {
		return most
	}
	c.unread.see(s)
	return min(most, uint32(c.unread.left))
}

// Cut implements linger.Client.
func (c *Client) Cut() { c.Close(false) }

// look asks the kernel. It is nobody else's socket that it asks: the peer's address is
// compared each time.
func (c *Client) look() (s sight, ok bool) {
	fd := int(c.unread.fd.Load()) - 1
	if fd < 0 || peerOf(fd) != c.remote {
		if fd, ok = socketOf(c.local, c.remote); !ok {
			return s, false
		}
		c.unread.fd.Store(int32(fd) + 1)
	}
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return s, false
	}
	queue, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	return sight{info.Bytes_acked, queue}, err == nil
}

// socketOf finds the socket of this process that is connected to a peer. If there are
// several it is the one with that local address, which need not be the socket's own, as
// Envoy shows the original destination.
func socketOf(local, remote string) (fd int, ok bool) {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return 0, false
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return 0, false
	}
	found := 0
	for _, name := range names {
		n, err := strconv.Atoi(name)
		if err != nil || peerOf(n) != remote {
			continue
		}
		if a, err := unix.Getsockname(n); err == nil && addressOf(a) == local {
			return n, true
		}
		fd = n
		found++
	}
	return fd, found == 1
}

func peerOf(fd int) string {
	a, err := unix.Getpeername(fd)
	if err != nil {
		return ""
	}
	return addressOf(a)
}

func addressOf(a unix.Sockaddr) string {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port)).String()
	}
	return ""
}
