package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const routesUsage = `usage: meltemi routes -address ADDRESS [-json]

Prints the route tables of a running Envoy: those that came with listeners, and
those by RDS with their version, when they were loaded, and what is wrong with
the last update. It is a RoutesConfigDump (admin/v1alpha), as YAML.

ADDRESS is the admin_address of the carrier filter's configuration: unix:/PATH
or HOST:PORT.

`

// answerTime is how long a process may take to answer.
const answerTime = 30 * time.Second

// routes prints the tables of a running process.
func (e *env) routes(args []string) int {
	fs := flag.NewFlagSet("routes", flag.ContinueOnError)
	address := fs.String("address", "", "`address` of the process")
	asJSON := fs.Bool("json", false, "print JSON")
	_, status, ok := e.flags(fs, routesUsage, args, 0, 0)
	switch {
	case !ok:
		return status
	case *address == "":
		return e.fail(statusUsage, "routes wants -address")
	}
	text, err := page(http.MethodGet, *address, "/routes")
	if err == nil && !*asJSON {
		text, err = asYAML(text)
	}
	if err != nil {
		return e.fail(statusFault, "%v", err)
	}
	e.printf("%s", text)
	return statusOK
}

// page asks a process for what it tells under a path, or has it do what stands there.
func page(method, address, path string) ([]byte, error) {
	network := "tcp"
	if socket, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", socket
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: answerTime}
	req, err := http.NewRequest(method, "http://meltemi"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		if inner := errors.Unwrap(err); inner != nil { // behind the URL, which is none of the user's
			err = inner
		}
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s: %s", address, resp.Status, strings.TrimSpace(string(text)))
	}
	return text, err
}

// asYAML keeps the order of fields.
func asYAML(text []byte) ([]byte, error) {
	var n yaml.Node
	if err := yaml.Unmarshal(text, &n); err != nil {
		return nil, err
	}
	plain(&n)
	return yaml.Marshal(&n)
}

// plain has n written as people do.
func plain(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		plain(c)
	}
}
