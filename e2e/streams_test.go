package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

// streamItems is how many messages a long stream has.
const streamItems = 10_000

// slowItems is how many messages a stream to a slow reader has, of slowSize bytes:
// 300 MB together.
const (
	slowItems = 15_000
	slowSize  = 20_000
)

// holdsLittle waits until Envoy holds but a part of the bytes that it has been given
// since its RSS was before. What is held for a peer that does not read stays so.
func holdsLittle(t *testing.T, e *envoytest.Envoy, before, given int64) {
	t.Helper()
	grown := int64(0)
	ok := eventually(patience, func() bool {
		grown = e.RSS() - before
		return grown < given/4
	})
	require.True(t, ok, "of %d bytes that it was given Envoy has grown by %d", given, grown)
}

// brpcItem is the payload of a stream's n-th message.
func brpcItem(n, size int) []byte {
	b := make([]byte, size)
	binary.BigEndian.PutUint64(b, uint64(n))
	for i := 8; i < size; i++ {
		b[i] = byte(n + i)
	}
	return b
}

// brpcStreams is a scripted server that accepts streams, and echoes calls and
// messages.
type brpcStreams struct {
	*scripted.BRPCServer
	// accepted is given each stream that is opened, closed the client's id of
	// each that the client closes.
	accepted chan brpcStream
	closed   chan uint64
	// stuck keeps the server from reading a stream's connection any further,
	// until it is closed.
	stuck chan struct{}
	mute  atomic.Bool // messages are not echoed
	got   atomic.Int64
	wrong atomic.Pointer[string]
}

// brpcStream is the server's side of a stream.
type brpcStream struct {
	c              *scripted.Conn
	client, server uint64
	opening        brpctest.Parsed
}

func (s brpcStream) frame(kind int, payload []byte) []byte {
	return brpctest.StreamFrame(s.client, s.server, kind, payload)
}

func serveBRPCStreams(t *testing.T) *brpcStreams {
	t.Helper()
	s := &brpcStreams{accepted: make(chan brpcStream, 100), closed: make(chan uint64, 100)}
	var ids atomic.Uint64
	s.BRPCServer = scripted.ServeBRPC(t, func(c *scripted.Conn, f brpctest.Parsed) {
		switch {
		case f.Magic == "PRPC" && f.Opens != 0:
			st := brpcStream{c: c, client: f.Opens, server: 1<<40 + ids.Add(1), opening: f}
			c.Write(brpctest.Response{ID: f.ID, Stream: st.server, Body: []byte("accepted")}.InStream(st.client))
			s.accepted <- st
		case f.Magic == "PRPC":
			scripted.BRPCEcho(c, f)
		case f.Kind == brpctest.Data:
			if s.stuck != nil {
				<-s.stuck
			}
			n := int(s.got.Add(1)) - 1
			if !slices.Equal(f.Payload, brpcItem(n, len(f.Payload))) {
				wrong := fmt.Sprintf("item %d is not as it was sent", n)
				s.wrong.CompareAndSwap(nil, &wrong)
			}
			if !s.mute.Load() {
				c.Write(brpctest.StreamFrame(f.From, f.To, brpctest.Data, f.Payload))
			}
		case f.Kind == brpctest.Close:
			s.closed <- f.From
		}
	})
	return s
}

// open opens a stream on a client's connection and waits for both sides.
func (s *brpcStreams) open(t *testing.T, c *scripted.BRPCClient, callID, id uint64) brpcStream {
	t.Helper()
	c.Send(brpctest.Request{ID: callID, Stream: id, Body: []byte("open")}.Bytes())
	a := readInStream(t, c.Read(), id)
	require.Equal(t, callID, a.ID)
	require.Zero(t, a.Code, a.Text)
	require.Equal(t, "accepted", string(a.Payload))
	st := <-s.accepted
	require.Equal(t, id, st.client)
	require.Equal(t, st.server, a.Opens)
	return st
}

// readInStream takes the answer out of a stream's first frame.
func readInStream(t *testing.T, f brpctest.Parsed, id uint64) brpctest.Parsed {
	t.Helper()
	require.Equal(t, "STRM", f.Magic)
	require.Equal(t, id, f.To)
	in, rest := brpctest.Parse(f.Payload)
	require.Len(t, in, 1)
	require.Empty(t, rest)
	return in[0]
}

// checkStreamCounters proves that the counters of streams add up when none is
// open any more.
func checkStreamCounters(t *testing.T, e *envoytest.Envoy, stats string, want map[string]int64) {
	t.Helper()
	for name, n := range want {
		e.WaitStat(stats+name, envoytest.Exactly(n))
	}
	e.WaitStat(stats+"stream_active", envoytest.Exactly(0))
	checkCountersOf(t, e, stats)
}

// TestBRPCStream carries a long stream in both directions beside calls on the
// same connection.
func TestBRPCStream(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		s := serveBRPCStreams(t)
		e := v.start(t, brpcTo("s1"), envoytest.Cluster("s1", envoytest.At(s.Port)...))
		c := scripted.DialBRPC(t, e.Port("brpc"))
		const id, size = 7, 1000
		st := s.open(t, c, 1, id)
		sent := make(chan error, 1)
		go func() {
			for n := range streamItems {
				b := brpctest.StreamFrame(st.server, id, brpctest.Data, brpcItem(n, size))
				if n%100 == 0 {
					b = append(b, brpctest.Request{ID: uint64(n), Body: []byte(fmt.Sprint(n))}.Bytes()...)
				}
				if _, err := c.Write(b); err != nil {
					sent <- err
					return
				}
			}
			sent <- nil
		}()
		items, calls := 0, map[uint64]bool{}
		for items < streamItems || len(calls) < streamItems/100 {
			f := c.Read()
			if f.Magic == "PRPC" {
				require.Equal(t, fmt.Sprint(f.ID), string(f.Payload))
				require.False(t, calls[f.ID])
				calls[f.ID] = true
				continue
			}
			require.EqualValues(t, id, f.To)
			require.Equal(t, st.server, f.From)
			require.Equal(t, brpcItem(items, size), f.Payload, items)
			items++
		}
		require.NoError(t, <-sent)
		require.Nil(t, s.wrong.Load())

		c.Send(brpctest.StreamFrame(st.server, id, brpctest.Close, nil))
		require.EqualValues(t, id, <-s.closed)
		require.Eventually(t, func() bool { return s.Open() < int(s.Connections()) }, patience, tick, "a stream's connection is its own")
		c.Send(brpctest.StreamFrame(st.server, id, brpctest.Data, []byte("too late")))
		checkStreamCounters(t, e, brpcStats, map[string]int64{
			"request_stream": 1, "request_twoway": streamItems / 100, "stream_stray": 1, "stream_reset": 0, "stream_refused": 0,
		})
	})
}

// TestBRPCStreamsOfManyClients: streams with the same numbers do not mix, and
// each server closes its own.
func TestBRPCStreamsOfManyClients(t *testing.T) {
	t.Parallel()
	const clients, streams, items = 8, 4, 100
	once(t, func(t *testing.T, v variant) {
		s := serveBRPCStreams(t)
		s.mute.Store(true)
		e := v.start(t, brpcTo("s1"), envoytest.Cluster("s1", envoytest.At(s.Port)...))
		var open []brpcStream
		cs := make([]*scripted.BRPCClient, clients)
		for i := range cs {
			cs[i] = scripted.DialBRPC(t, e.Port("brpc"))
			for id := range uint64(streams) {
				open = append(open, s.open(t, cs[i], id, id+1))
			}
		}
		e.WaitStat(brpcStats+"stream_active", envoytest.Exactly(clients*streams))
		var writers sync.WaitGroup
		for _, st := range open {
			writers.Go(func() {
				for n := range items {
					st.c.Write(st.frame(brpctest.Data, fmt.Append(nil, st.server, " ", n)))
				}
				st.c.Write(st.frame(brpctest.Close, nil))
			})
		}
		for i, c := range cs {
			next := map[uint64]int{}
			for closed := 0; closed < streams; {
				f := c.Read()
				st := open[i*streams+int(f.To)-1]
				require.Equal(t, st.server, f.From)
				if f.Kind == brpctest.Close {
					require.Equal(t, items, next[f.To])
					closed++
					continue
				}
				require.Equal(t, fmt.Sprint(st.server, " ", next[f.To]), string(f.Payload))
				next[f.To]++
			}
		}
		writers.Wait()
		require.Eventually(t, func() bool { return s.Open() == 0 }, patience, tick)
		checkStreamCounters(t, e, brpcStats, map[string]int64{"request_stream": clients * streams, "stream_reset": 0})
	})
}

// TestBRPCStreamToASlowClient: what a server sends to a client that does not
// read waits where it is.
func TestBRPCStreamToASlowClient(t *testing.T) {
	once(t, func(t *testing.T, v variant) {
		s := serveBRPCStreams(t)
		e := v.start(t, brpcTo("s1"), envoytest.Cluster("s1", envoytest.At(s.Port)...))
		honest := scripted.DialBRPC(t, e.Port("brpc"))
		call := func() {
			t.Helper()
			honest.Send(brpctest.Request{ID: 1}.Bytes())
			require.EqualValues(t, 1, honest.Read().ID)
		}
		call()
		c := scripted.DialBRPC(t, e.Port("brpc"))
		st := s.open(t, c, 1, 7)
		before := e.RSS()
		var written atomic.Int64
		go func() {
			for n := range slowItems {
				if _, err := st.c.Write(st.frame(brpctest.Data, brpcItem(n, slowSize))); err != nil {
					return
				}
				written.Add(1)
			}
			st.c.Write(st.frame(brpctest.Close, nil))
		}()
		e.WaitStat("cluster.s1.upstream_flow_control_paused_reading_total", envoytest.AtLeast(1))
		call()
		holdsLittle(t, e, before, slowItems*slowSize)
		require.Less(t, written.Load(), int64(slowItems))
		for n := range slowItems {
			f := c.Read()
			require.Equal(t, brpcItem(n, slowSize), f.Payload, n)
			if n%500 == 0 {
				call()
			}
		}
		require.Equal(t, brpctest.Close, c.Read().Kind)
		holdsLittle(t, e, before, slowItems*slowSize)
		checkStreamCounters(t, e, brpcStats, map[string]int64{"request_stream": 1, "stream_reset": 0, "downstream_overflow": 0})
	})
}

// TestBRPCStreamToASlowServer: a client whose stream's server does not read is
// not read either.
func TestBRPCStreamToASlowServer(t *testing.T) {
	once(t, func(t *testing.T, v variant) {
		s := serveBRPCStreams(t)
		s.stuck = make(chan struct{})
		release := sync.OnceFunc(func() { close(s.stuck) })
		t.Cleanup(release)
		s.mute.Store(true)
		e := v.start(t, brpcTo("s1"), envoytest.Cluster("s1", envoytest.At(s.Port)...))
		honest := scripted.DialBRPC(t, e.Port("brpc"))
		call := func() {
			t.Helper()
			honest.Send(brpctest.Request{ID: 1}.Bytes())
			require.EqualValues(t, 1, honest.Read().ID)
		}
		call()
		c := scripted.DialBRPC(t, e.Port("brpc"))
		st := s.open(t, c, 1, 7)
		before := e.RSS()
		sent := make(chan error, 1)
		var written atomic.Int64
		go func() {
			for n := range slowItems {
				if _, err := c.Write(brpctest.StreamFrame(st.server, 7, brpctest.Data, brpcItem(n, slowSize))); err != nil {
					sent <- err
					return
				}
				written.Add(1)
			}
			_, err := c.Write(brpctest.StreamFrame(st.server, 7, brpctest.Close, nil))
			sent <- err
		}()
		// Envoy stops taking bytes for a server at a megabyte and goes on at half.
		e.WaitStat("cluster.s1.upstream_cx_tx_bytes_buffered", envoytest.AtLeast(mib/2))
		call()
		holdsLittle(t, e, before, slowItems*slowSize)
		require.Less(t, written.Load(), int64(slowItems))
		release()
		require.NoError(t, <-sent)
		require.EqualValues(t, 7, <-s.closed)
		require.EqualValues(t, slowItems, s.got.Load())
		require.Nil(t, s.wrong.Load())
		holdsLittle(t, e, before, slowItems*slowSize)
		checkStreamCounters(t, e, brpcStats, map[string]int64{"request_stream": 1, "stream_reset": 0})
	})
}

// TestOnlyBusyBRPCStreamsArePaused: a client that reads late costs little for each
// of its streams that have nothing to say.
func TestOnlyBusyBRPCStreamsArePaused(t *testing.T) {
	t.Parallel()
	const streams = 50
	once(t, func(t *testing.T, v variant) {
		s := serveBRPCStreams(t)
		e := v.start(t, brpcTo("s1"), envoytest.Cluster("s1", envoytest.At(s.Port)...))
		c := scripted.DialBRPC(t, e.Port("brpc"))
		var open []brpcStream
		for id := range uint64(streams) {
			open = append(open, s.open(t, c, id, id+1))
		}
		go func() {
			for n := range 1000 {
				if _, err := open[0].c.Write(open[0].frame(brpctest.Data, brpcItem(n, slowSize))); err != nil {
					return
				}
			}
		}()
		const paused = "cluster.s1.upstream_flow_control_paused_reading_total"
		e.WaitStat(paused, envoytest.AtLeast(1))
		honest := scripted.DialBRPC(t, e.Port("brpc"))
		honest.Send(brpctest.Request{ID: 1}.Bytes())
		require.EqualValues(t, 1, honest.Read().ID)
		// It may have been blocked more than once before it was full.
		require.Less(t, e.Stat(paused), int64(streams/2))
		for n := range 1000 {
			require.Equal(t, brpcItem(n, slowSize), c.Read().Payload, n)
		}
		for _, st := range open[1:] {
			st.c.Write(st.frame(brpctest.Data, []byte("still there")))
			require.Equal(t, st.client, c.Read().To)
		}
		c.Close()
		checkStreamCounters(t, e, brpcStats, map[string]int64{"request_stream": streams, "downstream_overflow": 0})
	})
}

// TestASlowServerGetsAllBehindAClose of its stream, however long it takes.
func TestASlowServerGetsAllBehindAClose(t *testing.T) {
	t.Parallel()
	const items = 210 // of slowSize: 4 MiB
	once(t, func(t *testing.T, v variant) {
		for name, end := range map[string]func(c *scripted.BRPCClient, st brpcStream){
			"closed": func(c *scripted.BRPCClient, st brpcStream) {
				c.Send(brpctest.StreamFrame(st.server, st.client, brpctest.Close, nil))
			},
			"left": func(c *scripted.BRPCClient, _ brpcStream) { c.Close() },
		} {
			t.Run(name, func(t *testing.T) {
				s := serveBRPCStreams(t)
				s.mute.Store(true)
				s.stuck = make(chan struct{})
				release := sync.OnceFunc(func() { close(s.stuck) })
				t.Cleanup(release)
				e := v.start(t, brpcTo("s1"), envoytest.Cluster("s1", envoytest.At(s.Port)...))
				c := scripted.DialBRPC(t, e.Port("brpc"))
				st := s.open(t, c, 1, 7)
				require.NoError(t, st.c.Conn.(*net.TCPConn).SetReadBuffer(64<<10))
				sent := make(chan struct{})
				go func() {
					defer close(sent)
					for n := range items {
						c.Write(brpctest.StreamFrame(st.server, 7, brpctest.Data, brpcItem(n, slowSize)))
					}
					end(c, st)
				}()
				select {
				case <-sent:
					e.WaitStat(brpcStats+"stream_active", envoytest.Exactly(0))
				case <-time.After(time.Second): // the client is not read any more
				}
				time.Sleep(7 * time.Second) // all that was given to such a server once
				release()
				require.Eventually(t, func() bool { return s.got.Load() == items }, patience, tick)
				require.Nil(t, s.wrong.Load())
				require.Eventually(t, func() bool { return s.Open() == 0 }, patience, tick)
				<-sent
			})
		}
	})
}

// TestABRPCStreamThatIsClosedBeforeTheAnswer gets it, or an error in time.
func TestABRPCStreamThatIsClosedBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		var answer atomic.Bool
		var opening atomic.Pointer[brpctest.Parsed]
		s := scripted.ServeBRPC(t, func(c *scripted.Conn, f brpctest.Parsed) {
			switch {
			case f.Opens != 0:
				opening.Store(&f)
				c.Write(brpctest.StreamFrame(f.Opens, 9, brpctest.Reset, nil))
			case f.Kind == brpctest.Close && answer.Load():
				o := opening.Load()
				c.Write(brpctest.Response{ID: o.ID, Stream: 9, Body: []byte("accepted")}.InStream(o.Opens))
			}
		})
		config := brpcTo("s1")
		config["request_timeout"] = "1s"
		e := v.start(t, config, envoytest.Cluster("s1", envoytest.At(s.Port)...))
		c := scripted.DialBRPC(t, e.Port("brpc"))
		for id, served := range []bool{true, false} {
			answer.Store(served)
			stream := uint64(id + 5)
			c.Send(brpctest.Request{ID: uint64(id), Stream: stream, Body: []byte("open")}.Bytes())
			require.Equal(t, brpctest.Reset, c.Read().Kind)
			c.Send(brpctest.StreamFrame(0, stream, brpctest.Close, nil))
			f := c.Read()
			if served {
				f = readInStream(t, f, stream)
			} else {
				require.EqualValues(t, 1008, f.Code)
			}
			require.EqualValues(t, id, f.ID)
		}
		checkStreamCounters(t, e, brpcStats, map[string]int64{"request_stream": 2, "request_timeout": 1, "stream_reset": 0, "stream_stray": 0})
	})
}

// TestBRPCStreamIsLost ends streams from each side, with and without a word.
func TestBRPCStreamIsLost(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		start := func(t *testing.T, config envoytest.M) (*brpcStreams, *envoytest.Envoy) {
			t.Helper()
			s := serveBRPCStreams(t)
			return s, v.start(t, config, envoytest.Cluster("s1", envoytest.At(s.Port)...))
		}
		// ended waits until no connection of a stream is open any more.
		ended := func(t *testing.T, s *brpcStreams) {
			t.Helper()
			require.Eventually(t, func() bool { return s.Open() == 0 }, patience, tick)
		}
		t.Run("the client leaves", func(t *testing.T) {
			s, e := start(t, brpcTo("s1"))
			for _, leave := range []func(*scripted.BRPCClient){
				func(c *scripted.BRPCClient) { c.Close() },
				func(c *scripted.BRPCClient) { c.SetLinger(0); c.Close() },
			} {
				c := scripted.DialBRPC(t, e.Port("brpc"))
				st := s.open(t, c, 1, 7)
				c.Send(brpctest.StreamFrame(st.server, 7, brpctest.Data, brpcItem(int(s.got.Load()), 100)))
				require.Equal(t, brpctest.Data, c.Read().Kind)
				leave(c)
				ended(t, s)
			}
			require.Nil(t, s.wrong.Load())
			checkStreamCounters(t, e, brpcStats, map[string]int64{"request_stream": 2, "request_abandoned": 0, "stream_abandoned": 2, "stream_reset": 0})
		})
		t.Run("the server ends it", func(t *testing.T) {
			s, e := start(t, brpcTo("s1"))
			for kind, name := range map[int]string{brpctest.Close: "close", brpctest.Reset: "reset"} {
				c := scripted.DialBRPC(t, e.Port("brpc"))
				st := s.open(t, c, 1, 7)
				st.c.Write(st.frame(kind, nil))
				require.Equal(t, kind, c.Read().Kind, name)
				ended(t, s)
			}
			checkStreamCounters(t, e, brpcStats, map[string]int64{"request_stream": 2, "stream_reset": 0})
		})
		t.Run("the server is gone", func(t *testing.T) {
			s, e := start(t, brpcTo("s1"))
			for i, leave := range []func(brpcStream){
				func(st brpcStream) { st.c.Close() },
				func(st brpcStream) { st.c.Conn.(*net.TCPConn).SetLinger(0); st.c.Close() },
				func(st brpcStream) { st.c.Write([]byte("garbage of sixteen or more")) },
			} {
				c := scripted.DialBRPC(t, e.Port("brpc"))
				st := s.open(t, c, 1, 7)
				begun := time.Now()
				leave(st)
				f := c.Read()
				require.Equal(t, brpctest.Reset, f.Kind, i)
				require.EqualValues(t, 7, f.To)
				require.Less(t, time.Since(begun), 5*time.Second)
				// The connection goes on.
				c.Send(brpctest.Request{ID: 9, Body: []byte("x")}.Bytes())
				require.Equal(t, "x", string(c.Read().Payload))
			}
			checkStreamCounters(t, e, brpcStats, map[string]int64{"request_stream": 3, "stream_reset": 3})
		})
		t.Run("nobody says anything", func(t *testing.T) {
			config := brpcTo("s1")
			config["limits"] = envoytest.M{"stream_idle_timeout": "0.5s"}
			s, e := start(t, config)
			c := scripted.DialBRPC(t, e.Port("brpc"))
			begun := time.Now()
			s.open(t, c, 1, 7)
			require.Equal(t, brpctest.Reset, c.Read().Kind)
			require.GreaterOrEqual(t, time.Since(begun), 500*time.Millisecond)
			ended(t, s)
			checkStreamCounters(t, e, brpcStats, map[string]int64{"request_stream": 1, "stream_idle_timeout": 1, "stream_reset": 1})
		})
	})
}

// TestBRPCStreamIsRefused: who cannot have a stream gets an answer that says so.
func TestBRPCStreamIsRefused(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := serveBRPCStreams(t)
		config := envoytest.Protocol("brpc", "test",
			envoytest.Route("s1", map[string]string{"method": "Stream", "tenant": "acme"}),
			envoytest.Route("dead", map[string]string{"method": "Dead"}))
		config["limits"] = envoytest.M{"max_streams": 2}
		e := v.start(t, config, envoytest.Cluster("s1", envoytest.At(s.Port)...), envoytest.Cluster("dead"))
		c := scripted.DialBRPC(t, e.Port("brpc"))
		user := [][2]string{{"tenant", "acme"}}
		refused := func(code int32, text string, r brpctest.Request) {
			t.Helper()
			c.Send(r.Bytes())
			f := c.Read()
			require.Equal(t, "PRPC", f.Magic)
			require.Equal(t, r.ID, f.ID)
			require.Equal(t, code, f.Code, f.Text)
			require.Contains(t, f.Text, text)
			require.Zero(t, f.Opens)
		}
		refused(1001, "no route", brpctest.Request{ID: 1, Stream: 1, Method: "Stream", UserFields: [][2]string{{"tenant", "other"}}})
		refused(112, "no healthy upstream", brpctest.Request{ID: 2, Stream: 2, Method: "Dead"})
		var open []brpcStream
		for id := uint64(3); id <= 4; id++ {
			c.Send(brpctest.Request{ID: id, Stream: id, Method: "Stream", UserFields: user}.Bytes())
			require.Zero(t, readInStream(t, c.Read(), id).Code)
			open = append(open, <-s.accepted)
		}
		refused(1003, "a stream of this id is open", brpctest.Request{ID: 5, Stream: 3, Method: "Stream", UserFields: user})
		refused(2004, "too many open streams", brpctest.Request{ID: 6, Stream: 5, Method: "Stream", UserFields: user})
		for _, st := range open {
			c.Send(brpctest.StreamFrame(st.server, st.client, brpctest.Close, nil))
			<-s.closed
		}
		require.Eventually(t, func() bool { return e.Stat(brpcStats+"stream_active") == 0 }, patience, tick)
		c.Send(brpctest.Request{ID: 7, Stream: 5, Method: "Stream", UserFields: user}.Bytes())
		require.Zero(t, readInStream(t, c.Read(), 5).Code)
		c.Close()
		checkStreamCounters(t, e, brpcStats, map[string]int64{"request_stream": 7, "stream_refused": 2})
	})
}

// items is a command that sends or receives so many items of that size.
func items(n, size int) peers.Command {
	return peers.Command{StreamCommand: peers.StreamCommand{Items: n, Size: size}}
}

// slowly is a command that receives everything, with a rest after each item.
func slowly() peers.Command {
	return peers.Command{StreamCommand: peers.StreamCommand{DelayUS: 1}}
}

// trpcItemSize is the size of most of checkTRPCStreams' items, in bytes.
const trpcItemSize = 4000

// checkTRPCStreams has a stream of every kind with n items, all at once and
// beside calls. name is the server's, c may reach it directly or through a proxy.
func checkTRPCStreams(t *testing.T, c *peers.Consumer, name string, n int) {
	t.Helper()
	size := trpcItemSize
	open := func(cmd peers.Command) *peers.Stream {
		t.Helper()
		s, a := c.Open(cmd)
		require.Empty(t, a.Error)
		return s
	}
	order := items(n, size)
	order.Method = "Download"
	download := open(order)
	upload := open(peers.Command{Method: "Upload", Attachments: map[string]any{"tenant": "acme"}})
	chat := open(peers.Command{Method: "Chat"})

	uploading := upload.Go("send", items(n, size))
	chatting := chat.Go("send", items(n, size))
	hearing := chat.Go("receive", items(n, 0))
	downloading := download.Go("receive", slowly())
	calls := trpcCall("SayHello", "x")
	calls.Count, calls.Concurrency = 200, 4
	require.Equal(t, map[string]int{name + ": hello x": 200}, c.Load(calls).Values)

	require.Empty(t, uploading.Answers()[0].Error)
	a := upload.Do("close", peers.Command{})
	require.Empty(t, a.Error)
	require.Equal(t, peers.Received{
		Items: n, Bytes: int64(n * size), Name: name, Metadata: map[string]string{"tenant": "acme"},
	}, a.Received(t))

	a = downloading.Answers()[0]
	require.Empty(t, a.Error)
	all := peers.Received{Items: n, Bytes: int64(n * size), End: true, Names: map[string]int{name: n}}
	require.Equal(t, all, a.Received(t))

	require.Empty(t, chatting.Answers()[0].Error)
	a = hearing.Answers()[0]
	require.Empty(t, a.Error)
	all.End = false
	require.Equal(t, all, a.Received(t))
	require.Empty(t, chat.Do("close", peers.Command{}).Error)
	a = chat.Do("receive", peers.Command{})
	require.Empty(t, a.Error)
	require.True(t, a.Received(t).End)

	// Large items, larger than whatever buffers there are on the way.
	chat = open(peers.Command{Method: "Chat"})
	chatting = chat.Go("send", items(4, 3*mib))
	a = chat.Do("receive", items(4, 0))
	require.Empty(t, a.Error)
	require.Equal(t, peers.Received{Items: 4, Bytes: 12 * mib, Names: map[string]int{name: 4}}, a.Received(t))
	require.Empty(t, chatting.Answers()[0].Error)
	require.Empty(t, chat.Do("close", peers.Command{}).Error)
	require.True(t, chat.Do("receive", peers.Command{}).Received(t).End)

	// One that its server ends with an error.
	chat = open(peers.Command{Method: "Chat"})
	require.Empty(t, chat.Do("send", items(2, size)).Error)
	require.Empty(t, chat.Do("send", peers.Command{Args: []any{"fail"}}).Error)
	a = chat.Do("receive", peers.Command{})
	require.Equal(t, 2, a.Received(t).Items)
	require.Equal(t, "callee 10043", a.ErrorType, a.Error)
	require.Contains(t, a.Error, "as it was asked to")
}

// trpcStreams asks a server itself how its streams have fared.
func trpcStreams(t *testing.T, direct *peers.Consumer) map[string]any {
	t.Helper()
	a := direct.Call(trpcCall("Streams"))
	require.Empty(t, a.Error)
	return a.Value.(map[string]any)
}

// TestTRPCStreams carries long streams of every kind beside calls.
func TestTRPCStreams(t *testing.T) {
	everywhere(t, func(t *testing.T, v variant) {
		s := peers.TRPCServer(t, peers.TRPCServerOptions{Name: "s1", Streams: true})
		e := v.start(t, trpcTo("s1"), envoytest.Cluster("s1", envoytest.At(s.Port)...))
		c := peers.TRPCClient(t, e.Port("trpc"), peers.TRPCClientOptions{})
		require.Equal(t, "s1", c.Call(trpcCall("Who")).Value)
		checkTRPCStreams(t, c, "s1", 100) // so that there is all that lasts
		before := e.RSS()
		checkTRPCStreams(t, c, "s1", streamItems)
		holdsLittle(t, e, before, 4*trpcItemSize*streamItems)
		checkStreamCounters(t, e, trpcStats, map[string]int64{
			"request_stream": 10, "stream_reset": 0, "stream_refused": 0, "request_abandoned": 0,
		})
		require.Equal(t, map[string]any{
			"open": "0", "started Upload": "2", "started Download": "2", "started Chat": "6", "ended well": "8", "ended with an error": "2",
		}, trpcStreams(t, peers.TRPCClient(t, s.Port, peers.TRPCClientOptions{})))
	})
}

// TestTRPCManyStreams opens many streams at a time on each of a few connections.
func TestTRPCManyStreams(t *testing.T) {
	t.Parallel()
	const clients, streams, n = 3, 100, 20
	once(t, func(t *testing.T, v variant) {
		s := peers.TRPCServer(t, peers.TRPCServerOptions{Name: "s1", Streams: true})
		e := v.start(t, trpcTo("s1"), envoytest.Cluster("s1", envoytest.At(s.Port)...))
		var all []*peers.Stream
		for range clients {
			c := peers.TRPCClient(t, e.Port("trpc"), peers.TRPCClientOptions{})
			for range streams {
				chat, a := c.Open(peers.Command{Method: "Chat"})
				require.Empty(t, a.Error)
				all = append(all, chat)
			}
		}
		e.WaitStat(trpcStats+"stream_active", envoytest.Exactly(clients*streams))
		require.LessOrEqual(t, e.Stat("listener.127.0.0.1_0.downstream_cx_total"), int64(2*clients))
		var pending []*peers.Pending
		for i, chat := range all {
			pending = append(pending, chat.Go("send", items(n, 100+i)), chat.Go("receive", items(n, 0)))
		}
		for i, chat := range all {
			require.Empty(t, pending[2*i].Answers()[0].Error)
			a := pending[2*i+1].Answers()[0]
			require.Empty(t, a.Error)
			require.Equal(t, peers.Received{Items: n, Bytes: int64(n * (100 + i)), Names: map[string]int{"s1": n}}, a.Received(t))
			require.Empty(t, chat.Do("close", peers.Command{}).Error)
			require.True(t, chat.Do("receive", peers.Command{}).Received(t).End)
		}
		checkStreamCounters(t, e, trpcStats, map[string]int64{"request_stream": clients * streams, "stream_reset": 0})
		e.WaitStat("cluster.s1.upstream_cx_active", envoytest.Exactly(0)) // they go with the streams
	})
}

// hugeWindow is more than any stream here carries: nothing but the connections
// themselves holds a sender up.
const hugeWindow = 1 << 31

// TestTRPCStreamToAFrozenClient: what a server sends to a client that does not
// read waits where it is.
func TestTRPCStreamToAFrozenClient(t *testing.T) {
	once(t, func(t *testing.T, v variant) {
		s := peers.TRPCServer(t, peers.TRPCServerOptions{Name: "s1", Streams: true, Window: hugeWindow})
		e := v.start(t, trpcTo("s1"), envoytest.Cluster("s1", envoytest.At(s.Port)...))
		honest := peers.TRPCClient(t, e.Port("trpc"), peers.TRPCClientOptions{})
		require.Equal(t, "s1", honest.Call(trpcCall("Who")).Value)
		c := peers.TRPCClient(t, e.Port("trpc"), peers.TRPCClientOptions{Window: hugeWindow})
		before := e.RSS()
		order := items(slowItems, slowSize)
		order.Method = "Download"
		download, a := c.Open(order)
		require.Empty(t, a.Error)
		// What was asked for may not have left the client yet.
		e.WaitStat("cluster.s1.upstream_cx_rx_bytes_total", envoytest.AtLeast(slowSize))
		c.Stop()
		e.WaitStat("cluster.s1.upstream_flow_control_paused_reading_total", envoytest.AtLeast(1))
		require.Equal(t, "s1", honest.Call(trpcCall("Who")).Value)
		holdsLittle(t, e, before, slowItems*slowSize)
		c.Continue()
		a = download.Do("receive", peers.Command{})
		require.Empty(t, a.Error)
		require.Equal(t, peers.Received{
			Items: slowItems, Bytes: slowItems * slowSize, End: true, Names: map[string]int{"s1": slowItems},
		}, a.Received(t))
		holdsLittle(t, e, before, slowItems*slowSize)
		checkStreamCounters(t, e, trpcStats, map[string]int64{"request_stream": 1, "stream_reset": 0, "downstream_overflow": 0})
	})
}

// TestTRPCStreamToAFrozenServer: a client whose stream's server does not read is
// not read either.
func TestTRPCStreamToAFrozenServer(t *testing.T) {
	once(t, func(t *testing.T, v variant) {
		frozen := peers.TRPCServer(t, peers.TRPCServerOptions{Name: "frozen", Streams: true, Window: hugeWindow})
		other := peers.TRPCServer(t, peers.TRPCServerOptions{Name: "other"})
		e := v.start(t, envoytest.Protocol("trpc", "test",
			envoytest.Route("frozen", map[string]string{"callee": "meltemi.test.Streamer"}), envoytest.Route("other", nil)),
			envoytest.Cluster("frozen", envoytest.At(frozen.Port)...), envoytest.Cluster("other", envoytest.At(other.Port)...))
		c := peers.TRPCClient(t, e.Port("trpc"), peers.TRPCClientOptions{Window: hugeWindow})
		require.Equal(t, "other", c.Call(trpcCall("Who")).Value)
		upload, a := c.Open(peers.Command{Method: "Upload"})
		require.Empty(t, a.Error)
		before := e.RSS()
		frozen.Stop()
		sending := upload.Go("send", items(slowItems, slowSize))
		e.WaitStat("cluster.frozen.upstream_cx_tx_bytes_buffered", envoytest.AtLeast(mib/2))
		require.Equal(t, "other", c.Call(trpcCall("Who")).Value, "on another connection")
		holdsLittle(t, e, before, slowItems*slowSize)
		frozen.Continue()
		require.Empty(t, sending.Answers()[0].Error)
		a = upload.Do("close", peers.Command{})
		require.Empty(t, a.Error)
		require.Equal(t, peers.Received{Items: slowItems, Bytes: slowItems * slowSize, Name: "frozen"}, a.Received(t))
		holdsLittle(t, e, before, slowItems*slowSize)
		checkStreamCounters(t, e, trpcStats, map[string]int64{"request_stream": 1, "stream_reset": 0})
	})
}

// TestTRPCStreamIsLost ends streams by what happens to their peers.
func TestTRPCStreamIsLost(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, v variant) {
		start := func(t *testing.T, config envoytest.M) (*peers.Provider, *envoytest.Envoy, *peers.Consumer) {
			t.Helper()
			s := peers.TRPCServer(t, peers.TRPCServerOptions{Name: "s1", Streams: true})
			e := v.start(t, config, envoytest.Cluster("s1", envoytest.At(s.Port)...))
			return s, e, peers.TRPCClient(t, e.Port("trpc"), peers.TRPCClientOptions{})
		}
		// open opens a stream of each kind that is under way.
		open := func(t *testing.T, c *peers.Consumer) (all []*peers.Stream) {
			t.Helper()
			for _, method := range []string{"Upload", "Chat"} {
				s, a := c.Open(peers.Command{Method: method})
				require.Empty(t, a.Error)
				require.Empty(t, s.Do("send", items(10, 100)).Error)
				all = append(all, s)
			}
			require.Equal(t, 10, all[1].Do("receive", items(10, 0)).Received(t).Items)
			return all
		}
		lost := func(t *testing.T, s *peers.Provider, n string) {
			t.Helper()
			direct := peers.TRPCClient(t, s.Port, peers.TRPCClientOptions{})
			require.Eventually(t, func() bool {
				st := trpcStreams(t, direct)
				return st["open"] == "0" && st["lost"] == n
			}, patience, tick)
		}
		t.Run("the client is gone", func(t *testing.T) {
			s, e, c := start(t, trpcTo("s1"))
			open(t, c)
			c.Kill()
			lost(t, s, "2")
			checkStreamCounters(t, e, trpcStats, map[string]int64{"request_stream": 2, "request_abandoned": 0, "stream_abandoned": 2, "stream_reset": 0})
		})
		t.Run("the server is gone", func(t *testing.T) {
			s, e, c := start(t, trpcTo("s1"))
			streams := open(t, c)
			waiting := []*peers.Pending{streams[0].Go("close", peers.Command{}), streams[1].Go("receive", peers.Command{})}
			_ = waiting[0].Answers() // has been answered: the other one is under way
			begun := time.Now()
			s.Kill()
			a := waiting[1].Answers()[0]
			require.Contains(t, a.Error, "upstream connection ended", a.ErrorType)
			require.False(t, a.Received(t).End)
			require.Less(t, time.Since(begun), 5*time.Second)
			checkStreamCounters(t, e, trpcStats, map[string]int64{"request_stream": 2, "stream_reset": 1})
		})
		t.Run("nobody says anything", func(t *testing.T) {
			config := trpcTo("s1")
			config["limits"] = envoytest.M{"stream_idle_timeout": "0.5s"}
			s, e, c := start(t, config)
			chat, a := c.Open(peers.Command{Method: "Chat"})
			require.Empty(t, a.Error)
			a = chat.Do("receive", peers.Command{})
			require.Contains(t, a.Error, "stream idle timeout")
			lost(t, s, "1")
			// tRPC-Go's clients cancel a stream without a word.
			chat, a = c.Open(peers.Command{Method: "Chat"})
			require.Empty(t, a.Error)
			chat.Do("cancel", peers.Command{})
			lost(t, s, "2")
			checkStreamCounters(t, e, trpcStats, map[string]int64{"request_stream": 2, "stream_idle_timeout": 2, "stream_reset": 2})
		})
	})
}

// TestTRPCStreamIsRefused: who cannot have a stream gets an error at once.
func TestTRPCStreamIsRefused(t *testing.T) {
	t.Parallel()
	once(t, func(t *testing.T, v variant) {
		s := peers.TRPCServer(t, peers.TRPCServerOptions{Name: "s1", Streams: true})
		config := envoytest.Protocol("trpc", "test",
			envoytest.Route("s1", map[string]string{"func": "/meltemi.test.Streamer/Chat"}),
			envoytest.Route("dead", map[string]string{"func": "/meltemi.test.Streamer/Upload"}))
		config["limits"] = envoytest.M{"max_streams": 2}
		e := v.start(t, config, envoytest.Cluster("s1", envoytest.At(s.Port)...), envoytest.Cluster("dead"))
		c := peers.TRPCClient(t, e.Port("trpc"), peers.TRPCClientOptions{})
		refused := func(method, text string) {
			t.Helper()
			_, a := c.Open(peers.Command{Method: method})
			require.Contains(t, a.Error, text, a.ErrorType)
			require.Less(t, a.LatencyUS, int64(2_000_000))
		}
		refused("Download", "no route")
		refused("Upload", "no healthy upstream")
		var open []*peers.Stream
		for range 2 {
			chat, a := c.Open(peers.Command{Method: "Chat"})
			require.Empty(t, a.Error)
			open = append(open, chat)
		}
		refused("Chat", "too many open streams")
		for _, chat := range open {
			require.Empty(t, chat.Do("send", items(10, 10)).Error)
			require.Empty(t, chat.Do("close", peers.Command{}).Error)
			a := chat.Do("receive", peers.Command{})
			require.Empty(t, a.Error)
			require.Equal(t, peers.Received{Items: 10, Bytes: 100, End: true, Names: map[string]int{"s1": 10}}, a.Received(t))
		}
		chat, a := c.Open(peers.Command{Method: "Chat"})
		require.Empty(t, a.Error)
		require.Empty(t, chat.Do("close", peers.Command{}).Error)
		require.True(t, chat.Do("receive", peers.Command{}).Received(t).End)
		checkStreamCounters(t, e, trpcStats, map[string]int64{"request_stream": 6, "stream_refused": 1, "stream_reset": 0})
	})
}
