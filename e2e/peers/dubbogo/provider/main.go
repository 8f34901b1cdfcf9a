// Command provider is a dubbo-go server for tests and demos. It prints one line
// of JSON, {"port":N}, as soon as it accepts connections.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"log"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	dubbo "dubbo.apache.org/dubbo-go/v3"
	"dubbo.apache.org/dubbo-go/v3/common"
	"dubbo.apache.org/dubbo-go/v3/common/constant"
	"dubbo.apache.org/dubbo-go/v3/filter/otel/trace"
	"dubbo.apache.org/dubbo-go/v3/graceful_shutdown"
	"dubbo.apache.org/dubbo-go/v3/logger"
	"dubbo.apache.org/dubbo-go/v3/protocol"
	protodubbo "dubbo.apache.org/dubbo-go/v3/protocol/dubbo"
	"dubbo.apache.org/dubbo-go/v3/server"
	"go.opentelemetry.io/contrib/propagators/b3"
	"go.opentelemetry.io/otel/propagation"

	"github.com/meltemi-mesh/meltemi/e2e/peers/dubbogo/greeter"
)

// Greeter serves both interfaces. Arguments come as dubbo-go decodes them: a
// parameter of a concrete type cannot take a null.
type Greeter struct {
	name string
	told *atomic.Int32
}

// SayHello answers "<instance>: hello <name>".
func (g *Greeter) SayHello(_ context.Context, name string) (string, error) {
	return g.name + ": hello " + name, nil
}

// SayHelloAsync is SayHello; Java declares it with a future.
func (g *Greeter) SayHelloAsync(ctx context.Context, name string) (string, error) {
	return g.SayHello(ctx, name)
}

// Who answers the name of the instance.
func (g *Greeter) Who(context.Context) (string, error) { return g.name, nil }

// Echo gives a person back, null too.
func (g *Greeter) Echo(_ context.Context, args []interface{}) (*greeter.Person, error) {
	p, _ := args[0].(*greeter.Person)
	return p, nil
}

// EchoMap gives a map back.
func (g *Greeter) EchoMap(_ context.Context, m map[interface{}]interface{}) (map[interface{}]interface{}, error) {
	return m, nil
}

// ReturnNull answers null.
func (g *Greeter) ReturnNull(context.Context, string) (*greeter.Person, error) { return nil, nil }

// Fail throws a GreetingException.
func (g *Greeter) Fail(_ context.Context, message string) (string, error) {
	return "", &greeter.GreetingException{DetailMessage: message, Code: 42}
}

// Sleep answers the name of the instance after that many milliseconds.
func (g *Greeter) Sleep(_ context.Context, ms int32) (string, error) {
	time.Sleep(time.Duration(ms) * time.Millisecond)
	return g.name, nil
}

// Tell is meant to be called oneway; Told counts it.
func (g *Greeter) Tell(context.Context, string) error {
	g.told.Add(1)
	return nil
}

// Told answers how often Tell was called.
func (g *Greeter) Told(context.Context) (int32, error) { return g.told.Load(), nil }

// Blob gives bytes back.
func (g *Greeter) Blob(_ context.Context, b []byte) ([]byte, error) { return b, nil }

// Attachments answers the attachments of the request as they arrived.
func (g *Greeter) Attachments(ctx context.Context) (map[interface{}]interface{}, error) {
	m := map[interface{}]interface{}{}
	for k, v := range ctx.Value(constant.AttachmentKey).(map[string]interface{}) {
		m[k] = v
	}
	return m, nil
}

// Trace answers the id of the trace and of the span within which dubbo-go's own filter
// would have the request be, "" if it would begin a trace.
func (g *Greeter) Trace(ctx context.Context) (string, error) {
	_, sc := trace.Extract(ctx, ctx.Value(constant.AttachmentKey).(map[string]interface{}),
		propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, b3.New()))
	if !sc.IsValid() {
		return "", nil
	}
	return sc.TraceID().String() + " " + sc.SpanID().String(), nil
}

// MethodMapper gives the methods their names on the wire.
func (g *Greeter) MethodMapper() map[string]string {
	return map[string]string{
		"SayHello": "sayHello", "SayHelloAsync": "sayHelloAsync", "Who": "who", "Echo": "echo",
		"EchoMap": "echoMap", "ReturnNull": "returnNull", "Fail": "fail", "Sleep": "sleep",
		"Tell": "tell", "Told": "told", "Blob": "blob", "Attachments": "attachments", "Trace": "trace",
	}
}

func main() {
	name := flag.String("name", "go", "`name` of this instance, in its answers")
	host := flag.String("host", "127.0.0.1", "address to serve at")
	port := flag.Int("port", 0, "port; 0 lets the kernel choose")
	group := flag.String("group", "", "service group")
	version := flag.String("version", "", "service version")
	heartbeat := flag.Duration("heartbeat", time.Minute, "period of the server's own heartbeats")
	flag.Parse()

	// dubbo-go logs to stdout, which is ours.
	stdout := os.Stdout
	os.Stdout = os.Stderr

	ins, err := dubbo.NewInstance(
		dubbo.WithName("greeter"),
		// Otherwise dubbo-go exports a metadata service at all addresses.
		dubbo.WithRemoteMetadata(),
		dubbo.WithLogger(logger.WithLevel("warn")),
		dubbo.WithShutdown(graceful_shutdown.WithTimeout(5*time.Second)),
	)
	if err != nil {
		log.Fatal(err)
	}
	greeter.SetTransport(map[string]any{"heartbeat-period": heartbeat.String(), "session-number": 1000})
	srv, err := ins.NewServer(server.WithServerProtocol(
		protocol.WithDubbo(), protocol.WithIp(*host), protocol.WithPort(*port),
	))
	if err != nil {
		log.Fatal(err)
	}
	g := &Greeter{name: *name, told: new(atomic.Int32)}
	for _, intf := range []string{greeter.Interface, greeter.Audit} {
		err := srv.Register(g, &server.ServiceInfo{InterfaceName: intf}, server.WithInterface(intf), server.WithGroup(*group), server.WithVersion(*version), server.WithNotRegister())
		if err != nil {
			log.Fatal(err)
		}
	}
	// dubbo-go makes the protocol at its first use, without a lock.
	exporters := protodubbo.GetProtocol().(*protodubbo.DubboProtocol).ExporterMap()
	go func() { log.Fatal(srv.Serve()) }()

	bound := 0
	for ; bound == 0; time.Sleep(5 * time.Millisecond) {
		if exported(exporters, *group, *version) {
			bound = listening()
		}
	}
	json.NewEncoder(stdout).Encode(map[string]int{"port": bound})
	select {}
}

// exported tells whether both interfaces are served.
func exported(exporters *sync.Map, group, version string) bool {
	for _, intf := range []string{greeter.Interface, greeter.Audit} {
		if _, ok := exporters.Load(common.ServiceKey(intf, group, version)); !ok {
			return false
		}
	}
	return true
}

// listening returns the port of this process's listening socket, or 0: dubbo-go
// does not tell which port the kernel chose.
func listening() int {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range fds {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if on, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN); err != nil || on == 0 {
			continue
		}
		if addr, err := syscall.Getsockname(fd); err == nil {
			if a, ok := addr.(*syscall.SockaddrInet4); ok {
				return a.Port
			}
		}
	}
	return 0
}
