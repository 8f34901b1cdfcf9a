package golang

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

// A loopback listener may end in Envoy's http_connection_manager in place of tcp_proxy. A
// tunnel is a CONNECT then, whose answer tells what tcp_proxy does not: that the server is
// connected, which one it is, and else why it is not.
const (
	clusterHeader = "x-meltemi-cluster"
	hostHeader    = "x-meltemi-host"
	flagsHeader   = "x-meltemi-flags"
	// maxReply is how long the answer may be.
	maxReply = 16 << 10
)

// connectRequest asks for a connection to one host of a cluster. A name with control
// characters is none of Envoy's.
func connectRequest(cluster string) string {
	cluster = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, cluster)
	return "CONNECT meltemi:1 HTTP/1.1\r\nhost: meltemi:1\r\n" + clusterHeader + ": " + cluster + "\r\n\r\n"
}

// reply is what the listener has answered.
type reply struct {
	failed bool
	why    host.CloseReason // if it has
	reason string
	host   string
}

var errReply = errors.New("its answer to CONNECT is none of HTTP")

// parseReply reads the answer to a CONNECT at the beginning of b, and returns its size, 0
// if not all of it has come.
func parseReply(b []byte) (r reply, size int, err error) {
	head, _, whole := bytes.Cut(b, []byte("\r\n\r\n"))
	const version = "HTTP/1.1 "
	if n := min(len(b), len(version)); string(b[:n]) != version[:n] || len(b) > maxReply && !whole {
		return r, 0, errReply
	}
	if !whole {
		return r, 0, nil
	}
	lines := strings.Split(string(head), "\r\n")
	status := strings.TrimPrefix(lines[0], version)
	flags := ""
	for _, l := range lines[1:] {
		name, value, _ := strings.Cut(l, ":")
		switch strings.ToLower(name) {
		case hostHeader:
			r.host = strings.TrimSpace(value)
		case flagsHeader:
			flags = strings.TrimSpace(value)
		}
	}
	if !strings.HasPrefix(status, "200") {
		r.failed, r.why, r.reason = true, reasonOf(flags), fmt.Sprintf("%s (%s)", status, flags)
	}
	if r.host == "-" {
		r.host = ""
	}
	return r, len(head) + 4, nil
}

// reasonOf translates Envoy's response flags.
func reasonOf(flags string) host.CloseReason {
	for _, f := range strings.Split(flags, ",") {
		switch f {
		case "NC", "NR":
			return host.NoCluster
		case "UH":
			return host.NoHost
		case "UO":
			return host.Overflow
		}
	}
	return host.ConnectFailed
}
