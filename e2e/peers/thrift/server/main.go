// Command server is an Apache Thrift server for tests. It prints one line of
// JSON, {"port":N}, as soon as it accepts connections.
//
// It serves the service Echo by itself and, to clients that multiplex, as
// "Echo" and "Audit".
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/apache/thrift/lib/go/thrift"

	"github.com/meltemi-mesh/meltemi/e2e/peers/thrift/echo"
	"github.com/meltemi-mesh/meltemi/e2e/peers/thrift/wire"
)

// handler implements echo.Echo.
type handler struct {
	name string
	told *atomic.Int32
}

// served names the instance in the headers of the answer, where it has any.
func (h handler) served(ctx context.Context) {
	if helper, ok := thrift.GetResponseHelper(ctx); ok {
		helper.SetHeader("served-by", h.name)
	}
}

func (h handler) Who(ctx context.Context) (string, error) {
	h.served(ctx)
	return h.name, nil
}

func (h handler) Echo(ctx context.Context, text string) (string, error) {
	h.served(ctx)
	return h.name + ": " + text, nil
}

func (h handler) Add(_ context.Context, a, b int32) (int32, error) { return a + b, nil }

func (h handler) Touch(context.Context, string) error {
	h.told.Add(1)
	return nil
}

func (h handler) Fail(ctx context.Context, code int32) (string, error) {
	h.served(ctx)
	return "", &echo.Refusal{Code: code, Reason: "refused by " + h.name}
}

func (h handler) Crash(context.Context) (string, error) {
	return "", errors.New("crash in " + h.name)
}

func (h handler) Slow(_ context.Context, ms int32) (string, error) {
	d := time.Duration(ms) * time.Millisecond
	if d >= time.Minute {
		fmt.Fprintln(os.Stderr, "asleep")
	}
	time.Sleep(d)
	return h.name, nil
}

func (h handler) Blob(_ context.Context, b []byte) ([]byte, error) { return b, nil }

func (h handler) Headers(ctx context.Context) (map[string]string, error) {
	h.served(ctx)
	headers := map[string]string{}
	for _, k := range thrift.GetReadHeaderList(ctx) {
		if v, ok := thrift.GetHeader(ctx, k); ok {
			headers[k] = v
		}
	}
	return headers, nil
}

func (h handler) Tell(context.Context, string) error {
	h.told.Add(1)
	return nil
}

func (h handler) Told(context.Context) (int32, error) { return h.told.Load(), nil }

func main() {
	name := flag.String("name", "go", "`name` of this instance, in its answers")
	host := flag.String("host", "127.0.0.1", "address to serve at")
	port := flag.Int("port", 0, "port; 0 lets the kernel choose")
	w := wire.Flags()
	flag.Parse()

	transport, protocol, _, err := w.Factories(0)
	if err != nil {
		log.Fatal(err)
	}
	socket, err := thrift.NewTServerSocket(fmt.Sprintf("%s:%d", *host, *port))
	if err != nil {
		log.Fatal(err)
	}
	if err := socket.Listen(); err != nil {
		log.Fatal(err)
	}
	processor := thrift.NewTMultiplexedProcessor()
	one := echo.NewEchoProcessor(handler{*name, new(atomic.Int32)})
	processor.RegisterDefault(one)
	for _, service := range []string{"Echo", "Audit"} {
		processor.RegisterProcessor(service, one)
	}
	server := thrift.NewTSimpleServer4(processor, socket, transport, protocol)
	json.NewEncoder(os.Stdout).Encode(map[string]int{"port": socket.Addr().(*net.TCPAddr).Port})
	log.Fatal(server.Serve())
}
