package accesslog

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

func remote(e *Entry) string   { return e.RemoteAddress }
func direct(e *Entry) string   { return e.DirectRemoteAddress }
func local(e *Entry) string    { return e.LocalAddress }
func upstream(e *Entry) string { return e.Host }

// withoutPort is an address without its port; a pipe has none.
func withoutPort(of func(e *Entry) string) value {
	return func(dst []byte, e *Entry) ([]byte, bool) {
		address := of(e)
		return appendBare(dst, address), address != ""
	}
}

func appendBare(dst []byte, address string) []byte {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return append(dst, address...)
	}
	return ap.Addr().AppendTo(dst)
}

// masked is withoutPort, or the prefix of an IP address if the argument is the length of
// one.
func masked(arg string, of func(e *Entry) string) (value, error) {
	if arg == "" {
		return withoutPort(of), nil
	}
	n, err := strconv.ParseUint(arg, 10, 8)
	if err != nil || n > 128 {
		return nil, fmt.Errorf("the length of a prefix is between 0 and 128, is %.40q", arg)
	}
	bits := int(n)
	return func(dst []byte, e *Entry) ([]byte, bool) {
		address := of(e)
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return append(dst, address...), address != ""
		}
		p, err := ap.Addr().Prefix(min(bits, ap.Addr().BitLen()))
		if err != nil {
			return dst, false
		}
		return p.AppendTo(dst), true
	}, nil
}

// port is that of an address, nothing of a pipe, whatever its path is.
func port(of func(e *Entry) string) operator {
	o := word(func(e *Entry) string {
		address := of(e)
		if _, err := netip.ParseAddrPort(address); err != nil {
			return ""
		}
		port := address[strings.LastIndexByte(address, ':')+1:]
		if len(port) > 1 && port[0] == '0' { // of a pipe whose path looks like an address: no number of JSON
			return ""
		}
		return port
	})
	o.number = true
	return o
}
