package contribhost

import (
	"fmt"
	"strings"
	"time"
)

// Config is what the program serves.
type Config struct {
	// PlainText is the connect timeout of the cluster plainText; 0: there is none.
	PlainText time.Duration
	Listeners []Listener
}

// Listener is one with a chain that ends in the golang filter.
type Listener struct {
	// Name is unique, Address "127.0.0.1:0".
	Name, Address string
	// BufferLimit is per_connection_buffer_limit_bytes; 0: Envoy's default, 1 MiB.
	BufferLimit int
	// ConnectionLimit puts local_ratelimit in front that lets so many connections pass, ever;
	// 0: no such filter.
	ConnectionLimit int
	Filter          Filter
}

// Filter is envoy.extensions.filters.network.golang.v3alpha.Config.
type Filter struct {
	LibraryID, LibraryPath, PluginName string
	// PluginConfig is a serialized google.protobuf.Any.
	PluginConfig []byte
}

// String is the text that the program reads.
func (c Config) String() string {
	var b strings.Builder
	if c.PlainText > 0 {
		fmt.Fprintf(&b, "plaintext %d\n", c.PlainText.Milliseconds())
	}
	for _, l := range c.Listeners {
		limit := l.BufferLimit
		if limit == 0 {
			limit = 1 << 20
		}
		fmt.Fprintf(&b, "listener %s %s %d\n", escape(l.Name), l.Address, limit)
		if l.ConnectionLimit > 0 {
			fmt.Fprintf(&b, "local_ratelimit %d\n", l.ConnectionLimit)
		}
		f := l.Filter
		fmt.Fprintf(&b, "golang %s %s %s %s\n", escape(f.LibraryID), escape(f.LibraryPath), escape(f.PluginName), escape(string(f.PluginConfig)))
	}
	return b.String()
}

// escape leaves a word without blanks.
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
