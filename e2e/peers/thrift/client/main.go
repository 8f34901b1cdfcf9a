// Command client is an Apache Thrift client that does what lines of JSON on its
// standard input say, and answers with lines of JSON.
//
// A command is
//
//	{"id":1,"interface":"Audit","method":"echo","args":["x"],
//	 "attachments":{"tenant":"acme"},"timeout_ms":3000,"close":false,
//	 "count":100,"concurrency":10,"duration_ms":0,"summary":true}
//
// An interface is a service of a multiplexed server; attachments are headers.
// Without summary each call gives a line {"id":1,"value":…,"attachments":{…},
// "error":"…","error_type":"…","latency_us":…}; with summary there is one line
// for all: {"id":1,"calls":100,"values":{"v1":90},"errors":{"text":10},
// "latency_us":{"max":…}}. With a duration the calls go on for that long.
// Commands run concurrently, each call in flight has a connection to itself;
// those that are free are used again, the last one first.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apache/thrift/lib/go/thrift"

	"github.com/meltemi-mesh/meltemi/e2e/peers/thrift/echo"
	"github.com/meltemi-mesh/meltemi/e2e/peers/thrift/wire"
)

type command struct {
	ID          int64             `json:"id"`
	Interface   string            `json:"interface"`
	Method      string            `json:"method"`
	Args        []json.RawMessage `json:"args"`
	Attachments map[string]string `json:"attachments"`
	TimeoutMS   int               `json:"timeout_ms"`
	Close       bool              `json:"close"`
	Count       int               `json:"count"`
	Concurrency int               `json:"concurrency"`
	DurationMS  int               `json:"duration_ms"`
	Summary     bool              `json:"summary"`
}

type answer struct {
	ID          int64             `json:"id"`
	Value       any               `json:"value"`
	Attachments map[string]string `json:"attachments,omitempty"`
	Error       string            `json:"error,omitempty"`
	ErrorType   string            `json:"error_type,omitempty"`
	LatencyUS   int64             `json:"latency_us"`
}

type summary struct {
	ID        int64            `json:"id"`
	Calls     int              `json:"calls"`
	Values    map[string]int   `json:"values"`
	Errors    map[string]int   `json:"errors"`
	LatencyUS map[string]int64 `json:"latency_us"`
}

// connection is used by one call at a time. Its clients, by service, count
// their sequence ids themselves.
type connection struct {
	socket   *thrift.TSocket
	protocol thrift.TProtocol
	clients  map[string]*thrift.TStandardClient
}

func (c *connection) client(service string) *thrift.TStandardClient {
	if c.clients[service] == nil {
		p := c.protocol
		if service != "" {
			p = thrift.NewTMultiplexedProtocol(p, service)
		}
		c.clients[service] = thrift.NewTStandardClient(c.protocol, p)
	}
	return c.clients[service]
}

type client struct {
	addr      string
	timeout   time.Duration
	transport thrift.TTransportFactory
	protocol  thrift.TProtocolFactory
	conf      *thrift.TConfiguration

	mu   sync.Mutex
	idle []*connection

	outMu sync.Mutex
	out   *json.Encoder
}

func main() {
	addr := flag.String("addr", "", "`host:port` to call")
	timeout := flag.Duration("timeout", 3*time.Second, "of a call, unless its command says otherwise")
	w := wire.Flags()
	flag.Parse()

	c := &client{addr: *addr, timeout: *timeout, out: json.NewEncoder(os.Stdout)}
	var err error
	if c.transport, c.protocol, c.conf, err = w.Factories(*timeout); err != nil {
		log.Fatal(err)
	}
	var running sync.WaitGroup
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 64<<20)
	for in.Scan() {
		var cmd command
		if err := json.Unmarshal(in.Bytes(), &cmd); err != nil {
			log.Fatalf("command %.200q: %v", in.Bytes(), err)
		}
		running.Go(func() { c.run(cmd) })
	}
	running.Wait()
}

func (c *client) print(v any) {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	if err := c.out.Encode(v); err != nil {
		log.Fatal(err)
	}
}

// run carries one command out.
func (c *client) run(cmd command) {
	if cmd.DurationMS == 0 {
		cmd.Count = max(cmd.Count, 1)
	}
	var (
		next     atomic.Int64
		deadline = time.Now().Add(time.Duration(cmd.DurationMS) * time.Millisecond)
		callers  sync.WaitGroup
		mu       sync.Mutex
		sum      = summary{ID: cmd.ID, Values: map[string]int{}, Errors: map[string]int{}, LatencyUS: map[string]int64{}}
	)
	for range max(cmd.Concurrency, 1) {
		callers.Go(func() {
			for {
				n := next.Add(1)
				if cmd.Count > 0 && n > int64(cmd.Count) || cmd.DurationMS > 0 && time.Now().After(deadline) {
					return
				}
				a := c.call(cmd)
				if !cmd.Summary {
					c.print(a)
					continue
				}
				mu.Lock()
				sum.Calls++
				if a.Error != "" {
					sum.Errors[a.Error]++
				} else {
					sum.Values[fmt.Sprint(a.Value)]++
				}
				sum.LatencyUS["max"] = max(sum.LatencyUS["max"], a.LatencyUS)
				mu.Unlock()
			}
		})
	}
	callers.Wait()
	if cmd.Summary {
		c.print(sum)
	}
}

// connect gives a connection that is free, or a new one.
func (c *client) connect(fresh bool) (*connection, error) {
	c.mu.Lock()
	if n := len(c.idle); n > 0 && !fresh {
		conn := c.idle[n-1]
		c.idle = c.idle[:n-1]
		c.mu.Unlock()
		return conn, nil
	}
	c.mu.Unlock()
	socket := thrift.NewTSocketConf(c.addr, c.conf)
	transport, err := c.transport.GetTransport(socket)
	if err != nil {
		return nil, err
	}
	conn := &connection{socket: socket, protocol: c.protocol.GetProtocol(transport), clients: map[string]*thrift.TStandardClient{}}
	return conn, socket.Open()
}

func (c *client) release(conn *connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = append(c.idle, conn)
}

// call makes one call.
func (c *client) call(cmd command) (a answer) {
	a.ID = cmd.ID
	start := time.Now()
	defer func() { a.LatencyUS = time.Since(start).Microseconds() }()

	conn, err := c.connect(cmd.Close)
	if err != nil {
		a.Error, a.ErrorType = err.Error(), "connect"
		return a
	}
	timeout := c.timeout
	if cmd.TimeoutMS > 0 {
		timeout = time.Duration(cmd.TimeoutMS) * time.Millisecond
	}
	conn.socket.SetSocketTimeout(timeout)
	ctx := context.Background()
	for k, v := range cmd.Attachments {
		ctx = thrift.SetHeader(ctx, k, v)
	}
	ctx = thrift.SetWriteHeaderList(ctx, slices.Collect(maps.Keys(cmd.Attachments)))

	start = time.Now()
	a.Value, a.Attachments, err = invoke(ctx, conn.client(cmd.Interface), cmd)
	broken := false
	if err != nil {
		a.Value = nil
		a.Error, a.ErrorType, broken = describe(err)
	}
	if broken || cmd.Close {
		conn.socket.Close()
	} else {
		c.release(conn)
	}
	return a
}

// describe tells what an error is, and whether its connection is out of step.
func describe(err error) (text, kind string, broken bool) {
	var refusal *echo.Refusal
	var application thrift.TApplicationException
	switch {
	case errors.As(err, &refusal):
		return fmt.Sprintf("%s (code %d)", refusal.Reason, refusal.Code), "Refusal", false
	case errors.As(err, &application):
		id := application.TypeId()
		broken = id == thrift.BAD_SEQUENCE_ID || id == thrift.WRONG_METHOD_NAME || id == thrift.INVALID_MESSAGE_TYPE_EXCEPTION
		return application.Error(), fmt.Sprintf("TApplicationException %d", id), broken
	default:
		return err.Error(), "transport", true
	}
}

// invoke makes the call with the generated client.
func invoke(ctx context.Context, tc thrift.TClient, cmd command) (value any, headers map[string]string, err error) {
	e := echo.NewEchoClient(tc)
	defer func() { headers = e.LastResponseMeta_().Headers }()
	arg := func(i int, v any) {
		if err == nil && i >= len(cmd.Args) {
			err = fmt.Errorf("%s has an argument %d", cmd.Method, i)
		}
		if err == nil {
			err = json.Unmarshal(cmd.Args[i], v)
		}
	}
	var (
		text string
		a, b int32
		blob []byte
	)
	switch cmd.Method {
	case "echo", "touch", "tell", "noSuch":
		arg(0, &text)
	case "add":
		arg(0, &a)
		arg(1, &b)
	case "fail", "slow":
		arg(0, &a)
	case "blob":
		arg(0, &blob)
	}
	if err != nil {
		return nil, nil, err
	}
	switch cmd.Method {
	case "who":
		value, err = e.Who(ctx)
	case "echo":
		value, err = e.Echo(ctx, text)
	case "add":
		value, err = e.Add(ctx, a, b)
	case "touch":
		err = e.Touch(ctx, text)
	case "fail":
		value, err = e.Fail(ctx, a)
	case "crash":
		value, err = e.Crash(ctx)
	case "slow":
		value, err = e.Slow(ctx, a)
	case "blob":
		value, err = e.Blob(ctx, blob)
	case "headers":
		value, err = e.Headers(ctx)
	case "tell":
		err = e.Tell(ctx, text)
	case "told":
		value, err = e.Told(ctx)
	case "noSuch":
		value, err = echo.NewUnservedClient(tc).NoSuch(ctx, text)
	default:
		err = fmt.Errorf("no method %q", cmd.Method)
	}
	return value, nil, err
}
