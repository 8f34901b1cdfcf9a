// Command server is a Kitex server for tests. It prints one line of JSON,
// {"port":N}, as soon as it accepts connections. It answers in the transport of
// the request.
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

	"github.com/bytedance/gopkg/cloud/metainfo"
	"github.com/cloudwego/kitex/pkg/kerrors"
	"github.com/cloudwego/kitex/pkg/transmeta"
	kitex "github.com/cloudwego/kitex/server"

	"github.com/meltemi-mesh/meltemi/e2e/peers/kitex/gen/api"
	"github.com/meltemi-mesh/meltemi/e2e/peers/kitex/gen/api/echo"
)

// handler implements api.Echo.
type handler struct {
	name string
	told atomic.Int32
}

// served names the instance in the headers of the answer.
func (h *handler) served(ctx context.Context) { metainfo.SendBackwardValue(ctx, "served-by", h.name) }

func (h *handler) Who(ctx context.Context) (string, error) {
	h.served(ctx)
	return h.name, nil
}

func (h *handler) Echo(ctx context.Context, text string) (string, error) {
	h.served(ctx)
	return h.name + ": " + text, nil
}

func (h *handler) Touch(context.Context, string) error {
	h.told.Add(1)
	return nil
}

func (h *handler) Fail(ctx context.Context, code int32) (string, error) {
	h.served(ctx)
	return "", &api.Refusal{Code: code, Reason: "refused by " + h.name}
}

func (h *handler) Business(_ context.Context, code int32) (string, error) {
	return "", kerrors.NewBizStatusErrorWithExtra(code, "business of "+h.name, map[string]string{"k": "v"})
}

func (h *handler) Crash(context.Context) (string, error) {
	return "", errors.New("crash in " + h.name)
}

func (h *handler) Slow(_ context.Context, ms int32) (string, error) {
	time.Sleep(time.Duration(ms) * time.Millisecond)
	return h.name, nil
}

func (h *handler) Blob(_ context.Context, b []byte) ([]byte, error) { return b, nil }

func (h *handler) Headers(ctx context.Context) (map[string]string, error) {
	h.served(ctx)
	headers := map[string]string{}
	for k, v := range metainfo.GetAllValues(ctx) {
		headers[metainfo.PrefixTransient+k] = v
	}
	for k, v := range metainfo.GetAllPersistentValues(ctx) {
		headers[metainfo.PrefixPersistent+k] = v
	}
	return headers, nil
}

func (h *handler) Tell(context.Context, string) error {
	h.told.Add(1)
	return nil
}

func (h *handler) Told(context.Context) (int32, error) { return h.told.Load(), nil }

func main() {
	name := flag.String("name", "kitex", "`name` of this instance, in its answers")
	port := flag.Int("port", 0, "port on 127.0.0.1; 0 lets the kernel choose")
	mux := flag.Bool("mux", false, "answer out of order on one connection")
	flag.Parse()

	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", *port))
	if err != nil {
		log.Fatal(err)
	}
	options := []kitex.Option{kitex.WithListener(l), kitex.WithMetaHandler(transmeta.ServerTTHeaderHandler)}
	if *mux {
		options = append(options, kitex.WithMuxTransport())
	}
	server := echo.NewServer(&handler{name: *name}, options...)
	json.NewEncoder(os.Stdout).Encode(map[string]int{"port": l.Addr().(*net.TCPAddr).Port})
	log.Fatal(server.Run())
}
