// Command consumer is a dubbo-go client that does what lines of JSON on its
// standard input say, and answers with lines of JSON.
//
// A command is
//
//	{"id":1,"interface":"…","group":"…","version":"…","method":"sayHello","args":["x"],
//	 "attachments":{"tenant":"acme"},"timeout_ms":3000,"oneway":false,
//	 "count":100,"concurrency":10,"duration_ms":0,"summary":true}
//
// Without summary each call gives a line {"id":1,"value":…,"attachments":{…},
// "error":"…","error_type":"…","latency_us":…}; with summary there is one line
// for all: {"id":1,"calls":100,"values":{"v1":90},"errors":{"text":10},
// "latency_us":{"p50":…,"p90":…,"p99":…,"max":…}}. With a duration the calls go
// on for that long. Commands run concurrently.
package main

import (
	"bufio"
	"context"
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

	dubbo "dubbo.apache.org/dubbo-go/v3"
	"dubbo.apache.org/dubbo-go/v3/common"
	"dubbo.apache.org/dubbo-go/v3/common/constant"
	"dubbo.apache.org/dubbo-go/v3/common/extension"
	"dubbo.apache.org/dubbo-go/v3/logger"
	"dubbo.apache.org/dubbo-go/v3/protocol"
	"dubbo.apache.org/dubbo-go/v3/protocol/invocation"
	hessian "github.com/apache/dubbo-go-hessian2"
	perrors "github.com/pkg/errors"

	"github.com/meltemi-mesh/meltemi/e2e/peers/dubbogo/greeter"
)

type command struct {
	ID          int64             `json:"id"`
	Interface   string            `json:"interface"`
	Group       string            `json:"group"`
	Version     string            `json:"version"`
	Method      string            `json:"method"`
	Args        []json.RawMessage `json:"args"`
	Attachments map[string]any    `json:"attachments"`
	TimeoutMS   int               `json:"timeout_ms"`
	Oneway      bool              `json:"oneway"`
	Count       int               `json:"count"`
	Concurrency int               `json:"concurrency"`
	DurationMS  int               `json:"duration_ms"`
	Summary     bool              `json:"summary"`
}

type answer struct {
	ID          int64          `json:"id"`
	Value       any            `json:"value"`
	Attachments map[string]any `json:"attachments,omitempty"`
	Error       string         `json:"error,omitempty"`
	ErrorType   string         `json:"error_type,omitempty"`
	LatencyUS   int64          `json:"latency_us"`
}

type summary struct {
	ID        int64            `json:"id"`
	Calls     int              `json:"calls"`
	Values    map[string]int   `json:"values"`
	Errors    map[string]int   `json:"errors"`
	LatencyUS map[string]int64 `json:"latency_us"`
}

// arguments and replies by method; unknown methods take and give strings.
var (
	arguments = map[string]func(json.RawMessage) (any, error){
		"echo":    as[*greeter.Person],
		"echoMap": as[map[string]any],
		"sleep":   as[int32],
		"blob":    as[[]byte],
	}
	replies = map[string]func() any{
		"echo":        func() any { return new(greeter.Person) },
		"returnNull":  func() any { return new(greeter.Person) },
		"echoMap":     func() any { return new(map[any]any) },
		"attachments": func() any { return new(map[any]any) },
		"told":        func() any { return new(int32) },
		"blob":        func() any { return new([]byte) },
	}
)

func as[T any](raw json.RawMessage) (any, error) {
	var v T
	err := json.Unmarshal(raw, &v)
	return v, err
}

type reference struct{ intf, group, version string }

type consumer struct {
	addr    string
	timeout time.Duration
	mu      sync.Mutex
	refs    map[reference]protocol.Invoker
	out     *json.Encoder
	outMu   sync.Mutex
}

func main() {
	addr := flag.String("addr", "", "`host:port` to call")
	timeout := flag.Duration("timeout", 3*time.Second, "of a call, unless its command says otherwise")
	heartbeat := flag.Duration("heartbeat", 30*time.Second, "period of heartbeats on each connection")
	connections := flag.Int("connections", 16, "upper bound of the pool of connections")
	flag.Parse()

	c := &consumer{addr: *addr, timeout: *timeout, refs: map[reference]protocol.Invoker{}, out: json.NewEncoder(os.Stdout)}
	// dubbo-go logs to stdout, which is ours.
	os.Stdout = os.Stderr

	if _, err := dubbo.NewInstance(dubbo.WithName("consumer"), dubbo.WithLogger(logger.WithLevel("error"))); err != nil {
		log.Fatal(err)
	}
	greeter.SetTransport(map[string]any{"heartbeat-period": heartbeat.String(), "connection-number": *connections})

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

func (c *consumer) print(v any) {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	if err := c.out.Encode(v); err != nil {
		log.Fatal(err)
	}
}

// run carries one command out.
func (c *consumer) run(cmd command) {
	if cmd.Interface == "" {
		cmd.Interface = greeter.Interface
	}
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
func (c *consumer) call(cmd command) (a answer) {
	a.ID = cmd.ID
	start := time.Now()
	defer func() { a.LatencyUS = time.Since(start).Microseconds() }()

	invoker, err := c.refer(reference{cmd.Interface, cmd.Group, cmd.Version})
	if err != nil {
		a.Error, a.ErrorType = err.Error(), "connect"
		return a
	}
	inv, err := c.invocation(cmd)
	if err != nil {
		a.Error, a.ErrorType = err.Error(), "usage"
		return a
	}
	start = time.Now()
	result := invoker.Invoke(context.Background(), inv)
	a.Attachments = result.Attachments()
	if err := result.Error(); err != nil {
		a.Error, a.ErrorType = perrors.Cause(err).Error(), fmt.Sprintf("%T", perrors.Cause(err))
		if pojo, ok := perrors.Cause(err).(hessian.POJO); ok {
			a.ErrorType = pojo.JavaClassName()
		}
		return a
	}
	if !cmd.Oneway {
		a.Value = plain(cmd.Method, inv.Reply())
	}
	return a
}

func (c *consumer) invocation(cmd command) (*invocation.RPCInvocation, error) {
	timeout := c.timeout
	if cmd.TimeoutMS > 0 {
		timeout = time.Duration(cmd.TimeoutMS) * time.Millisecond
	}
	attachments := map[string]any{constant.AsyncKey: "false", constant.TimeoutKey: timeout.String()}
	if cmd.Oneway {
		// An asynchronous call without a callback goes out as oneway.
		attachments[constant.AsyncKey] = "true"
	}
	for k, v := range cmd.Attachments {
		attachments[k] = v
	}
	args := []any{}
	for _, raw := range cmd.Args {
		parse, ok := arguments[cmd.Method]
		if !ok {
			parse = as[string]
		}
		v, err := parse(raw)
		if err != nil {
			return nil, err
		}
		args = append(args, v)
	}
	reply := any(new(string))
	if r, ok := replies[cmd.Method]; ok {
		reply = r()
	}
	return invocation.NewRPCInvocationWithOptions(
		invocation.WithMethodName(cmd.Method), invocation.WithArguments(args),
		invocation.WithAttachments(attachments), invocation.WithReply(reply)), nil
}

// refer gives the invoker of an interface. All share the connections to the
// address.
func (c *consumer) refer(r reference) (protocol.Invoker, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if invoker, ok := c.refs[r]; ok {
		return invoker, nil
	}
	url, err := common.NewURL("dubbo://"+c.addr+"/"+r.intf,
		common.WithParamsValue(constant.InterfaceKey, r.intf), common.WithParamsValue(constant.GroupKey, r.group),
		common.WithParamsValue(constant.VersionKey, r.version), common.WithParamsValue(constant.TimeoutKey, c.timeout.String()))
	if err != nil {
		return nil, err
	}
	invoker := extension.GetProtocol("dubbo").Refer(url)
	if invoker == nil {
		return nil, errors.New("cannot connect to " + c.addr)
	}
	c.refs[r] = invoker
	return invoker, nil
}

// plain makes JSON of a reply.
func plain(method string, reply any) any {
	switch v := reply.(type) {
	case *string:
		return *v
	case *int32:
		return *v
	case *[]byte:
		return base64.StdEncoding.EncodeToString(*v)
	case *map[any]any:
		return stringKeys(*v)
	case *greeter.Person:
		if method == "returnNull" && v.Name == "" {
			return nil
		}
		return v
	}
	return fmt.Sprint(reply)
}

// stringKeys makes a map that JSON can hold of one that hessian gave.
func stringKeys(m map[any]any) map[string]any {
	out := make(map[string]any, len(m))
	for k, v := range m {
		if nested, ok := v.(map[any]any); ok {
			v = stringKeys(nested)
		}
		out[fmt.Sprint(k)] = v
	}
	return out
}
