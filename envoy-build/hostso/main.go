// Command hostso is a shared object for tests: with the Envoy that has loaded it as the
// host it runs the conformance suite for hosts, as soon as a first configuration comes.
// What only somebody outside can do, it asks of a test there.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/envoy-build/dynamicmodules"
	"github.com/meltemi-mesh/meltemi/envoy-build/golang/exports"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/host/hosttest"
)

// The environment of the process: where the test is asked, and what the host may lack,
// "half close" or "readiness", see [hosttest.Features].
const (
	controlEnv = "HOSTTEST_CONTROL"
	lacksEnv   = "HOSTTEST_LACKS"
)

// patience is how long something may take.
const patience = 30 * time.Second

func main() {}

// stdout would be closed by the garbage collector if nobody had it.
var stdout *os.File

func init() {
	m := &modules{}
	m.begin = sync.OnceFunc(func() { go m.test() })
	dynamicmodules.Serve(m)
	exports.Serve(m)
}

// modules are the suite's, one after the other: the process has one pipeline for good.
type modules struct {
	begin   func()
	current atomic.Pointer[module]
}

// module is one of the suite's.
type module struct{ host.Module }

// test runs the suite, and tells the test how it has ended.
func (ms *modules) test() {
	os.Args = []string{"hosttest", "-test.v"} // and not Envoy's
	stdout, os.Stdout = os.Stdout, os.Stderr  // contribhost answers on the other
	testing.Main(func(string, string) (bool, error) { return true, nil }, []testing.InternalTest{{Name: "TestConformance", F: func(t *testing.T) {
		lacks := os.Getenv(lacksEnv)
		passed := t.Run("suite", func(t *testing.T) {
			f := hosttest.Features{HalfClose: !strings.Contains(lacks, "half close"), Eager: strings.Contains(lacks, "readiness")}
			hosttest.Run(t, f, func(t *testing.T, m host.Module) hosttest.Stage {
				ms.current.Store(&module{m})
				return newStage(t)
			})
		})
		_, err := ask("end", url.Values{"passed": {strconv.FormatBool(passed)}})
		require.NoError(t, err)
		select {} // the process is Envoy's, which ends it
	}}}, nil, nil)
}

// NewConfig implements host.Module.
func (ms *modules) NewConfig(c host.Config, raw []byte) (host.FilterConfig, error) {
	m := ms.current.Load()
	if m == nil {
		ms.begin()
		return config{FilterConfig: first{}}, nil
	}
	fc, err := m.NewConfig(c, raw)
	return config{fc, m}, err
}

// first is the configuration that begins the suite. Nobody connects to its listener.
type first struct{}

func (first) Published() {}
func (first) Destroy()   {}

// config is a configuration of one of the modules.
type config struct {
	host.FilterConfig
	of *module
}

// NewWorker implements host.Module.
func (ms *modules) NewWorker(w host.Worker) host.Shard { return &shard{w: w} }

// Pages implements host.Teller: a host of which Envoy takes no metrics has them there.
func (ms *modules) Pages() http.Handler { return http.NotFoundHandler() }

// Scrapes are those of a pipeline, beside what configurations define.
func (ms *modules) Scrapes() prometheus.TransactionalGatherer {
	return prometheus.ToTransactionalGatherer(prometheus.NewRegistry())
}

// shard is a worker's part of the module whose turn it is.
type shard struct {
	w    host.Worker
	of   *module
	part host.Shard
}

func (s *shard) Accept(cfg host.FilterConfig, d host.Downstream) host.DownstreamEvents {
	c := cfg.(config)
	if s.of != c.of {
		s.of, s.part = c.of, c.of.NewWorker(s.w)
	}
	return s.part.Accept(c.FilterConfig, d)
}

func (s *shard) Run() {
	if s.part != nil {
		s.part.Run()
	}
}

func (s *shard) EndHook() {
	if s.part != nil {
		s.part.EndHook()
	}
}

// ask has the test do something, and returns what it answers.
func ask(what string, with url.Values) (string, error) {
	r, err := http.PostForm(os.Getenv(controlEnv)+"/"+what, with)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", r.Status, b)
	}
	return string(b), err
}

// stage is the Envoy around this object. It implements hosttest.Stage.
type stage struct {
	t       *testing.T
	servers *net.TCPListener
	address string // of the listener with the last configuration

	mu   sync.Mutex
	over bool
	all  []*peer
	// accepted are the servers among them.
	accepted []hosttest.Peer
	reading  sync.WaitGroup
}

func newStage(t *testing.T) *stage {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &stage{t: t, servers: l.(*net.TCPListener)}
	s.reading.Go(s.serve)
	t.Cleanup(func() {
		l.Close()
		s.mu.Lock()
		s.over = true
		for _, p := range s.all {
			p.Close()
		}
		s.mu.Unlock()
		s.reading.Wait()
	})
	return s
}

func (s *stage) serve() {
	for {
		c, err := s.servers.Accept()
		if err != nil {
			return
		}
		s.add(c, true)
	}
}

func (s *stage) add(c net.Conn, server bool) *peer {
	p := &peer{Conn: c}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		c.Close()
		return p
	}
	s.all = append(s.all, p)
	if server {
		s.accepted = append(s.accepted, p)
	}
	s.reading.Go(p.read)
	return p
}

// Load implements hosttest.Stage. Each configuration has a listener of its own.
func (s *stage) Load(raw string) (err error) {
	s.address, err = ask("load", url.Values{"config": {raw}, "server": {strconv.Itoa(s.servers.Addr().(*net.TCPAddr).Port)}})
	return err
}

// Dial implements hosttest.Stage.
func (s *stage) Dial() hosttest.Peer {
	c, err := net.Dial("tcp", s.address)
	require.NoError(s.t, err)
	// A client that closes does not wait for what is on its way: for Envoy, a FIN alone
	// would be the end of one direction.
	require.NoError(s.t, c.(*net.TCPConn).SetLinger(0))
	return s.add(c, false)
}

// Servers implements hosttest.Stage.
func (s *stage) Servers() []hosttest.Peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted[:len(s.accepted):len(s.accepted)]
}

// Until implements hosttest.Stage.
func (s *stage) Until(what string, done func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(time.Millisecond) {
		require.True(s.t, time.Now().Before(deadline), what)
	}
}

// Counter implements hosttest.Stage.
func (s *stage) Counter(name string) int64 {
	text, err := ask("counter", url.Values{"name": {name}})
	require.NoError(s.t, err)
	n, err := strconv.ParseInt(text, 10, 64)
	require.NoError(s.t, err)
	return n
}

// peer is this side of a connection.
type peer struct {
	net.Conn
	mu       sync.Mutex
	received []byte
	ended    bool
}

func (p *peer) read() {
	b := make([]byte, 64<<10)
	for {
		n, err := p.Conn.Read(b)
		p.mu.Lock()
		p.received = append(p.received, b[:n]...)
		p.ended = err != nil
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Send implements hosttest.Peer. A connection that is gone takes nothing.
func (p *peer) Send(b []byte) { p.Conn.Write(b) }

// Close implements hosttest.Peer.
func (p *peer) Close() { p.Conn.Close() }

// Received implements hosttest.Peer.
func (p *peer) Received() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.received[:len(p.received):len(p.received)]
}

// Ended implements hosttest.Peer.
func (p *peer) Ended() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended
}
