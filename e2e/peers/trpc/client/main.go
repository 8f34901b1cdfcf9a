// Command client is a tRPC-Go client that does what lines of JSON on its
// standard input say, and answers with lines of JSON.
//
// A command is
//
//	{"id":1,"interface":"…","method":"SayHello","args":["x"],"attachments":{"tenant":"acme"},
//	 "timeout_ms":3000,"oneway":false,"count":100,"concurrency":10,"duration_ms":0,"summary":true}
//
// Without summary each call gives a line {"id":1,"value":…,"attachments":{…},
// "error":"…","error_type":"…","latency_us":…}; with summary there is one line
// for all: {"id":1,"calls":100,"values":{"a":90},"errors":{"text":10},
// "latency_us":{"p50":…,"p90":…,"p99":…,"max":…}}. With a duration the calls go
// on for that long. Commands run concurrently. Commands of streams are in
// stream.go.
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	trpc "trpc.group/trpc-go/trpc-go"
	"trpc.group/trpc-go/trpc-go/client"
	"trpc.group/trpc-go/trpc-go/codec"
	"trpc.group/trpc-go/trpc-go/errs"
	"trpc.group/trpc-go/trpc-go/pool/multiplexed"
	pb "trpc.group/trpc/trpc-protocol/pb/go/trpc"

	"github.com/meltemi-mesh/meltemi/e2e/peers/trpc/greeter"
)

type command struct {
	ID          int64             `json:"id"`
	Interface   string            `json:"interface"`
	Method      string            `json:"method"`
	Args        []json.RawMessage `json:"args"`
	Attachments map[string]string `json:"attachments"`
	TimeoutMS   int               `json:"timeout_ms"`
	Oneway      bool              `json:"oneway"`
	Count       int               `json:"count"`
	Concurrency int               `json:"concurrency"`
	DurationMS  int               `json:"duration_ms"`
	Summary     bool              `json:"summary"`
	streamCommand
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

// caller is the client.
type caller struct {
	timeout time.Duration
	options []client.Option
	streams struct {
		sync.Mutex
		m map[int64]*stream
	}
	out   *json.Encoder
	outMu sync.Mutex
}

func main() {
	addr := flag.String("addr", "", "`host:port` to call")
	timeout := flag.Duration("timeout", 3*time.Second, "of a call, unless its command says otherwise")
	connections := flag.Int("multiplexed", 0, "`number` of connections that all calls share; 0 is a pool with one call at a time on each")
	window := flag.Uint("window", 0, "`bytes` that servers may send ahead in a stream; 0 is the library's own")
	flag.Parse()
	c := &caller{timeout: *timeout, out: json.NewEncoder(greeter.Stdout())}
	c.streams.m = map[int64]*stream{}
	c.options = []client.Option{
		client.WithTarget("ip://" + *addr), client.WithNetwork("tcp"), client.WithProtocol("trpc"),
		client.WithMaxWindowSize(uint32(*window)),
	}
	unary := []client.Option{}
	if *connections > 0 {
		unary = append(unary, client.WithMultiplexed(true),
			client.WithMultiplexedPool(multiplexed.New(multiplexed.WithConnectNumber(*connections))))
	}

	var running sync.WaitGroup
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 64<<20)
	for in.Scan() {
		var cmd command
		if err := json.Unmarshal(in.Bytes(), &cmd); err != nil {
			log.Fatalf("command %.200q: %v", in.Bytes(), err)
		}
		running.Go(func() {
			if cmd.Stream != "" {
				c.print(c.stream(cmd))
				return
			}
			c.run(cmd, unary)
		})
	}
	running.Wait()
}

func (c *caller) print(v any) {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	if err := c.out.Encode(v); err != nil {
		log.Fatal(err)
	}
}

// run carries one command out.
func (c *caller) run(cmd command, options []client.Option) {
	cmd.Concurrency = max(cmd.Concurrency, 1)
	if cmd.DurationMS == 0 {
		cmd.Count = max(cmd.Count, 1)
	}
	var (
		next     atomic.Int64
		deadline = time.Now().Add(time.Duration(cmd.DurationMS) * time.Millisecond)
		callers  sync.WaitGroup
		mu       sync.Mutex
		sum      = summary{ID: cmd.ID, Values: map[string]int{}, Errors: map[string]int{}, LatencyUS: map[string]int64{}}
		took     []int64
	)
	for range cmd.Concurrency {
		callers.Go(func() {
			for {
				n := next.Add(1)
				if cmd.Count > 0 && n > int64(cmd.Count) || cmd.DurationMS > 0 && time.Now().After(deadline) {
					return
				}
				a := c.call(cmd, options)
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
				took = append(took, a.LatencyUS)
				mu.Unlock()
			}
		})
	}
	callers.Wait()
	if !cmd.Summary {
		return
	}
	slices.Sort(took)
	if n := len(took); n > 0 {
		for name, i := range map[string]int{"p50": n / 2, "p90": n * 9 / 10, "p99": n * 99 / 100, "max": n - 1} {
			sum.LatencyUS[name] = took[i]
		}
	}
	c.print(sum)
}

// call makes one call.
func (c *caller) call(cmd command, options []client.Option) (a answer) {
	a.ID = cmd.ID
	start := time.Now()
	defer func() { a.LatencyUS = time.Since(start).Microseconds() }()

	in, out, err := messages(cmd)
	if err != nil {
		a.Error, a.ErrorType = err.Error(), "usage"
		return a
	}
	ctx, msg := codec.WithCloneMessage(trpc.BackgroundContext())
	defer codec.PutBackMessage(msg)
	service := cmd.Interface
	if service == "" {
		service = "meltemi.test.Greeter"
	}
	msg.WithClientRPCName("/" + service + "/" + cmd.Method)
	msg.WithCalleeServiceName(service)
	msg.WithSerializationType(codec.SerializationTypePB)

	timeout := c.timeout
	if cmd.TimeoutMS > 0 {
		timeout = time.Duration(cmd.TimeoutMS) * time.Millisecond
	}
	head := &pb.ResponseProtocol{}
	options = append(slices.Concat(c.options, options), client.WithTimeout(timeout), client.WithRspHead(head))
	for k, v := range cmd.Attachments {
		options = append(options, client.WithMetaData(k, []byte(v)))
	}
	if cmd.Oneway {
		options = append(options, client.WithSendOnly())
	}
	err = client.DefaultClient.Invoke(ctx, in, out, options...)
	a.Attachments = map[string]string{}
	for k, v := range head.GetTransInfo() {
		a.Attachments[k] = string(v)
	}
	if err != nil {
		a.Error, a.ErrorType = describe(err)
	} else if !cmd.Oneway {
		a.Value = plain(out)
	}
	return a
}

// messages makes the request of a command, and what its answer is read into.
func messages(cmd command) (in, out proto.Message, err error) {
	arg := json.RawMessage(`""`)
	if len(cmd.Args) > 0 {
		arg = cmd.Args[0]
	}
	switch cmd.Method {
	case "Sleep":
		m := &greeter.Number{}
		return m, &greeter.Text{}, json.Unmarshal(arg, &m.Number)
	case "Blob":
		m := &greeter.Bytes{}
		return m, &greeter.Bytes{}, json.Unmarshal(arg, &m.Bytes)
	}
	m := &greeter.Text{}
	out = &greeter.Text{}
	switch cmd.Method {
	case "Told":
		out = &greeter.Number{}
	case "Metadata", "Streams":
		out = &greeter.Map{}
	}
	return m, out, json.Unmarshal(arg, &m.Text)
}

// plain makes JSON of an answer.
func plain(m proto.Message) any {
	switch m := m.(type) {
	case *greeter.Text:
		return m.GetText()
	case *greeter.Number:
		return m.GetNumber()
	case *greeter.Bytes:
		return base64.StdEncoding.EncodeToString(m.GetBytes())
	case *greeter.Map:
		return m.GetMap()
	}
	return fmt.Sprint(m)
}

// describe tells the text of an error, and its kind with its code. Errors of
// streams are wrapped in one that says no more than that they have ended.
func describe(err error) (text, kind string) {
	var e *errs.Error
	if !errors.As(err, &e) {
		return err.Error(), fmt.Sprintf("%T", err)
	}
	for cause := e; errors.As(cause.Unwrap(), &cause); {
		e = cause
	}
	kind = "framework"
	switch e.Type {
	case errs.ErrorTypeBusiness:
		kind = "business"
	case errs.ErrorTypeCalleeFramework:
		kind = "callee"
	}
	return e.Msg, fmt.Sprintf("%s %d", kind, e.Code)
}
