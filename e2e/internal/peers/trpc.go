package peers

import (
	"encoding/json"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"
)

// TRPCServerOptions are options of a tRPC-Go server.
type TRPCServerOptions struct {
	Place
	// Name in the answers.
	Name string
	// Port; 0 lets the kernel choose.
	Port int
	// Streams makes it serve streams too. It then handles the requests of one
	// connection one after the other.
	Streams bool
	// Window is how many bytes clients may send ahead in a stream; 0 is the
	// library's own.
	Window uint32
}

// TRPCServer starts a tRPC-Go server. It is ready when TRPCServer returns, and
// ends with the test.
func TRPCServer(t testing.TB, o TRPCServerOptions) *Provider {
	t.Helper()
	needed(t, "trpc", "Go", buildTRPC())
	return startProvider(t, "trpc server "+o.Name, o.within([]string{
		filepath.Join(trpcBuild(), "server"), "-name", o.Name, "-host", o.host(), "-port", strconv.Itoa(o.Port),
		"-streams=" + strconv.FormatBool(o.Streams), "-window", strconv.FormatUint(uint64(o.Window), 10),
	}), nil)
}

// TRPCClientOptions are options of a tRPC-Go client.
type TRPCClientOptions struct {
	Place
	// Timeout of a call; 0 is 3 s.
	Timeout time.Duration
	// Multiplexed is the number of connections that all calls share; 0 is a pool
	// with one call at a time on each.
	Multiplexed int
	// Window is how many bytes servers may send ahead in a stream; 0 is the
	// library's own.
	Window uint32
}

// TRPCClient starts a tRPC-Go client that calls a port. It ends with
// the test.
func TRPCClient(t testing.TB, port int, o TRPCClientOptions) *Consumer {
	t.Helper()
	needed(t, "trpc", "Go", buildTRPC())
	argv := []string{
		filepath.Join(trpcBuild(), "client"), "-addr", o.address(port),
		"-multiplexed", strconv.Itoa(o.Multiplexed), "-window", strconv.FormatUint(uint64(o.Window), 10),
	}
	if o.Timeout > 0 {
		argv = append(argv, "-timeout", o.Timeout.String())
	}
	return startConsumer(t, "trpc client", o.within(argv), nil)
}

func trpcBuild() string { return filepath.Join(Root(), "build", "peers", "trpc") }

var buildTRPC = sync.OnceValue(func() error {
	return run(filepath.Join(Root(), "e2e", "peers", "trpc"), "go", "build", "-trimpath", "-o", trpcBuild()+"/", "./server", "./client")
})

// StreamCommand is the part of a Command that is for a stream.
type StreamCommand struct {
	// Stream is open, send, receive, close or cancel.
	Stream string `json:"stream,omitempty"`
	// Handle is the id of the command that opened the stream.
	Handle int64 `json:"handle,omitempty"`
	// Items is how many items to send or to receive, 0 for all that come; or to
	// ask for when the stream is opened.
	Items int `json:"items,omitempty"`
	// Size of the items' payload.
	Size int `json:"size,omitempty"`
	// DelayUS is how long a receiver rests after each item.
	DelayUS int `json:"delay_us,omitempty"`
}

// Stream is a stream that a client has opened.
type Stream struct {
	c      *Consumer
	handle int64
}

// Open opens a stream. The answer has an error if it is refused.
func (c *Consumer) Open(cmd Command) (*Stream, Answer) {
	c.t.Helper()
	cmd.Stream = "open"
	a := c.Call(cmd)
	return &Stream{c, a.ID}, a
}

// Go starts a command of the stream.
func (s *Stream) Go(what string, cmd Command) *Pending {
	s.c.t.Helper()
	cmd.Stream, cmd.Handle = what, s.handle
	return s.c.Go(cmd)
}

// Do gives a command of the stream and waits for its outcome.
func (s *Stream) Do(what string, cmd Command) Answer {
	s.c.t.Helper()
	return s.Go(what, cmd).Answers()[0]
}

// Received is the value that receive answers, and what a server has counted.
type Received struct {
	Items int   `json:"items"`
	Bytes int64 `json:"bytes"`
	// Wrong says what was wrong with the first item that was not the next one,
	// or was changed.
	Wrong string `json:"wrong"`
	// End tells that the stream has ended well.
	End bool `json:"end"`
	// Names are those of the servers that sent items, with how many.
	Names map[string]int `json:"names"`
	// Name is that of the server that counted, Metadata that of its stream.
	Name     string            `json:"name"`
	Metadata map[string]string `json:"metadata"`
}

// Received makes sense of the value.
func (a Answer) Received(t testing.TB) (r Received) {
	t.Helper()
	b, err := json.Marshal(a.Value)
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}
