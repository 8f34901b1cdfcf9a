package e2e

import (
	"bytes"
	"encoding/binary"
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

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
	"github.com/meltemi-mesh/meltemi/e2e/internal/scripted"
)

var hostileFrames = flag.Int("hostile", 50000, "mutated `frames` that TestHostile sends")

// corpus is the frames that are mutated: captured ones and some of our own.
func corpus(t *testing.T) (frames [][]byte) {
	files, err := filepath.Glob(filepath.Join(peers.Root(), "codecs/dubbo/testdata/captures/*.c2s.bin"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, f := range files {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		for len(b) >= 16 {
			n := 16 + int(binary.BigEndian.Uint32(b[12:]))
			if n > len(b) {
				break
			}
			frames = append(frames, b[:n])
			b = b[n:]
		}
	}
	return append(frames,
		dubbotest.Request{ID: 1, Attachments: [][2]string{{"tenant", "acme"}}}.Bytes(),
		dubbotest.Heartbeat(1), dubbotest.ReadOnly(1), dubbotest.Response(1, "x"),
		dubbotest.Frame(0xc2, 0, 1, bytes.Repeat([]byte{0x79}, 5000)),         // lists in lists
		dubbotest.Frame(0xc2, 0, 1, bytes.Repeat([]byte("C\x01P\x90"), 2000)), // classes
		dubbotest.Frame(0xc2, 0, 1, []byte("\x58\x49\x05\xf5\xe1\x00")),       // a long list, it says
		dubbotest.Frame(0xc2, 0, 1, bytes.Repeat([]byte("R\x00\x00"), 2000)),  // a string without an end
	)
}

// mutate changes a frame; the length in its header is made to fit again most
// of the time, so that what is wrong lies deeper.
func mutate(rng *rand.Rand, frame []byte) []byte {
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
		case 5:
			if len(b) >= 16 {
				b[2] = byte(rng.Uint32()) // flags: another serialization, an event, an answer
			}
		}
	}
	if len(b) >= 16 && rng.IntN(8) > 0 {
		copy(b, "\xda\xbb")
		binary.BigEndian.PutUint32(b[12:], uint32(len(b)-16))
	}
	return b
}

// TestHostile: mutated frames from clients and servers do Envoy no harm, and
// honest clients are served meanwhile.
func TestHostile(t *testing.T) {
	once(t, func(t *testing.T, v variant) {
		frames := corpus(t)
		good := scripted.Serve(t, scripted.Answer("good"))
		var answers atomic.Uint64
		bad := scripted.Serve(t, func(c *scripted.Conn, req dubbotest.Parsed) {
			n := answers.Add(1)
			rng := rand.New(rand.NewPCG(n, 7))
			b := dubbotest.Response(req.ID, "x", [2]string{"k", "v"})
			if n%3 == 0 {
				b = mutate(rng, b)
			}
			c.Write(b)
		})
		config := envoytest.Dubbo("test", envoytest.Route("good", map[string]string{"method": "honest"}), envoytest.Route("bad", nil))
		routes := config["route_config"].(envoytest.M)["routes"].([]any)
		routes[1].(envoytest.M)["request_mutation"] = []any{envoytest.M{"key": "k", "value": "v"}}
		routes[1].(envoytest.M)["response_mutation"] = []any{envoytest.M{"key": "k", "value": "v"}}
		config["request_timeout"] = "0.2s"
		config["limits"] = envoytest.M{"partial_frame_timeout": "0.2s"}
		e := v.start(t, config, envoytest.Cluster("good", envoytest.At(good.Port)...), envoytest.Cluster("bad", envoytest.At(bad.Port)...))
		port := e.Port("dubbo")
		before := e.RSS()

		stop := make(chan struct{})
		var honest sync.WaitGroup
		served := 0
		honest.Go(func() {
			c := scripted.Dial(t, port)
			for id := uint64(1); ; id++ {
				select {
				case <-stop:
					return
				default:
				}
				c.Ask(id, dubbotest.Request{Method: "honest"})
				if a := c.Read(); a.ID != id || a.Text() != "good" {
					t.Errorf("honest request %d was answered %d %q", id, a.ID, a.Text())
					return
				}
				served++
			}
		})

		const clients = 4
		var wg sync.WaitGroup
		for i := range uint64(clients) {
			wg.Go(func() { attack(t, rand.New(rand.NewPCG(i, 1)), port, frames, *hostileFrames/clients) })
		}
		wg.Wait()
		close(stop)
		honest.Wait()
		require.Greater(t, served, 100)
		t.Logf("%d frames, %d honest requests served, memory %d MiB before, %d after",
			*hostileFrames, served, before>>20, e.RSS()>>20)
		require.Less(t, e.RSS(), before+300<<20)
		require.Zero(t, e.Stat(stats+"filter_panic"))
		require.NotContains(t, e.Log(), "panic")
		checkCounters(t, e)
	})
}

// attack sends n mutated frames over as many connections as it takes.
func attack(t *testing.T, rng *rand.Rand, port int, frames [][]byte, n int) {
	for n > 0 {
		c, err := net.DialTimeout("tcp", "127.0.0.1:"+strconv.Itoa(port), patience)
		if err != nil {
			t.Errorf("Envoy takes no connection: %v", err)
			return
		}
		var drained sync.WaitGroup
		drained.Go(func() { io.Copy(io.Discard, c) })
		for k := 1 + rng.IntN(50); k > 0 && n > 0; k-- {
			b := mutate(rng, frames[rng.IntN(len(frames))])
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
