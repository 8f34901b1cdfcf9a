package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	_ "github.com/meltemi-mesh/meltemi/codecs/brpc"
	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
	_ "github.com/meltemi-mesh/meltemi/codecs/dubbo"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	_ "github.com/meltemi-mesh/meltemi/codecs/trpc"
	"github.com/meltemi-mesh/meltemi/codecs/trpc/trpctest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

var hostileFrames = flag.Int("hostile", 50_000, "mutated `frames` of each protocol that TestHostile sends")

// hostile is what TestHostile knows of a protocol.
type hostile struct {
	// honest is a call that a rule finds by that property.
	honest          []byte
	property, value string
	// frames are ours, beside those that were captured.
	frames [][]byte
	// mend makes the length in a frame's header fit again.
	mend func(b []byte)
}

var hostiles = map[string]hostile{
	"dubbo": {
		dubbotest.Request{Method: "honest"}.Bytes(), "method", "honest",
		[][]byte{
			dubbotest.Request{ID: 1, Attachments: [][2]string{{"tenant", "acme"}}}.Bytes(),
			dubbotest.Heartbeat(1), dubbotest.ReadOnly(1), dubbotest.Response(1, "x"),
			dubbotest.Frame(0xc2, 0, 1, bytes.Repeat([]byte{0x79}, 5000)),         // lists in lists
			dubbotest.Frame(0xc2, 0, 1, bytes.Repeat([]byte("C\x01P\x90"), 2000)), // classes
			dubbotest.Frame(0xc2, 0, 1, []byte("\x58\x49\x05\xf5\xe1\x00")),       // a long list, it says
			dubbotest.Frame(0xc2, 0, 1, bytes.Repeat([]byte("R\x00\x00"), 2000)),  // a string without an end
		},
		func(b []byte) {
			if len(b) >= 16 {
				copy(b, "\xda\xbb")
				binary.BigEndian.PutUint32(b[12:], uint32(len(b)-16))
			}
		},
	},
	"thrift": {
		scripted.ThriftMessage{Type: scripted.ThriftCall, Method: "honest"}.Bytes(), "method", "honest",
		[][]byte{
			scripted.ThriftMessage{Type: scripted.ThriftReply, Method: "x"}.Bytes(),
			append([]byte("\x80\x01\x00\x01\x00\x00\x00\x01x\x00\x00\x00\x01"), bytes.Repeat([]byte{12, 0, 1}, 2000)...),           // structs in structs
			append([]byte("\x80\x01\x00\x01\x00\x00\x00\x01x\x00\x00\x00\x01"), "\x0f\x00\x01\x02\x7f\xff\xff\xff\x00\x00\x00"...), // a long list
			append([]byte("\x82\x21\x01\x01x"), bytes.Repeat([]byte{0x19, 0x19}, 2000)...),                                         // lists in lists
		},
		func(b []byte) {
			if len(b) >= 4 && b[0] < 0x80 { // not those without a frame
				binary.BigEndian.PutUint32(b, uint32(len(b)-4))
			}
		},
	},
	"brpc": {
		brpctest.Request{Method: "honest"}.Bytes(), "method", "honest",
		[][]byte{
			brpctest.Request{ID: 1, Stream: 1}.Bytes(), brpctest.StreamFrame(1, 1, brpctest.Data, []byte("x")),
			brpctest.StreamFrame(1, 1, brpctest.Close, nil), brpctest.Response{ID: 1, Stream: 1}.Bytes(),
			brpctest.Frame("PRPC", bytes.Repeat([]byte{0x0b}, 5000), nil), // groups in groups
		},
		func(b []byte) {
			if len(b) >= 12 {
				copy(b[1:], "RP") // PRPC, or STRM with another name
				binary.BigEndian.PutUint32(b[4:], uint32(len(b)-12))
			}
		},
	},
	"trpc": {
		trpctest.Request{Func: "/honest"}.Bytes(), "func", "/honest",
		[][]byte{
			trpctest.Request{ID: 1}.Init(), trpctest.StreamFrame(trpctest.Data, 1, []byte("x")),
			trpctest.FeedbackFrame(1, 1), trpctest.CloseFrame(1, false, 0, ""), trpctest.CloseFrame(1, true, 1, "x"),
			trpctest.Response{ID: 1}.Bytes(), trpctest.Response{ID: 1}.Init(),
		},
		func(b []byte) {
			if len(b) >= 16 {
				copy(b, "\x09\x30")
				binary.BigEndian.PutUint32(b[4:], uint32(len(b)))
			}
		},
	},
}

// codecOf is the codec of a protocol.
func codecOf(t *testing.T, protocol string) codecs.Codec {
	t.Helper()
	newCodec, ok := codecs.Lookup("aeraki.meta_protocol.codec." + protocol)
	require.True(t, ok, protocol)
	c, err := newCodec(nil, codecs.Limits{})
	require.NoError(t, err)
	return c
}

// captured decodes what was captured of a protocol in one direction. The
// properties of the messages are gone.
func captured(t *testing.T, c codecs.Codec, protocol string, d codecs.Direction) (all []*codecs.Metadata) {
	t.Helper()
	suffix := ".c2s.bin"
	if d == codecs.ServerToClient {
		suffix = ".s2c.bin"
	}
	files, err := filepath.Glob(filepath.Join(peers.Root(), "codecs", protocol, "testdata/captures/*"+suffix))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, f := range files {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		dec := c.NewDecoder(d)
		for len(b) > 0 {
			m := &codecs.Metadata{}
			n, err := dec.Decode(b, m)
			require.NoError(t, err, f)
			require.LessOrEqual(t, n, len(b), f)
			all = append(all, m)
			b = b[n:]
		}
	}
	return all
}

// mutate changes a frame; its length is made to fit again most of the time, so
// that what is wrong lies deeper.
func mutate(rng *rand.Rand, frame []byte, mend func(b []byte)) []byte {
	b := bytes.Clone(frame)
	for range 1 + rng.IntN(4) {
		switch rng.IntN(6) {
		case 0:
			b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
		case 1:
			b[rng.IntN(len(b))] = byte(rng.Uint32())
		case 2:
			b = b[:1+rng.IntN(len(b))]
		case 3:
			at := rng.IntN(len(b))
			b = append(b[:at:at], append([]byte{byte(rng.Uint32()), byte(rng.Uint32())}, b[at:]...)...)
		case 4:
			from, to := rng.IntN(len(b)), rng.IntN(len(b))
			if from < to {
				b = append(b, b[from:to]...)
			}
		case 5: // where flags, types and sizes are
			b[rng.IntN(min(len(b), 16))] = byte(rng.Uint32())
		}
	}
	if rng.IntN(8) > 0 {
		mend(b)
	}
	return b
}

// answering is a server that answers calls, as far as it understands them, with
// captured answers, each changed as wished.
func answering(t *testing.T, c codecs.Codec, answers []*codecs.Metadata, change func(n uint64, b []byte) []byte) *scripted.BytesServer {
	t.Helper()
	var count atomic.Uint64
	decoders := map[*scripted.Conn]codecs.Decoder{}
	var mu sync.Mutex
	return scripted.ServeBytes(t, func(conn *scripted.Conn, b []byte) (rest []byte) {
		mu.Lock()
		dec := decoders[conn]
		if dec == nil {
			dec = c.NewDecoder(codecs.ClientToServer)
			decoders[conn] = dec
		}
		mu.Unlock()
		for len(b) > 0 {
			var m codecs.Metadata
			n, err := dec.Decode(b, &m)
			if err != nil {
				conn.Close()
				return nil
			}
			if n > len(b) {
				return b
			}
			b = b[n:]
			if m.Type != codecs.Request {
				continue
			}
			k := count.Add(1)
			if a := answerFor(answers, &m, int(k)); a != nil {
				a.ID = m.ID
				if out, err := c.Encode(nil, a, nil); err == nil {
					conn.Write(change(k, out))
				}
			}
		}
		return nil
	})
}

// answerFor is a copy of a good answer to a call in its own wire form, nil if
// there is none.
func answerFor(answers []*codecs.Metadata, call *codecs.Metadata, n int) *codecs.Metadata {
	for i := range answers {
		if a := answers[(n+i)%len(answers)]; a.Type == codecs.Response && a.Status == codecs.StatusOK &&
			a.Variant == call.Variant && a.Raw[0] == call.Raw[0] { // not one in a stream
			c := *a
			return &c
		}
	}
	return nil
}

// keepAsking makes the honest call again and again until stop is closed, and counts
// the answers.
func keepAsking(t *testing.T, c codecs.Codec, call []byte, port int, stop chan struct{}, served *atomic.Int64) {
	conn := scripted.Dial(t, port)
	var m codecs.Metadata
	if _, err := c.NewDecoder(codecs.ClientToServer).Decode(call, &m); err != nil {
		t.Error(err)
		return
	}
	dec := c.NewDecoder(codecs.ServerToClient)
	var in []byte
call:
	for m.ID = 1; !isClosed(stop); m.ID++ {
		b, err := c.Encode(nil, &m, nil)
		if err == nil {
			_, err = conn.Write(b)
		}
		for err == nil {
			var a codecs.Metadata
			n := len(in) + 1
			if len(in) > 0 {
				n, err = dec.Decode(in, &a)
			}
			if n <= len(in) && err == nil {
				frame := in[:n:n]
				in = in[n:]
				if a.ID == m.ID && a.Type == codecs.Error && bytes.Contains(frame, []byte("upstream request timeout")) {
					continue call // a busy machine
				}
				if a.ID != m.ID || a.Type != codecs.Response {
					t.Errorf("honest call %d was answered with the %s %d: %q", m.ID, a.Type, a.ID, frame)
					return
				}
				break
			}
			if err == nil {
				chunk := make([]byte, 64<<10)
				err = errors.Join(err, conn.SetReadDeadline(time.Now().Add(patience)))
				n, e := conn.TCPConn.Read(chunk)
				in, err = append(in, chunk[:n]...), errors.Join(err, e)
			}
		}
		if err != nil {
			t.Errorf("honest call %d: %v", m.ID, err)
			return
		}
		served.Add(1)
	}
}

// TestHostile: mutated frames from clients and servers do Envoy no harm, and
// honest clients are served meanwhile.
func TestHostile(t *testing.T) {
	once(t, func(t *testing.T, v variant) {
		for protocol, h := range hostiles {
			t.Run(protocol, func(t *testing.T) { h.test(t, v, protocol) })
		}
	})
}

func (h hostile) test(t *testing.T, v variant, protocol string) {
	c := codecOf(t, protocol)
	frames := h.frames
	for _, m := range captured(t, c, protocol, codecs.ClientToServer) {
		frames = append(frames, m.Raw)
	}
	answers := captured(t, c, protocol, codecs.ServerToClient)
	good := answering(t, c, answers, func(_ uint64, b []byte) []byte { return b })
	bad := answering(t, c, answers, func(n uint64, b []byte) []byte {
		if n%3 == 0 {
			b = mutate(rand.New(rand.NewPCG(n, 7)), b, h.mend)
		}
		return b
	})
	route := envoytest.Route("bad", nil)
	route["request_mutation"] = []any{envoytest.M{"key": "k", "value": "v"}}
	route["response_mutation"] = []any{envoytest.M{"key": "k", "value": "v"}}
	config := envoytest.Protocol(protocol, "test", envoytest.Route("good", map[string]string{h.property: h.value}), route)
	config["request_timeout"] = "1s"
	config["limits"] = envoytest.M{"partial_frame_timeout": "0.2s", "stream_idle_timeout": "0.5s"}
	e := v.start(t, config, envoytest.Cluster("good", envoytest.At(good.Port)...), envoytest.Cluster("bad", envoytest.At(bad.Port)...))
	port := e.Port(protocol)
	before := e.RSS()

	stop, left := make(chan struct{}), make(chan struct{})
	var served atomic.Int64
	go func() {
		defer close(left)
		keepAsking(t, c, h.honest, port, stop, &served)
	}()
	const meanwhile = 20 // answers to honest calls, at least

	const clients = 16 // many of them wait for a timeout
	var wg sync.WaitGroup
	for i := range uint64(clients) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(i, 1))
			frame := func() []byte { return mutate(rng, frames[rng.IntN(len(frames))], h.mend) }
			attack(t, rng, port, *hostileFrames/clients, frame)
			for served.Load() < meanwhile && !isClosed(left) {
				attack(t, rng, port, 100, frame)
			}
		})
	}
	wg.Wait()
	close(stop)
	<-left
	require.GreaterOrEqual(t, served.Load(), int64(meanwhile))
	t.Logf("%d frames, %d honest requests served, memory %d MiB before, %d after",
		*hostileFrames, served.Load(), before>>20, e.RSS()>>20)
	require.Less(t, e.RSS(), before+300<<20)
	stats := "meta_protocol." + protocol + ".test."
	require.Zero(t, e.Stat(stats+"filter_panic"))
	require.Zero(t, e.Stat(stats+"connection_panic"))
	require.NotContains(t, e.Log(), "panic")
	checkCountersOf(t, e, stats)
}

// attack sends n mutated frames over as many connections as it takes.
func attack(t *testing.T, rng *rand.Rand, port, n int, frame func() []byte) {
	for n > 0 {
		c, err := net.DialTimeout("tcp", "127.0.0.1:"+strconv.Itoa(port), patience)
		if err != nil {
			t.Errorf("Envoy takes no connection: %v", err)
			return
		}
		var drained sync.WaitGroup
		drained.Go(func() { io.Copy(io.Discard, c) })
		for k := 1 + rng.IntN(50); k > 0 && n > 0; k-- {
			b := frame()
			n--
			if err := c.SetWriteDeadline(time.Now().Add(patience)); err != nil {
				break
			}
			if rng.IntN(4) == 0 { // in two parts
				at := rng.IntN(len(b) + 1)
				c.Write(b[:at])
				b = b[at:]
			}
			if _, err := c.Write(b); err != nil {
				break
			}
		}
		switch rng.IntN(10) {
		case 0:
			c.(*net.TCPConn).SetLinger(0)
		case 1:
			c.(*net.TCPConn).CloseWrite()
			done := make(chan struct{})
			go func() { drained.Wait(); close(done) }()
			select {
			case <-done:
			case <-time.After(5 * time.Second):
				t.Error("a half-closed connection was not closed")
			}
		}
		c.Close()
		drained.Wait()
	}
}
