package e2e

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/docs"
	"github.com/meltemi-mesh/meltemi/e2e/internal/envoytest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

const memcachedStats = "meta_protocol.memcached.test."

// start runs an Envoy with the shared object before servers, by the names of their clusters.
func (m *memcachedTest) start(t *testing.T, mode string, servers map[string]string, routes ...any) *envoytest.Envoy {
	t.Helper()
	config := envoytest.Protocol("memcached", "test", routes...)
	config["protocol"] = envoytest.M{"name": "memcached", "codec": envoytest.M{"name": "example.codec.memcached"}, "connection_mode": mode}
	o := m.v.options()
	o.Modules = m.modules
	for name, socket := range servers {
		o.Clusters = append(o.Clusters, envoytest.Cluster(name, envoytest.Endpoint{Pipe: socket}))
	}
	o.Listeners = []envoytest.Resource{
		envoytest.LoopbackOf("memcached", envoytest.Socket()),
		envoytest.Listener("memcached", envoytest.Module("memcached", "meta_protocol_proxy", config)),
	}
	return envoytest.Start(t, o)
}

// speak writes to a server in pieces, reads until it closes the connection, and
// returns what it has said.
func speak(t *testing.T, network, address string, pieces ...[]byte) []byte {
	t.Helper()
	c, err := net.Dial(network, address)
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(60*time.Second)))
	go func() {
		for _, b := range pieces {
			if _, err := c.Write(b); err != nil {
				return // it has closed the connection
			}
		}
	}()
	said, err := io.ReadAll(c)
	if err != nil && !strings.Contains(err.Error(), "reset") {
		require.NoError(t, err, "%q", said[max(0, len(said)-200):])
	}
	return said
}

func memcachedAt(e *envoytest.Envoy) string { return fmt.Sprintf("127.0.0.1:%d", e.Port("memcached")) }

// memcachedTest is an Envoy of a version with the shared object of
// examples/memcached.
type memcachedTest struct {
	v       variant
	modules string
}

// TestMemcached does what the README of examples/memcached tells its reader to do,
// and has real clients talk to real servers through what that has built.
func TestMemcached(t *testing.T) {
	const example = "examples/memcached"
	once(t, func(t *testing.T, v variant) {
		sh := newReader(t, v, example, "build/memcached", 11211, 11311, 11312, 9901)
		bin, lib := peers.Memcached.Paths(t)
		sh.run(fmt.Sprintf("export PATH='%s':$PATH LD_LIBRARY_PATH='%s'\n", bin, lib))
		sh.follow(docs.Blocks(source(t, example+"/README.md")))
		m := &memcachedTest{v, sh.dir}
		t.Run("routes", m.routes)
		for _, mode := range []string{"SHARED", "EXCLUSIVE"} {
			t.Run(mode, func(t *testing.T) {
				t.Parallel() // memccapable waits
				t.Run("clients", func(t *testing.T) { m.clients(t, mode) })
				t.Run("as memcached", func(t *testing.T) { m.asMemcached(t, mode) })
				t.Run("noreply", func(t *testing.T) { m.noreply(t, mode) })
			})
		}
	})
}

func (m *memcachedTest) routes(t *testing.T) {
	servers := map[string]string{"users": peers.MemcachedServer(t), "rest": peers.MemcachedServer(t)}
	e := m.start(t, "SHARED", servers,
		envoytest.Route("nobody", map[string]string{"command": "flush_all"}),
		envoytest.Route("rest", map[string]string{"prefix": "user:", "command": "gat"}),
		envoytest.Route("users", map[string]string{"prefix": "user:"}),
		envoytest.Route("rest", nil),
	)
	said := speak(t, "tcp", memcachedAt(e), []byte("set user:1 0 0 1\r\na\r\nset item:1 0 0 1 noreply\r\nb\r\nms dXNlcjoy 1 b\r\nc\r\nset plain 0 0 1\r\nd\r\n"+
		"get user:1 user:2\r\nget item:1 item:2\r\nget user:1 item:1\r\ngat 0 user:1\r\nflush_all\r\nget plain another\r\nquit\r\n"))
	require.Equal(t, "STORED\r\nHD\r\nSTORED\r\n"+
		"VALUE user:1 0 1\r\na\r\nVALUE user:2 0 1\r\nc\r\nEND\r\nVALUE item:1 0 1\r\nb\r\nEND\r\n"+
		"CLIENT_ERROR the keys of one command must have one prefix\r\nEND\r\nSERVER_ERROR unknown cluster nobody\r\nVALUE plain 0 1\r\nd\r\nEND\r\n", string(said))
	for name, want := range map[string]string{
		"users": "VALUE user:1 0 1\r\na\r\nVALUE user:2 0 1\r\nc\r\nEND\r\n",
		"rest":  "VALUE item:1 0 1\r\nb\r\nVALUE plain 0 1\r\nd\r\nEND\r\n",
	} {
		require.Equal(t, want, string(speak(t, "unix", servers[name], []byte("get user:1 user:2 item:1 plain\r\nquit\r\n"))), name)
	}
}

func (m *memcachedTest) clients(t *testing.T, mode string) {
	servers := map[string]string{"sessions": peers.MemcachedServer(t), "rest": peers.MemcachedServer(t)}
	e := m.start(t, mode, servers,
		envoytest.Route("sessions", map[string]string{"prefix": "session:"}),
		envoytest.Route("rest", nil),
	)
	for _, library := range peers.MemcachedLibraries {
		out, err := peers.MemcachedSession(t, library, e.Port("memcached"), "user:")
		require.NoError(t, err, out)
	}
	out, err := peers.Memccapable(t, e.Port("memcached"))
	require.NoError(t, err, out)
	require.Contains(t, out, "All tests passed")
	require.Zero(t, e.Stat(memcachedStats+"response_decoding_error"))
}

// asMemcached has a listener and a server answer the same, byte for byte: many random
// commands at once, and each of those that are none.
func (m *memcachedTest) asMemcached(t *testing.T, mode string) {
	e := m.start(t, mode, map[string]string{"one": peers.MemcachedServer(t)}, envoytest.Route("one", nil))
	direct := peers.MemcachedServer(t)
	for _, command := range oddCommands {
		b := []byte(command + "quit\r\n")
		require.Equal(t, string(speak(t, "unix", direct, b)), string(speak(t, "tcp", memcachedAt(e), b)), "%.100q", command)
	}
	e.WaitStat(memcachedStats+"request_active", envoytest.Exactly(0))
	e = m.start(t, mode, map[string]string{"one": peers.MemcachedServer(t)}, envoytest.Route("one", nil))
	commands := randomCommands(1, 20_000)
	want := speak(t, "unix", peers.MemcachedServer(t), commands...)
	got := speak(t, "tcp", memcachedAt(e), commands...)
	if !bytes.Equal(want, got) {
		at := 0
		for at < min(len(want), len(got)) && want[at] == got[at] {
			at++
		}
		t.Fatalf("at offset %d of %d memcached says\n%.200q\nand the proxy\n%.200q\nbehind\n%q", at, len(want), want[at:], got[at:], want[max(0, at-200):at])
	}
	require.Greater(t, len(want), 200_000)
	require.Zero(t, e.Stat(memcachedStats+"response_decoding_error"))
}

// randomCommands are n commands, written in pieces that have nothing to do with
// where they end. What memcached does with some depends on when it comes, on how much
// of its answers it has sent, or on what was in its memory before, so they are not
// among them: times, too long a key in a get, numbers that change while somebody gets
// them, and such as are above 2^63.
func randomCommands(seed uint64, n int) (pieces [][]byte) {
	r := rand.New(rand.NewPCG(seed, 0))
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	key := func() string { return fmt.Sprintf("%s%d", pick("", "user:", "user:"), r.IntN(20)) }
	counter := func() string { return fmt.Sprintf("counter%d", r.IntN(5)) }
	keys := func() string {
		prefix, s := pick("", "user:"), ""
		for range 1 + r.IntN(30) {
			s += fmt.Sprintf(" %s%d", prefix, r.IntN(30))
		}
		return s
	}
	noreply := func() string { return pick("", "", "", " noreply") }
	value := func() string {
		switch r.IntN(40) {
		case 0:
			return strings.Repeat("large\r\n", r.IntN(3000))
		case 1, 2, 3, 4, 5, 6, 7, 8:
			return fmt.Sprint(r.IntN(1000))
		default:
			return pick("", "END\r\n", "\r\n", "get a\r\n") + strings.Repeat("x", r.IntN(100))
		}
	}
	expires := func() string { return pick("0", "0", "0", "1000", "-1", "x") }
	flags := func(of ...string) (s string) {
		r.Shuffle(len(of), func(i, j int) { of[i], of[j] = of[j], of[i] })
		for _, f := range of[:r.IntN(len(of)+1)] {
			s += " " + f
		}
		return s
	}
	var all []byte
	for i := range n {
		v, opaque := value(), fmt.Sprintf("O%d", r.IntN(100))
		block := "\r\n" + v + "\r\n"
		switch r.IntN(24) {
		case 0, 1, 2, 3:
			all = fmt.Appendf(all, "%s%s\r\n", pick("get", "gets", "get", " get"), keys())
		case 4:
			all = fmt.Appendf(all, "%s %s%s\r\n", pick("gat", "gats"), expires(), keys())
		case 5, 6, 7:
			all = fmt.Appendf(all, "%s %s %s %s %d%s%s", pick("set", "set", "add", "replace", "append", "prepend"), key(), pick("0", "7", "4294967295"), pick("0", "0", "1000", "-1"), len(v), noreply(), block)
		case 8:
			all = fmt.Appendf(all, "cas %s 1 0 %d %d%s%s", key(), len(v), r.IntN(i+1), noreply(), block)
		case 9:
			all = fmt.Appendf(all, "delete %s%s%s\r\n", key(), pick("", " 0", " 1"), noreply())
		case 10:
			all = fmt.Appendf(all, "%s %s %s%s\r\n", pick("incr", "decr"), key(), pick("x", "-1"), noreply())
		case 11:
			all = fmt.Appendf(all, "%s %s %s%s\r\n", pick("incr", "decr"), counter(), pick("1", "9", "1000000"), noreply())
		case 12:
			all = fmt.Appendf(all, "touch %s %s%s\r\n", key(), expires(), noreply())
		case 13, 14, 15:
			all = fmt.Appendf(all, "mg %s%s\r\n", key(), flags("v", "k", "c", "f", "s", "h", "u", "q", opaque, "N0", "T0", "R30", "Z"))
		case 16, 17:
			all = fmt.Appendf(all, "ms %s %d%s%s", key(), len(v), flags("k", "c", "q", opaque, "T0", "F5", "M"+pick("E", "A", "P", "R", "S", "X"), "I", "C1"), block)
		case 18:
			all = fmt.Appendf(all, "md %s%s\r\n", key(), flags("k", "q", opaque, "I", "C1", "T0"))
		case 19: // not q with N: 1.6.18 does not know it of a number that it makes
			all = fmt.Appendf(all, "ma %s%s\r\n", counter(), flags("v", "k", "c", opaque, pick("N0", "q"), "J5", "D3", "M"+pick("I", "D", "+", "-", "x")))
		case 20:
			all = fmt.Appendf(all, "%s\r\n", pick("mn", "mn", "me none", "version", "verbosity 0", "verbosity 0 noreply", "stats reset", "stats detail off", "stats nothing"))
		case 21:
			all = fmt.Appendf(all, "%s\r\n", pick("", "nonsense", "get", "incr", "set a 0 0", "set a x 0 1", "set a 0 0 -1", "set a 0 0 1x noreply", "mg", "ms a", "mg a v v", "mg Q b", "mg YQ== b k v", "delete a 5 noreply"))
		case 22:
			all = fmt.Appendf(all, "set %s 0 0 %d%s\r\n%sxyz\r\n", key(), len(v), noreply(), v) // bad data
		case 23:
			if r.IntN(20) == 0 {
				all = fmt.Appendf(all, "flush_all%s%s\r\n", pick("", " 0"), noreply())
			} else if r.IntN(40) == 0 {
				all = fmt.Appendf(all, "set %s 0 0 1100000%s\r\n%s\r\n", key(), noreply(), strings.Repeat("x", 1_100_000))
			}
		}
	}
	all = append(all, "quit\r\n"...)
	for len(all) > 0 {
		k := min(len(all), 1+r.IntN(1<<r.IntN(17)))
		pieces, all = append(pieces, all[:k]), all[k:]
	}
	return pieces
}

// oddCommands are those that memcached refuses, and the more unusual of those that
// it takes.
var oddCommands = func() (cs []string) {
	long := strings.Repeat("k", 251)
	for _, c := range []string{
		"", "x", "  ", "\n", "lru_crawler nonsense", "GET a", "get", "  get  a ", "get " + long, "get a " + long, "gat x a", "gat 10", "gat a",
		"version", "version a b", "verbosity", "verbosity x", "flush_all x", "flush_all 1 2 3", "stats nothing", "stats detail", "stats detail off", "stats reset", "stats sizes",
		"set a", "set a 0 0", "set a 0 0 1 2 noreply", "set a x 0 1\r\nx", "set a -1 0 1\r\nx", "set a 0 x 1\r\nx", "set a 0 0 -1\r\nx", "set a 0 0 x\r\nx",
		"set a 0 0 2147483647", "set a 0 0 1\r\nxyz", "set a 0 0 1 noreply\r\nxyz", "set a 0 0 5\r\nx\r\nabc", "set a 0 0 1 junk\r\nx", "set a x 0 1 noreply\r\nx",
		"set " + long + " 0 0 1\r\nx", "set " + long + " 0 0 1 noreply\r\nx", "set a 0 0 1100000\r\n" + strings.Repeat("x", 1_100_000),
		"set a 0 0 1100000 noreply\r\n" + strings.Repeat("x", 1_100_000), "cas a 0 0 1 x\r\nx", "cas a 0 0 1\r\nx", "cas none 0 0 1 1\r\nx", "set " + long[1:] + " 0 0 1\r\nx\r\nget " + long[1:],
		"incr a", "incr a x", "incr none 1", "incr a 1 noreply", "incr a noreply", "incr " + long + " 1", "touch a", "touch a x", "touch none 1", "touch " + long + " 0",
		"delete a 1", "delete a 0", "delete a 1 noreply", "delete a 0 noreply", "delete a 0 0 0 0", "delete " + long,
		"mg", "mg " + long, "mg a a a a a a a a a a a a a a a a a a a a a", "mg a v v", "mg Q b", "mg none k O1", "mg a O123456789012345678901234567890123", "mx a",
		"ms a", "ms a x\r\nx", "ms a -1\r\nx", "ms a 1\r\nxyz", "ms a 1 q\r\nxyz", "ms a 1 k k\r\nx", "ms Q 1 b\r\nx", "ms " + long + " 1\r\nx", "ms a 1 MX\r\nx",
		"ms a 1 O123456789012345678901234567890123\r\nx", "ms a 1100000\r\n" + strings.Repeat("x", 1_100_000), "ms a 1100000 q\r\n" + strings.Repeat("x", 1_100_000),
		"ms dXNlcjox 1 b k\r\nx\r\nmg dXNlcjox b k v\r\nmg user:1 k v", "md a k k", "md Q b", "ma Q b", "ma none", "ma none N0 J7 v\r\nma none v", "me", "me none", "me Q b", "me " + long,
		"mn a b", "GET / HTTP/1.1", strings.Repeat("x", 100_000),
	} {
		cs = append(cs, c+"\r\n")
	}
	return cs
}()

// noreply has many clients write without waiting and read what they have
// written, at once.
func (m *memcachedTest) noreply(t *testing.T, mode string) {
	e := m.start(t, mode, map[string]string{"one": peers.MemcachedServer(t)}, envoytest.Route("one", nil))
	var wg sync.WaitGroup
	for client := range 24 {
		wg.Go(func() {
			var commands [][]byte
			want := ""
			for i := range 200 {
				commands = append(commands, fmt.Appendf(nil, "set user:%d 0 0 4 noreply\r\n%04d\r\nget user:%d\r\nmg user:%d q\r\n", client, i, client, 1000+client))
				want += fmt.Sprintf("VALUE user:%d 0 4\r\n%04d\r\nEND\r\n", client, i)
			}
			got := string(speak(t, "tcp", memcachedAt(e), append(commands, []byte("mn\r\nquit\r\n"))...))
			if got != want+"MN\r\n" {
				t.Errorf("client %d reads what it has not written: %q", client, got)
			}
		})
	}
	wg.Wait()
	if mode == "SHARED" {
		require.Less(t, e.Stat("cluster.one.upstream_cx_total"), int64(24))
	}
}
