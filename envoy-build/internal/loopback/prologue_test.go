package loopback

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
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
