// Command server is a tRPC-Go server for tests. It prints one line of JSON,
// {"port":N}, as soon as it accepts connections.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	trpc "trpc.group/trpc-go/trpc-go"
	"trpc.group/trpc-go/trpc-go/codec"
	"trpc.group/trpc-go/trpc-go/errs"
	"trpc.group/trpc-go/trpc-go/server"

	"github.com/meltemi-mesh/meltemi/e2e/peers/trpc/greeter"
)

// Codes of business errors.
const (
	failed       = 10042
	streamFailed = 10043
)

// peer serves both services.
type peer struct {
	name string
	told atomic.Int64

	mu      sync.Mutex
	open    int
	started map[string]int // streams, by the method
	ended   map[string]int // streams, by the reason
}

func main() {
	name := flag.String("name", "trpc", "`name` of this instance, in its answers")
	host := flag.String("host", "127.0.0.1", "address to serve at")
	port := flag.Int("port", 0, "port; 0 lets the kernel choose")
	streams := flag.Bool("streams", false, "serve streams too, which makes the server handle the requests of a connection one after the other")
	window := flag.Uint("window", 0, "`bytes` that clients may send ahead in a stream; 0 is the library's own")
	flag.Parse()
	stdout := greeter.Stdout()

	l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", *host, *port))
	if err != nil {
		log.Fatal(err)
	}
	p := &peer{name: *name, started: map[string]int{}, ended: map[string]int{}}
	s := server.New(
		server.WithServiceName("meltemi.test.Greeter"), server.WithNetwork("tcp"), server.WithProtocol("trpc"),
		server.WithListener(l), server.WithMaxWindowSize(uint32(*window)),
		// As it is with a configuration file. Streams undo it.
		server.WithServerAsync(true),
	)
	greeter.RegisterGreeterService(s, p)
	if *streams {
		greeter.RegisterStreamerService(s, p)
	}
	json.NewEncoder(stdout).Encode(map[string]int{"port": l.Addr().(*net.TCPAddr).Port})
	log.Fatal(s.Serve())
}

func (p *peer) SayHello(_ context.Context, in *greeter.Text) (*greeter.Text, error) {
	return &greeter.Text{Text: p.name + ": hello " + in.GetText()}, nil
}

func (p *peer) Who(context.Context, *greeter.Text) (*greeter.Text, error) {
	return &greeter.Text{Text: p.name}, nil
}

func (p *peer) Fail(_ context.Context, in *greeter.Text) (*greeter.Text, error) {
	return nil, errs.New(failed, in.GetText())
}

func (p *peer) Sleep(_ context.Context, in *greeter.Number) (*greeter.Text, error) {
	d := time.Duration(in.GetNumber()) * time.Millisecond
	if d >= time.Minute {
		fmt.Fprintln(os.Stderr, "asleep")
	}
	time.Sleep(d)
	return &greeter.Text{Text: p.name}, nil
}

func (p *peer) Tell(context.Context, *greeter.Text) (*greeter.Text, error) {
	p.told.Add(1)
	return &greeter.Text{}, nil
}

func (p *peer) Told(context.Context, *greeter.Text) (*greeter.Number, error) {
	return &greeter.Number{Number: p.told.Load()}, nil
}

func (p *peer) Blob(_ context.Context, in *greeter.Bytes) (*greeter.Bytes, error) { return in, nil }

func (p *peer) Metadata(ctx context.Context, _ *greeter.Text) (*greeter.Map, error) {
	m := metadata(ctx)
	trpc.SetMetaData(ctx, "served-by", []byte(p.name))
	return &greeter.Map{Map: m}, nil
}

func metadata(ctx context.Context) map[string]string {
	m := map[string]string{}
	for k, v := range codec.Message(ctx).ServerMetaData() {
		m[k] = string(v)
	}
	return m
}

func (p *peer) Streams(context.Context, *greeter.Text) (*greeter.Map, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := map[string]string{"open": strconv.Itoa(p.open)}
	for _, counts := range []map[string]int{p.started, p.ended} {
		for k, n := range maps.All(counts) {
			m[k] = strconv.Itoa(n)
		}
	}
	return &greeter.Map{Map: m}, nil
}

// begin notes that a stream is open until its end is called with the outcome.
func (p *peer) begin(method string) (end func(error)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open++
	p.started["started "+method]++
	return func(err error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.open--
		switch {
		case err == nil:
			p.ended["ended well"]++
		case errs.Code(err) == streamFailed:
			p.ended["ended with an error"]++
		default:
			p.ended["lost"]++
		}
	}
}

func (p *peer) Upload(s greeter.Streamer_UploadServer) (err error) {
	end := p.begin("Upload")
	defer func() { end(err) }()
	var t greeter.Tally
	for {
		item, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return s.SendAndClose(&greeter.Count{
				Name: p.name, Items: t.Items, Bytes: t.Bytes, Wrong: t.Wrong, Metadata: metadata(s.Context()),
			})
		}
		if err != nil {
			return err
		}
		t.Add(item)
	}
}

func (p *peer) Download(order *greeter.Order, s greeter.Streamer_DownloadServer) (err error) {
	end := p.begin("Download")
	defer func() { end(err) }()
	for n := range order.GetItems() {
		item := greeter.NewItem(n, int(order.GetSize()))
		item.Name = p.name
		if err := s.Send(item); err != nil {
			return err
		}
	}
	// tRPC-Go forgets a stream before its end is on the wire, and answers a feedback of the
	// client's that comes in between by a reset. So they come before.
	time.Sleep(300 * time.Millisecond)
	return nil
}

func (p *peer) Chat(s greeter.Streamer_ChatServer) (err error) {
	end := p.begin("Chat")
	defer func() { end(err) }()
	for {
		item, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if string(item.GetPayload()) == "fail" {
			return errs.New(streamFailed, "failed as it was asked to")
		}
		item.Name = p.name
		if err := s.Send(item); err != nil {
			return err
		}
	}
}
