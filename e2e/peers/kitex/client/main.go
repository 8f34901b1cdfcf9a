// Command client is a Kitex client that does what lines of JSON on its standard
// input say, and answers with lines of JSON.
//
// A command is
//
//	{"id":1,"method":"echo","args":["x"],"attachments":{"RPC_TRANSIT_tenant":"acme"},
//	 "timeout_ms":3000,"count":100,"concurrency":10,"summary":true}
//
// Attachments are metainfo, by its names on the wire. Without summary each call
// gives a line {"id":1,"value":…,"attachments":{…},"error":"…","error_type":"…",
// "latency_us":…}; with summary there is one line for all: {"id":1,"calls":100,
// "values":{"v1":90},"errors":{"text":10},"latency_us":{"max":…}}. Commands run
// concurrently.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bytedance/gopkg/cloud/metainfo"
	kitex "github.com/cloudwego/kitex/client"
	"github.com/cloudwego/kitex/client/callopt"
	"github.com/cloudwego/kitex/pkg/connpool"
	"github.com/cloudwego/kitex/pkg/kerrors"
	"github.com/cloudwego/kitex/pkg/remote"
	"github.com/cloudwego/kitex/pkg/transmeta"
	"github.com/cloudwego/kitex/transport"

	"github.com/meltemi-mesh/meltemi/e2e/peers/kitex/gen/api"
	"github.com/meltemi-mesh/meltemi/e2e/peers/kitex/gen/api/echo"
	"github.com/meltemi-mesh/meltemi/e2e/peers/kitex/gen/api/unserved"
)

type command struct {
	ID          int64             `json:"id"`
	Method      string            `json:"method"`
	Args        []json.RawMessage `json:"args"`
	Attachments map[string]string `json:"attachments"`
	TimeoutMS   int               `json:"timeout_ms"`
	Count       int               `json:"count"`
	Concurrency int               `json:"concurrency"`
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

type client struct {
	echo     echo.Client
	unserved unserved.Client
	timeout  time.Duration
	outMu    sync.Mutex
	out      *json.Encoder
}

func main() {
	addr := flag.String("addr", "", "`host:port` to call")
	timeout := flag.Duration("timeout", 3*time.Second, "of a call, unless its command says otherwise")
	protocol := flag.String("transport", "ttheader", "ttheader, ttheaderframed or framed")
	connections := flag.String("connections", "short", "short: one for each call; long: a pool; mux: one for all")
	flag.Parse()

	options := []kitex.Option{
		kitex.WithHostPorts(*addr), kitex.WithMetaHandler(transmeta.ClientTTHeaderHandler),
		kitex.WithConnectTimeout(10 * time.Second), // instead of 50 ms, which pass on a busy machine
	}
	switch *protocol {
	case "ttheader":
		options = append(options, kitex.WithTransportProtocol(transport.TTHeader))
	case "ttheaderframed":
		options = append(options, kitex.WithTransportProtocol(transport.TTHeaderFramed))
	case "framed":
		options = append(options, kitex.WithTransportProtocol(transport.Framed))
	default:
		log.Fatalf("unknown transport %q", *protocol)
	}
	switch *connections {
	case "short":
		options = append(options, kitex.WithShortConnection())
	case "long":
		options = append(options, kitex.WithLongConnection(connpool.IdleConfig{
			MaxIdlePerAddress: 100, MaxIdleGlobal: 100, MaxIdleTimeout: time.Minute,
		}))
	case "mux":
		options = append(options, kitex.WithMuxConnection(1))
	default:
		log.Fatalf("unknown connections %q", *connections)
	}
	c := &client{timeout: *timeout, out: json.NewEncoder(os.Stdout)}
	c.echo = echo.MustNewClient("meltemi.test.echo", options...)
	c.unserved = unserved.MustNewClient("meltemi.test.echo", options...)

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
	var (
		next    atomic.Int64
		callers sync.WaitGroup
		mu      sync.Mutex
		sum     = summary{ID: cmd.ID, Values: map[string]int{}, Errors: map[string]int{}, LatencyUS: map[string]int64{}}
	)
	for range max(cmd.Concurrency, 1) {
		callers.Go(func() {
			for next.Add(1) <= int64(max(cmd.Count, 1)) {
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

// call makes one call.
func (c *client) call(cmd command) (a answer) {
	a.ID = cmd.ID
	timeout := c.timeout
	if cmd.TimeoutMS > 0 {
		timeout = time.Duration(cmd.TimeoutMS) * time.Millisecond
	}
	ctx := metainfo.SetMetaInfoFromMap(context.Background(), cmd.Attachments)
	ctx = metainfo.WithBackwardValues(ctx)
	start := time.Now()
	value, err := c.invoke(ctx, cmd, callopt.WithRPCTimeout(timeout))
	a.LatencyUS = time.Since(start).Microseconds()
	a.Attachments = metainfo.RecvAllBackwardValues(ctx)
	if err != nil {
		a.Error, a.ErrorType = describe(err)
		return a
	}
	a.Value = value
	return a
}

// describe tells what an error is.
func describe(err error) (text, kind string) {
	var refusal *api.Refusal
	var trans *remote.TransError
	business, isBusiness := kerrors.FromBizStatusError(err)
	switch {
	case isBusiness:
		return fmt.Sprintf("%s (code %d, extra %v)", business.BizMessage(), business.BizStatusCode(), business.BizExtra()), "BizStatusError"
	case errors.As(err, &refusal):
		return fmt.Sprintf("%s (code %d)", refusal.Reason, refusal.Code), "Refusal"
	case kerrors.IsTimeoutError(err):
		return err.Error(), "timeout"
	case errors.As(err, &trans):
		return trans.Error(), fmt.Sprintf("TApplicationException %d", trans.TypeID())
	default:
		return err.Error(), "transport"
	}
}

// invoke makes the call with the generated client.
func (c *client) invoke(ctx context.Context, cmd command, o ...callopt.Option) (value any, err error) {
	var (
		text string
		n    int32
		blob []byte
	)
	arg := func(v any) {
		if len(cmd.Args) == 0 {
			err = errors.New(cmd.Method + " has an argument")
			return
		}
		err = json.Unmarshal(cmd.Args[0], v)
	}
	switch cmd.Method {
	case "echo", "touch", "tell", "noSuch":
		arg(&text)
	case "fail", "business", "slow":
		arg(&n)
	case "blob":
		arg(&blob)
	}
	if err != nil {
		return nil, err
	}
	switch cmd.Method {
	case "who":
		return c.echo.Who(ctx, o...)
	case "echo":
		return c.echo.Echo(ctx, text, o...)
	case "touch":
		return nil, c.echo.Touch(ctx, text, o...)
	case "fail":
		return c.echo.Fail(ctx, n, o...)
	case "business":
		return c.echo.Business(ctx, n, o...)
	case "crash":
		return c.echo.Crash(ctx, o...)
	case "slow":
		return c.echo.Slow(ctx, n, o...)
	case "blob":
		return c.echo.Blob(ctx, blob, o...)
	case "headers":
		return c.echo.Headers(ctx, o...)
	case "tell":
		return nil, c.echo.Tell(ctx, text, o...)
	case "told":
		return c.echo.Told(ctx, o...)
	case "noSuch":
		return c.unserved.NoSuch(ctx, text, o...)
	default:
		return nil, errors.New("no method " + cmd.Method)
	}
}
