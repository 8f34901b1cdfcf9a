// Package admin is where a process tells about itself by HTTP: to its operators, and to
// what gathers metrics.
package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

const (
	// maxConnections are open at once. Another one takes the place of that which has asked
	// for nothing for the longest time; where all ask, it waits.
	maxConnections = 16
	headerTime     = 5 * time.Second
	answerTime     = time.Minute
	idleTime       = time.Minute
	maxHeaderBytes = 16 << 10
	// retryTime is how often an address is tried that is taken, as the process before
	// this one still has it.
	retryTime = time.Second
)

// Server serves what a process tells at the address that was named last.
type Server struct {
	handler func() http.Handler
	logf    func(level host.Level, format string, args ...any)

	mu      sync.Mutex
	address string
	stop    context.CancelFunc // of what serves it
	done    chan struct{}      // closed when that has ended
}

// New returns a server that serves nowhere yet. handler is called for each address.
func New(handler func() http.Handler, logf func(level host.Level, format string, args ...any)) *Server {
	return &Server{handler: handler, logf: logf}
}

// Serve serves at an address from now on, and no more at the one before: "unix:PATH",
// which the process's user may connect to, or "IP:PORT"; "" for nowhere. An address that
// is taken is tried until it is free.
func (s *Server) Serve(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if address == s.address {
		return
	}
	if s.stop != nil {
		s.stop()
		<-s.done
		s.stop = nil
	}
	if s.address = address; address == "" {
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop, s.done = stop, make(chan struct{})
	go s.run(ctx, address, s.done)
}

func (s *Server) run(ctx context.Context, address string, done chan struct{}) {
	defer close(done)
	told := false
	for ctx.Err() == nil {
		l, err := listen(ctx, address)
		if err == nil {
			s.logf(host.Info, "meltemi: admin address %s", name(l.Addr()))
			err = s.serve(ctx, l)
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		if !told {
			told = true
			s.logf(host.Warn, "meltemi: admin address %s: %v", address, err)
		}
		select {
		case <-time.After(retryTime):
		case <-ctx.Done():
		}
	}
}

func name(a net.Addr) string {
	if a.Network() == "unix" {
		return "unix:" + a.String()
	}
	return a.String()
}

// listen takes the place of a socket that is there: its process is gone, or about to go.
func listen(ctx context.Context, address string) (net.Listener, error) {
	path, unix := strings.CutPrefix(address, "unix:")
	if !unix {
		return (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	}
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode()&os.ModeSocket == 0:
		return nil, fmt.Errorf("%s is there, and is no socket", path)
	default:
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	// The path may be another process's by the end.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// serve answers until ctx is done, or the listener fails.
func (s *Server) serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler: s.handler(), ReadHeaderTimeout: headerTime, ReadTimeout: headerTime, WriteTimeout: answerTime, IdleTimeout: idleTime,
		MaxHeaderBytes: maxHeaderBytes, ErrorLog: log.New(logger{s}, "", 0),
	}
	end := func() { _ = srv.Close() } // l is all that could be lost
	defer context.AfterFunc(ctx, end)()
	defer end()
	lim := &limited{Listener: l, places: make(chan struct{}, maxConnections), closed: ctx.Done()}
	srv.ConnState = lim.state
	return srv.Serve(lim)
}

// logger has what the server complains of in the process's log.
type logger struct{ s *Server }

func (l logger) Write(b []byte) (int, error) {
	l.s.logf(host.Warn, "meltemi: admin: %s", strings.TrimSpace(string(b)))
	return len(b), nil
}

// limited has no more connections than there are places.
type limited struct {
	net.Listener
	places chan struct{}
	closed <-chan struct{}

	mu    sync.Mutex
	quiet []net.Conn // ask for nothing, those that do so for the longest time first
	waits bool       // a new one, for the next that is quiet
}

func (l *limited) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	select {
	case l.places <- struct{}{}:
	default:
		l.makeRoom()
		select {
		case l.places <- struct{}{}:
			l.mu.Lock()
			l.waits = false // it may have been one that has left by itself
			l.mu.Unlock()
		case <-l.closed:
			c.Close()
			return nil, net.ErrClosed
		}
	}
	return &counted{Conn: c, free: sync.OnceFunc(func() { <-l.places })}, nil
}

// makeRoom closes one that asks for nothing, as soon as there is one. It is no choice for
// the next, though the server tells of its end only later.
func (l *limited) makeRoom() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waits = len(l.quiet) == 0; !l.waits {
		l.quiet[0].Close()
		l.quiet = slices.Delete(l.quiet, 0, 1)
	}
}

// state hears of the connections' states from the server.
func (l *limited) state(c net.Conn, s http.ConnState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.quiet = slices.DeleteFunc(l.quiet, func(o net.Conn) bool { return o == c })
	switch {
	case s != http.StateNew && s != http.StateIdle:
	case l.waits:
		l.waits = false
		c.Close()
	default:
		l.quiet = append(l.quiet, c)
	}
}

type counted struct {
	net.Conn
	free func()
}

func (c *counted) Close() error {
	defer c.free()
	return c.Conn.Close()
}
