package extauthz

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// maxSent is how much of a request's properties is sent, in bytes.
const maxSent = 64 << 10

var errTooLarge = errors.New("the request has too many properties to be checked")

func same(b, text []byte) bool { return bytes.Equal(b, text) }

// parseName makes a condition on names of a matcher.
func parseName(s *matcherv3.StringMatcher) (name, error) {
	var n name
	switch m := s.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		n = name{same, lower(m.Exact)}
	case *matcherv3.StringMatcher_Prefix:
		n = name{bytes.HasPrefix, lower(m.Prefix)}
	case *matcherv3.StringMatcher_Suffix:
		n = name{bytes.HasSuffix, lower(m.Suffix)}
	case *matcherv3.StringMatcher_Contains:
		n = name{bytes.Contains, lower(m.Contains)}
	default:
		return n, &fields.Error{Reason: "want exact, prefix, suffix or contains"}
	}
	if len(n.text) == 0 {
		return n, &fields.Error{Reason: "must not be empty"}
	}
	return n, nil
}

// subject is what a check is about, in memory that is used again.
type subject struct {
	bytes []byte // all that is sent but for the time and the client's port, as one key
	lower []byte
	props []sent
}

// sent is a property that is sent, with its name in lower case. Both are views.
type sent struct{ name, value []byte }

// of gathers what is to be sent of m.
func (s *subject) of(m *filter.Message, c *config, extensions string) error {
	md, conn := m.Request(), m.Connection()
	s.bytes, s.lower, s.props = s.bytes[:0], s.lower[:0], s.props[:0]
	all := len(md.Service()) + len(md.Method())
	if all > maxSent {
		return errTooLarge
	}
	s.add(md.AppendOperation(s.lower))
	ip := conn.RemoteIP()
	if b, err := ip.AppendBinary(s.lower); err == nil {
		s.add(b)
	}
	s.addText(conn.LocalAddress())
	tls := conn.TLS()
	s.addText(tls.Principal())
	s.addText(serverName(tls))
	s.addText(extensions)
	for _, p := range md.Properties() {
		if all += len(p.Name) + len(p.Value); all > maxSent {
			// What is not sent counts, too: how much of it is looked at is bounded.
			return errTooLarge
		}
		n := len(s.lower)
		s.lower = appendLower(s.lower, p.Name)
		name := s.lower[n:len(s.lower):len(s.lower)]
		if !c.sends(name) {
			continue
		}
		s.props = append(s.props, sent{name, p.Value})
		s.add(name)
		s.add(p.Value)
	}
	return nil
}

func (s *subject) add(b []byte) {
	s.bytes = binary.AppendUvarint(s.bytes, uint64(len(b)))
	s.bytes = append(s.bytes, b...)
}

func (s *subject) addText(t string) {
	s.bytes = binary.AppendUvarint(s.bytes, uint64(len(t)))
	s.bytes = append(s.bytes, t...)
}

func appendLower(dst, b []byte) []byte {
	for _, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}

// request makes the check.
func (s *subject) request(m *filter.Message, extensions map[string]string) *authv3.CheckRequest {
	conn, tls := m.Connection(), m.Connection().TLS()
	path := "/" + text(m.Request().AppendOperation(nil))
	headers := make(map[string]string, len(s.props)+2)
	repeated := map[string][]byte{}
	for _, p := range s.props {
		name, value := text(p.name), text(p.value)
		first, has := headers[name]
		if !has {
			headers[name] = value
			continue
		}
		all, has := repeated[name]
		if !has {
			all = []byte(first)
		}
		repeated[name] = append(append(all, ','), value...)
	}
	for name, all := range repeated {
		headers[name] = string(all)
	}
	headers[":path"], headers[":method"] = path, "POST"
	a := &authv3.AttributeContext{
		Source:      &authv3.AttributeContext_Peer{Address: address(conn.RemoteAddress()), Principal: text([]byte(tls.Principal()))},
		Destination: &authv3.AttributeContext_Peer{Address: address(conn.LocalAddress())},
		Request: &authv3.AttributeContext_Request{
			Time: timestamppb.Now(),
			Http: &authv3.AttributeContext_HttpRequest{Method: "POST", Path: path, Headers: headers},
		},
		ContextExtensions: extensions,
	}
	if sni := serverName(tls); sni != "" {
		a.TlsSession = &authv3.AttributeContext_TLSSession{Sni: text([]byte(sni))}
	}
	return &authv3.CheckRequest{Attributes: a}
}

func serverName(t *host.TLS) string {
	if t == nil {
		return ""
	}
	return t.ServerName
}

// text is b in UTF-8.
func text(b []byte) string { return strings.ToValidUTF8(string(b), "!") }

func address(s string) *corev3.Address {
	h, port, err := net.SplitHostPort(s)
	n, _ := strconv.ParseUint(port, 10, 16)
	switch {
	case s == "":
		return nil
	case err != nil:
		return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: s}}}
	}
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: h, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(n)},
	}}}
}
