package loopback

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

func TestPrologues(t *testing.T) {
	for source, want := range map[string]string{
		"": "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x14" + "\x7f\x00\x00\x01\x7f\x00\x00\x01" + "\x00\x01\x00\x01" + "\xe1\x00\x05abc:f",
		"192.0.2.7": "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x14" +
			"\xc0\x00\x02\x07\x7f\x00\x00\x01" + "\x00\x02\x00\x02" + "\xe1\x00\x05abc:f",
		"2001:db8::7": "\r\n\r\n\x00\r\nQUIT\n\x21\x21\x00\x2c" +
			"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07" +
			"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" + "\x00\x02\x00\x02" + "\xe1\x00\x05abc:f",
	} {
		var addr netip.Addr
		if source != "" {
			addr = netip.MustParseAddr(source)
		}
		require.Equal(t, want, string(prologue(nonce("abc").token(15), addr)), source)
	}
}

func TestProloguesOfTunnels(t *testing.T) {
	signature := "\r\n\r\n\x00\r\nQUIT\n\x21"
	for want, target := range map[string]host.Target{
		"\x11\x00\x10" + "\x7f\x00\x00\x01\x7f\x00\x00\x01" + "\x00\x01\x00\x01" + "\xe0\x00\x01c": {Cluster: "c"},
		"\x11\x00\x10" + "\x7f\x00\x00\x01\x0a\x00\x00\x07" + "\x00\x01\x51\x90" + "\xe0\x00\x01c": {Cluster: "c", OriginalDst: "10.0.0.7:20880"},
		"\x11\x00\x10" + "\xc0\x00\x02\x07\x7f\x00\x00\x01" + "\x00\x02\x00\x02" + "\xe0\x00\x01c": {Cluster: "c", Source: netip.MustParseAddr("192.0.2.7")},
		"\x11\x00\x1d" + "\xc0\x00\x02\x07\x7f\x00\x00\x01" + "\x00\x02\x00\x02" + "\xe0\x00\x01c" + "\xe2\x00\x0a10.0.0.7:1": {
			Cluster: "c", Source: netip.MustParseAddr("192.0.2.7"), OriginalDst: "10.0.0.7:1",
		},
		// Both are of one family.
		"\x21\x00\x28" + "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x7f\x00\x00\x01" +
			"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07" + "\x00\x01\x51\x90" + "\xe0\x00\x01c": {Cluster: "c", OriginalDst: "[2001:db8::7]:20880"},
	} {
		require.Equal(t, signature+want, string(TunnelPrologue(target)), target)
	}
}
