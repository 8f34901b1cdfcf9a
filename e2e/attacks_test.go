package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// The attacks of this file are small in make test, and as large as they were
// found in make hostile.
func large() bool { return *hostileFrames >= 1_000_000 }

// besieged is an Envoy under attack. An honest client calls all the while on a
// listener of its own: its calls are answered, and none takes long.
type besieged struct {
	*envoytest.Envoy
	quiet int64 // RSS before
	most  atomic.Int64
	stop  chan struct{}
	done  sync.WaitGroup
}

// besiege starts an Envoy with the listener "target", to the cluster "s1" on
// port, and the honest client's.
func besiege(t *testing.T, v variant, target envoytest.M, port int) *besieged {
	t.Helper()
	honest := scripted.Serve(t, scripted.Answer("here"))
	o := v.options()
	o.Clusters = []envoytest.Resource{
		envoytest.Cluster("s1", envoytest.At(port)...),
		envoytest.Cluster("honest", envoytest.At(honest.Port)...),
	}
	o.Listeners = []envoytest.Resource{
		envoytest.Loopback(envoytest.Socket()),
		envoytest.Listener("target", envoytest.Proxy(target)),
		envoytest.Listener("honest", envoytest.Proxy(envoytest.Dubbo("honest", envoytest.Route("honest", nil)))),
	}
	b := &besieged{Envoy: envoytest.Start(t, o), stop: make(chan struct{})}
	c := scripted.Dial(t, b.Port("honest"))
	c.Ask(0, dubbotest.Request{})
	c.Read()
	b.quiet = b.RSS()
	b.done.Go(func() {
		for id := uint64(1); ; id++ {
			select {
			case <-b.stop:
				return
			case <-time.After(time.Millisecond):
			}
			begin := time.Now()
			if _, err := c.Write(dubbotest.Request{ID: id}.Bytes()); err != nil {
				t.Errorf("honest call %d: %v", id, err)
				return
			}
			if f, err := c.TryRead(); err != nil || f.ID != id || f.Status != statusOK {
				t.Errorf("honest call %d: %+v, %v", id, f, err)
				return
			}
			b.most.Store(max(b.most.Load(), int64(time.Since(begin))))
		}
	})
	t.Cleanup(func() {
		close(b.stop)
		b.done.Wait()
		most := time.Duration(b.most.Load())
		t.Logf("the slowest honest call took %v", most.Round(time.Millisecond)) // none has timed out
	})
	return b
}

// grown is by how many bytes RSS has grown.
func (b *besieged) grown() int64 { return b.RSS() - b.quiet }

// peak is by how much RSS grows at the most, until it has not for a while.
func (b *besieged) peak() (most int64) {
	for last := time.Now(); time.Since(last) < 2*time.Second; time.Sleep(20 * time.Millisecond) {
		if g := b.grown(); g > most+1<<20 {
			most, last = g, time.Now()
		}
	}
	return most
}

// holds waits until what waits has grown RSS by less than a bound, and has peak stay far
// from all that was sent: on a busy machine Go's collector comes late.
func (b *besieged) holds(t *testing.T, most, bound, all int64) {
	t.Helper()
	require.Less(t, most, (bound+all)/2, "of %d MiB that were sent", all>>20)
	grown := int64(0)
	ok := eventually(patience, func() bool {
		grown = b.grown()
		return grown < bound
	})
	require.True(t, ok, "RSS stays at %d MiB more than before, which may be %d", grown>>20, bound>>20)
}

// asksFor reports whether a request calls a method.
func asksFor(req dubbotest.Parsed, method string) bool {
	return bytes.Contains(req.Body, append([]byte{byte(len(method))}, method...))
}

// recovers waits until RSS is near where it was, but for what Envoy's own allocator keeps
// of what Envoy has freed.
func (b *besieged) recovers(t *testing.T) {
	t.Helper()
	const near = 96 << 20
	var grown, kept int64
	for end := time.Now().Add(90 * time.Second); ; time.Sleep(250 * time.Millisecond) {
		kept = b.Kept()
		if grown = b.grown(); grown-kept < near {
			return
		}
		require.True(t, time.Now().Before(end), "RSS has not come back: %d MiB more than before, of which Envoy's allocator keeps %d", grown>>20, kept>>20)
	}
}

// TestHostileUnfinishedFrames: many clients send all of a large frame but its
// last byte.
func TestHostileUnfinishedFrames(t *testing.T) {
	frames := map[string][]byte{
		"dubbo":  dubbotest.Request{ID: 1, Argument: string(bytes.Repeat([]byte("x"), 8_300_000))}.Bytes(),
		"thrift": binary.BigEndian.AppendUint32(nil, 15<<20),
	}
	frames["thrift"] = append(frames["thrift"], scripted.ThriftMessage{Type: scripted.ThriftCall, Method: "big"}.Bytes()[4:]...)
	frames["thrift"] = append(frames["thrift"], make([]byte, 15<<20+4-len(frames["thrift"]))...)
	once(t, func(t *testing.T, v variant) {
		for protocol, frame := range frames {
			t.Run(protocol, func(t *testing.T) {
				clients := 600 << 20 / len(frame)
				if large() {
					clients = 200
				}
				b := besiege(t, v, envoytest.Protocol(protocol, "target", envoytest.Route("s1", nil)), 1)
				var conns []net.Conn
				var senders sync.WaitGroup
				for range clients {
					c := b.Dial("target")
					conns = append(conns, c)
					senders.Go(func() {
						c.Write(frame[:len(frame)-1])
					})
				}
				most := b.peak()
				t.Logf("%d clients with %d MB each: RSS grew by %d MiB", clients, len(frame)>>20, most>>20)
				// 64 MiB of each worker, a frame beyond, a mebibyte in Envoy's buffer of
				// each client, and what Go's collector leaves: as much again.
				bound := 4*(64<<20+2*len(frame)) + clients<<20
				if v.golang { // what waits of all clients of a worker, whom Envoy reads all the same, and as much again
					bound += 2 * v.workers * 32 << 20
				}
				b.holds(t, most, int64(bound), int64(clients*len(frame)))
				for _, c := range conns {
					c.Close()
				}
				senders.Wait()
				b.recovers(t)
			})
		}
	})
}

// TestHostileClientsThatNeverRead: what each may leave unread is bounded, and so
// is what all may together.
func TestHostileClientsThatNeverRead(t *testing.T) {
	once(t, func(t *testing.T, v variant) {
		clients, answers := 50, 40
		if large() {
			clients, answers = 500, 8
		}
		s := scripted.Serve(t, scripted.Answer(string(bytes.Repeat([]byte("x"), 1<<20))))
		b := besiege(t, v, envoytest.Dubbo("target", envoytest.Route("s1", nil)), s.Port)
		var most int64
		var conns []net.Conn
		for range clients {
			c := b.Dial("target")
			conns = append(conns, c)
			for id := range answers {
				c.Write(dubbotest.Request{ID: uint64(id)}.Bytes())
			}
			most = max(most, b.grown())
		}
		most = max(most, b.peak())
		t.Logf("%d clients that never read, with %d MB of answers each: RSS grew by %d MiB", clients, answers, most>>20)
		// 128 MiB of each worker, up to two answers in Envoy's buffer of each client,
		// and what Go's collector leaves.
		b.holds(t, most, int64(2*2*128<<20+3*clients<<20), int64(clients*answers<<20))
		for _, c := range conns {
			c.Close()
		}
		b.recovers(t)
	})
}

// TestClientsThatReadGetLargeAnswers: what has been read does not count against
// them.
func TestClientsThatReadGetLargeAnswers(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := scripted.Serve(t, scripted.Answer(string(bytes.Repeat([]byte("x"), 7<<20))))
		e := v.start(t, toOne("s1"), envoytest.Cluster("s1", envoytest.At(s.Port)...))
		for range 5 {
			c := scripted.Dial(t, e.Port("dubbo"))
			for id := range uint64(4) {
				c.Ask(id, dubbotest.Request{})
			}
			for range 4 {
				require.EqualValues(t, statusOK, c.Read().Status)
			}
			c.Close()
		}
		e.WaitStat(stats+"downstream_overflow", envoytest.Exactly(0))
	})
}

// TestHostileOrderedAnswers: requests of one id are answered in their order, and
// the first one's answer does not come.
func TestHostileOrderedAnswers(t *testing.T) {
	once(t, func(t *testing.T, v variant) {
		clients := 20
		if large() {
			clients = 100
		}
		text := string(bytes.Repeat([]byte("x"), 1<<20))
		s := scripted.Serve(t, func(c *scripted.Conn, req dubbotest.Parsed) {
			if !asksFor(req, "never") {
				c.Write(dubbotest.Response(req.ID, text))
			}
		})
		b := besiege(t, v, envoytest.Dubbo("target", envoytest.Route("s1", nil)), s.Port)
		var most int64
		for range clients {
			c := b.Dial("target")
			defer c.Close()
			frames := dubbotest.Request{ID: 7, Method: "never"}.Bytes()
			for range 100 {
				frames = append(frames, dubbotest.Request{ID: 7}.Bytes()...)
			}
			c.Write(frames)
			most = max(most, b.grown())
		}
		most = max(most, b.peak())
		t.Logf("%d clients for whom 100 MiB wait each: RSS grew by %d MiB", clients, most>>20)
		// 128 MiB of each worker, what Go's collector leaves, and as much again of what
		// is on its way.
		b.holds(t, most, int64(2*3*128<<20), int64(clients*100<<20))
	})
}

// TestHostileAttributes: small requests of many small attachments that are not
// answered.
func TestHostileAttributes(t *testing.T) {
	once(t, func(t *testing.T, v variant) {
		n := 10_000
		if large() {
			n = 40_000
		}
		s := scripted.Serve(t, scripted.Never)
		b := besiege(t, v, envoytest.Dubbo("target", envoytest.Route("s1", map[string]string{"method": "sayHello"})), s.Port)
		var att [][2]string
		for i := range 900 {
			att = append(att, [2]string{string(rune('a' + i%26)), ""})
		}
		frame := dubbotest.Request{ID: 1, Attachments: att}.Bytes()
		total := 0
		for range 10 {
			c := b.Dial("target")
			for id := range n / 10 {
				binary.BigEndian.PutUint64(frame[4:], uint64(id))
				k, err := c.Write(frame)
				require.NoError(t, err)
				total += k
			}
			c.Close()
		}
		require.Eventually(t, func() bool { return s.Requests() >= int64(n)*9/10 }, 30*time.Second, 50*time.Millisecond)
		grown := b.grown()
		t.Logf("%d requests of %d bytes without an answer: RSS grew by %d MiB", n, len(frame), grown>>20)
		require.Less(t, grown, int64(64<<20)+4*int64(total))
	})
}

// TestHostileServerThatFloods sends answers that nobody has asked for.
func TestHostileServerThatFloods(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		var closed atomic.Int64
		s := scripted.Serve(t, func(c *scripted.Conn, req dubbotest.Parsed) {
			c.Write(dubbotest.Response(req.ID, "first"))
			flood := bytes.Repeat(dubbotest.Response(1<<40, "unasked"), 1000)
			for range 10_000 {
				if _, err := c.Write(flood); err != nil {
					closed.Add(1)
					return
				}
			}
		})
		b := besiege(t, v, envoytest.Dubbo("target", envoytest.Route("s1", nil)), s.Port)
		c := scripted.Dial(t, b.Port("target"))
		c.Ask(1, dubbotest.Request{})
		require.Equal(t, "first", c.Read().Text())
		require.Eventually(t, func() bool { return closed.Load() > 0 }, 20*time.Second, 10*time.Millisecond)
		c.Ask(2, dubbotest.Request{}) // over another connection
		require.Equal(t, "first", c.Read().Text())
	})
}

// TestHostileRules: ordinary expressions are asked about attachments as large as a
// frame can be, at which they do not look, and such as they do.
func TestHostileRules(t *testing.T) {
	once(t, func(t *testing.T, v variant) {
		requests := 20
		if large() {
			requests = 200
		}
		s := scripted.Serve(t, scripted.Answer("served"))
		var routes []any
		for i := range 20 {
			r := envoytest.Route("s1", nil)
			r["match"] = envoytest.M{"metadata": []any{envoytest.M{
				"name": "tenant", "string_match": envoytest.M{"safe_regex": envoytest.M{"regex": fmt.Sprintf(".*-canary%d", i)}},
			}}}
			routes = append(routes, r)
		}
		b := besiege(t, v, envoytest.Dubbo("target", append(routes, envoytest.Route("s1", nil))...), s.Port)
		var frames [][]byte
		for _, size := range []int{8_000_000, 4000} {
			frames = append(frames, dubbotest.Request{Attachments: [][2]string{{"tenant", strings.Repeat("-canary", size/7)}}}.Bytes())
		}
		var senders sync.WaitGroup
		for range 4 { // on all workers
			c := scripted.Dial(t, b.Port("target"))
			senders.Go(func() {
				for range requests {
					for i, frame := range frames {
						_, err := c.Write(frame)
						if err == nil {
							var f dubbotest.Parsed
							if f, err = c.TryRead(); err == nil && (f.Status == statusOK) != (i > 0) {
								err = fmt.Errorf("status %d: %s", f.Status, f.Text())
							}
						}
						if err != nil {
							t.Errorf("%d bytes: %v", len(frame), err)
							return
						}
					}
				}
			})
		}
		senders.Wait()
		require.EqualValues(t, 4*requests, s.Requests())
	})
}

// TestHostileOneways: what has been learnt of oneways that look like calls is not
// driven out by a client that makes names up, nor by a listener's update; it costs
// no call its error.
func TestHostileOneways(t *testing.T) {
	once(t, func(t *testing.T, v variant) {
		names := 5000
		if large() {
			names = 100_000
		}
		var hangs atomic.Bool
		s := scripted.ServeThrift(t, func(c *scripted.Conn, req scripted.ThriftMessage) {
			if req.Method != "fire" && !hangs.Load() {
				scripted.ThriftEcho(c, req)
			}
		})
		target := func(idle string) envoytest.Resource {
			config := envoytest.Protocol("thrift", "target", envoytest.Route("s1", nil))
			config["protocol"].(envoytest.M)["multiplexing"] = true
			config["request_timeout"] = "1s"
			config["idle_timeout"] = idle
			return envoytest.Listener("target", envoytest.Proxy(config))
		}
		o := v.options()
		loopback := envoytest.Loopback(envoytest.Socket())
		o.Clusters = []envoytest.Resource{envoytest.Cluster("s1", envoytest.At(s.Port)...)}
		o.Listeners = []envoytest.Resource{loopback, target("60s")}
		e := envoytest.Start(t, o)
		const stats = "meta_protocol.thrift.target."
		id := int32(0)
		ask := func(c *scripted.ThriftClient, method string) {
			t.Helper()
			id++
			c.Ask(id, method, "x")
			require.Equal(t, scripted.ThriftMessage{Type: scripted.ThriftReply, Method: method, SeqID: id, Text: "x"}, c.Read())
		}
		fire := func(c *scripted.ThriftClient) {
			t.Helper()
			before := e.Stat(stats + "oneway_presumed")
			id++
			c.Ask(id, "fire", "x")
			ask(c, "ask")
			e.WaitStat(stats+"oneway_presumed", envoytest.Exactly(before+1))
		}
		c := scripted.DialThrift(t, e.Port("target"))
		fire(c)
		liar := scripted.DialThrift(t, e.Port("target"))
		for i := range names {
			ask(liar, fmt.Sprint("junk", i))
		}
		fire(c)
		require.True(t, e.SetListeners(loopback, target("61s")))
		for range 4 { // on all workers
			c := scripted.DialThrift(t, e.Port("target"))
			fire(c)
			hangs.Store(true)
			for range 8 {
				id++
				c.Ask(id, "ask", "x")
			}
			seen := map[int32]bool{}
			for range 8 {
				m := c.Read()
				require.EqualValues(t, scripted.ThriftException, m.Type)
				require.Equal(t, "ask", m.Method)
				seen[m.SeqID] = true
			}
			require.Len(t, seen, 8)
			hangs.Store(false)
			ask(c, "ask")
		}
		checkCountersOf(t, e, stats)
	})
}

// TestOneLargeFrameCostsOneCall: one above the limit, of either side.
func TestOneLargeFrameCostsOneCall(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		release := make(chan struct{})
		s := scripted.Serve(t, func(c *scripted.Conn, req dubbotest.Parsed) {
			switch {
			case asksFor(req, "large"):
				c.Write(dubbotest.Response(req.ID, string(bytes.Repeat([]byte("x"), 200_000))))
			case asksFor(req, "later"):
				go func() {
					<-release
					c.Write(dubbotest.Response(req.ID, "later"))
				}()
			default:
				c.Write(dubbotest.Response(req.ID, "here"))
			}
		})
		config := toOne("s1")
		config["limits"] = envoytest.M{"max_frame_bytes": 100_000}
		config["upstream"] = envoytest.M{"max_connections": 1}
		e := v.start(t, config, envoytest.Cluster("s1", envoytest.At(s.Port)...))
		c := scripted.Dial(t, e.Port("dubbo"))
		c.Ask(1, dubbotest.Request{Method: "later"})
		c.Ask(2, dubbotest.Request{Method: "large"})
		f := c.Read()
		require.EqualValues(t, 2, f.ID)
		require.NotEqualValues(t, statusOK, f.Status)
		require.Contains(t, f.Text(), "larger than the limit")
		c.Ask(3, dubbotest.Request{Argument: string(bytes.Repeat([]byte("x"), 500_000))})
		f = c.Read()
		require.EqualValues(t, 3, f.ID)
		require.NotEqualValues(t, statusOK, f.Status)
		c.Ask(4, dubbotest.Request{})
		require.Equal(t, "here", c.Read().Text())
		close(release)
		f = c.Read()
		require.EqualValues(t, 1, f.ID)
		require.Equal(t, "later", f.Text())
	})
}
