package peers

import (
	"path/filepath"
	"strconv"
	"sync"
	"testing"
)

// KitexOptions are options of a Kitex client.
type KitexOptions struct {
	// Transport is ttheader, ttheaderframed or framed; "" is ttheader.
	Transport string
	// Connections are short, long or mux; "" is short.
	Connections string
}

// KitexServer starts a Kitex server, with mux one that answers the requests of
// a connection in any order. It is ready when KitexServer returns, and ends
// with the test.
func KitexServer(t testing.TB, name string, mux bool) *Provider {
	t.Helper()
	needed(t, "kitex", "Go", buildKitex())
	argv := []string{filepath.Join(kitexBuild(), "server"), "-name", name}
	if mux {
		argv = append(argv, "-mux")
	}
	return startProvider(t, "kitex server "+name, argv, nil)
}

// KitexClient starts a Kitex client that calls 127.0.0.1:port. It ends with the
// test.
func KitexClient(t testing.TB, port int, o KitexOptions) *Consumer {
	t.Helper()
	needed(t, "kitex", "Go", buildKitex())
	argv := []string{filepath.Join(kitexBuild(), "client"), "-addr", "127.0.0.1:" + strconv.Itoa(port)}
	if o.Transport != "" {
		argv = append(argv, "-transport", o.Transport)
	}
	if o.Connections != "" {
		argv = append(argv, "-connections", o.Connections)
	}
	return startConsumer(t, "kitex client", argv, nil)
}

func kitexBuild() string { return filepath.Join(Root(), "build", "peers", "kitex") }

var buildKitex = sync.OnceValue(func() error {
	return run(filepath.Join(Root(), "e2e", "peers", "kitex"), "go", "build", "-trimpath", "-o", kitexBuild()+"/", "./server", "./client")
})
