package accesslog

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/facts"
)

// value appends what an operator has to say of an entry. It reports false if that is
// nothing.
type value func(dst []byte, e *Entry) ([]byte, bool)

// operator is one of a format, frozen.
type operator struct {
	value  value
	number bool // of JSON, if it stands alone
	reads  bool // properties
}

// argument is what stands behind an operator's name.
type argument struct {
	text  string // in parentheses
	given bool
	most  int // bytes, 0: all
}

// plain are the operators that take nothing.
var plain = map[string]operator{
	"PROTOCOL":                         {value: text(func(e *Entry) string { return e.Protocol })},
	"RESPONSE_CODE":                    {number: true, value: integer(func(e *Entry) int64 { return int64(e.ResponseCode()) })},
	"RESPONSE_CODE_DETAILS":            {value: underscored(func(e *Entry) string { return e.details() })},
	"RESPONSE_FLAGS":                   {value: flags},
	"RESPONSE_FLAGS_LONG":              {value: longFlags},
	"LOCAL_REPLY_BODY":                 {value: text(localText)},
	"BYTES_RECEIVED":                   {number: true, value: integer(func(e *Entry) int64 { return e.ReceivedBytes })},
	"BYTES_SENT":                       {number: true, value: integer(func(e *Entry) int64 { return e.SentBytes })},
	"DOWNSTREAM_WIRE_BYTES_RECEIVED":   {number: true, value: integer(func(e *Entry) int64 { return e.ReceivedBytes })},
	"DOWNSTREAM_WIRE_BYTES_SENT":       {number: true, value: integer(func(e *Entry) int64 { return e.SentBytes })},
	"UPSTREAM_WIRE_BYTES_RECEIVED":     {number: true, value: integer(func(e *Entry) int64 { return int64(e.ResponseBytes) })},
	"DURATION":                         {number: true, value: span(start, end, time.Millisecond)},
	"REQUEST_DURATION":                 {number: true, value: span(start, start, time.Millisecond)},
	"REQUEST_TX_DURATION":              {number: true, value: span(start, sent, time.Millisecond)},
	"RESPONSE_DURATION":                {number: true, value: span(start, answered, time.Millisecond)},
	"RESPONSE_TX_DURATION":             {number: true, value: span(answered, end, time.Millisecond)},
	"UPSTREAM_HOST":                    {value: text(func(e *Entry) string { return e.Host })},
	"UPSTREAM_REMOTE_ADDRESS":          {value: text(func(e *Entry) string { return e.Host })},
	"UPSTREAM_CLUSTER":                 {value: text(func(e *Entry) string { return e.Cluster })},
	"UPSTREAM_CLUSTER_RAW":             {value: text(func(e *Entry) string { return e.Cluster })},
	"UPSTREAM_REQUEST_ATTEMPT_COUNT":   {number: true, value: integer(func(e *Entry) int64 { return int64(e.Attempts) })},
	"ROUTE_NAME":                       {value: text(func(e *Entry) string { return e.Route })},
	"DOWNSTREAM_REMOTE_ADDRESS":        {value: text(remote)},
	"DOWNSTREAM_DIRECT_REMOTE_ADDRESS": {value: text(remote)},
	"DOWNSTREAM_REMOTE_PORT":           {number: true, value: text(func(e *Entry) string { return portOf(e.RemoteAddress) })},
	"DOWNSTREAM_DIRECT_REMOTE_PORT":    {number: true, value: text(func(e *Entry) string { return portOf(e.RemoteAddress) })},
	"DOWNSTREAM_LOCAL_ADDRESS":         {value: text(local)},
	"DOWNSTREAM_LOCAL_PORT":            {number: true, value: text(func(e *Entry) string { return portOf(e.LocalAddress) })},
	"CONNECTION_ID":                    {number: true, value: integer(func(e *Entry) int64 { return int64(e.ConnectionID) })},
	"HOSTNAME":                         constant(hostname()),
	"ACCESS_LOG_TYPE":                  constant("DownstreamEnd"),
	// MESSAGE_TYPE and STATUS_CODE are Meltemi's own: what kind of message it was, and the
	// protocol's own code of its outcome.
	"MESSAGE_TYPE": {value: text(func(e *Entry) string { return e.Kind.String() })},
	"STATUS_CODE":  {number: true, value: statusCode},
}

// unknown are operators of Envoy's that have nothing to say of an RPC; they are accepted,
// as formats are used for all listeners of a mesh.
var unknown = []string{
	"CONNECTION_TERMINATION_DETAILS", "UPSTREAM_TRANSPORT_FAILURE_REASON", "UPSTREAM_LOCAL_ADDRESS",
	"REQUESTED_SERVER_NAME", "UNIQUE_ID", "STREAM_ID", "UPSTREAM_CONNECTION_ID", "UPSTREAM_HOST_NAME",
	"UPSTREAM_HOSTS_ATTEMPTED", "UPSTREAM_WIRE_BYTES_SENT", "TRACE_ID", "SPAN_ID", "DOWNSTREAM_PEER_URI_SAN",
	"DOWNSTREAM_LOCAL_URI_SAN", "DOWNSTREAM_PEER_SUBJECT", "DOWNSTREAM_TLS_VERSION", "DOWNSTREAM_TLS_CIPHER",
}

// parseOperator freezes the operator of that name.
func parseOperator(name string, arg argument) (operator, error) {
	if o, known := plain[name]; known {
		if arg.given {
			return o, fmt.Errorf("takes nothing in parentheses")
		}
		return cut(o, arg.most), nil
	}
	for _, n := range unknown {
		if n == name {
			return operator{value: func(dst []byte, _ *Entry) ([]byte, bool) { return dst, false }}, nil
		}
	}
	var o operator
	var err error
	switch name {
	case "START_TIME", "START_TIME_LOCAL":
		o.value, err = clock(arg.text, name == "START_TIME_LOCAL", func(e *Entry) time.Time { return e.StartTime })
	case "EMIT_TIME":
		o.value, err = clock(arg.text, false, func(e *Entry) time.Time { return e.StartTime.Add(e.End - e.Start) })
	case "COMMON_DURATION":
		o.number = true
		o.value, err = commonDuration(arg.text)
	case "REQ", "REQUEST_HEADER":
		o.value, o.reads, err = property(arg.text, func(e *Entry) *codecs.Metadata { return e.Request })
	case "RESP", "RESPONSE_HEADER":
		o.value, o.reads, err = property(arg.text, func(e *Entry) *codecs.Metadata { return e.Response })
	case "DYNAMIC_METADATA":
		// What filters have learnt of a request are its properties, whoever asks.
		_, key, found := strings.Cut(arg.text, ":")
		if !found {
			return o, fmt.Errorf("want NAMESPACE:KEY in parentheses")
		}
		o.value, o.reads, err = property(key, func(e *Entry) *codecs.Metadata { return e.Request })
	case "ENVIRONMENT":
		if arg.text == "" {
			return o, fmt.Errorf("needs a name in parentheses")
		}
		o = constant(os.Getenv(arg.text))
	case "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT":
		o.value, err = withoutPort(arg.text, remote)
	case "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":
		o.value, err = withoutPort(arg.text, local)
	default:
		return o, fmt.Errorf("unknown operator, or one that is not supported")
	}
	return cut(o, arg.most), err
}

func text(f func(e *Entry) string) value {
	return func(dst []byte, e *Entry) ([]byte, bool) {
		s := f(e)
		return append(dst, s...), s != ""
	}
}

func underscored(f func(e *Entry) string) value {
	return func(dst []byte, e *Entry) ([]byte, bool) {
		s := f(e)
		for i := range len(s) {
			c := s[i]
			if c == ' ' || c == '\t' || c == '\n' {
				c = '_'
			}
			dst = append(dst, c)
		}
		return dst, s != ""
	}
}

func integer(f func(e *Entry) int64) value {
	return func(dst []byte, e *Entry) ([]byte, bool) { return strconv.AppendInt(dst, f(e), 10), true }
}

func constant(s string) operator {
	return operator{value: func(dst []byte, _ *Entry) ([]byte, bool) { return append(dst, s...), s != "" }}
}

// cut has o say no more than so many bytes, and no part of a character.
func cut(o operator, most int) operator {
	if most == 0 || o.value == nil {
		return o
	}
	f := o.value
	o.value = func(dst []byte, e *Entry) ([]byte, bool) {
		b, ok := f(dst, e)
		if n := len(dst) + most; len(b) > n {
			for n > len(dst) && !utf8.RuneStart(b[n]) {
				n--
			}
			b = b[:n]
		}
		return b, ok
	}
	return o
}

func remote(e *Entry) string { return e.RemoteAddress }

func local(e *Entry) string { return e.LocalAddress }

func hostname() string {
	name, _ := os.Hostname()
	return name
}

func localText(e *Entry) string {
	return e.Local.Message
}

func statusCode(dst []byte, e *Entry) ([]byte, bool) {
	if e.Code == 0 && (e.Replied || e.Answered == 0) {
		return dst, false
	}
	return strconv.AppendInt(dst, int64(e.Code), 10), true
}

func flags(dst []byte, e *Entry) ([]byte, bool) {
	return e.Flags.Append(dst), e.Flags != 0
}

func longFlags(dst []byte, e *Entry) ([]byte, bool) {
	return e.Flags.AppendLong(dst), e.Flags != 0
}

// moment is one of a message's, 0 if it has not come.
type moment func(f *facts.Facts) time.Duration

func start(f *facts.Facts) time.Duration    { return f.Start }
func sent(f *facts.Facts) time.Duration     { return f.Sent }
func answered(f *facts.Facts) time.Duration { return f.Answered }
func end(f *facts.Facts) time.Duration      { return f.End }

// span is the time between two moments, which is never negative.
func span(from, to moment, unit time.Duration) value {
	return func(dst []byte, e *Entry) ([]byte, bool) {
		a, b := from(&e.Facts), to(&e.Facts)
		if a == 0 || b == 0 {
			return dst, false
		}
		return strconv.AppendInt(dst, int64(max(0, b-a)/unit), 10), true
	}
}

var moments = map[string]moment{
	"DS_RX_BEG": start, "DS_RX_END": start, "US_TX_BEG": sent, "US_TX_END": sent,
	"US_RX_BEG": answered, "US_RX_END": answered, "DS_TX_BEG": end, "DS_TX_END": end,
}

var units = map[string]time.Duration{"ms": time.Millisecond, "us": time.Microsecond, "ns": time.Nanosecond}

func commonDuration(arg string) (value, error) {
	parts := strings.Split(arg, ":")
	if len(parts) != 3 {
		return nil, fmt.Errorf("want START:END:PRECISION in parentheses")
	}
	from, to, unit := moments[parts[0]], moments[parts[1]], units[parts[2]]
	switch {
	case from == nil:
		return nil, fmt.Errorf("unknown moment %.40q", parts[0])
	case to == nil:
		return nil, fmt.Errorf("unknown moment %.40q", parts[1])
	case unit == 0:
		return nil, fmt.Errorf("unknown precision %.40q: want ms, us or ns", parts[2])
	}
	return span(from, to, unit), nil
}

// property is that of a message. What HTTP's pseudo headers name are the operation's
// parts.
func property(arg string, of func(e *Entry) *codecs.Metadata) (v value, reads bool, err error) {
	name, other, _ := strings.Cut(arg, "?")
	if name == "" {
		return nil, false, fmt.Errorf("needs a name in parentheses")
	}
	get := func(dst []byte, md *codecs.Metadata, name string) ([]byte, bool) {
		switch name {
		case "":
			return dst, false
		case ":PATH", ":path":
			before := len(dst)
			dst = md.AppendOperation(append(dst, '/'))
			if len(dst) == before+1 {
				return dst[:before], false
			}
			return dst, true
		case ":METHOD", ":method":
			return append(dst, "POST"...), true
		}
		p, there := md.Get(name)
		return append(dst, p...), there
	}
	return func(dst []byte, e *Entry) ([]byte, bool) {
		md := of(e)
		if md == nil {
			return dst, false
		}
		b, there := get(dst, md, name)
		if !there {
			b, there = get(dst, md, other)
		}
		return b, there
	}, true, nil
}

// withoutPort is an address without its port, masked if the argument is the length of a
// prefix.
func withoutPort(arg string, of func(e *Entry) string) (value, error) {
	bits := -1
	if arg != "" {
		n, err := strconv.ParseUint(arg, 10, 8)
		if err != nil || n > 128 {
			return nil, fmt.Errorf("the length of a prefix is between 0 and 128, is %.40q", arg)
		}
		bits = int(n)
	}
	return func(dst []byte, e *Entry) ([]byte, bool) {
		address := of(e)
		if address == "" {
			return dst, false
		}
		ap, err := netip.ParseAddrPort(address)
		if err != nil { // a pipe
			return append(dst, address...), true
		}
		if bits < 0 {
			return ap.Addr().AppendTo(dst), true
		}
		p, err := ap.Addr().Prefix(min(bits, ap.Addr().BitLen()))
		if err != nil {
			return dst, false
		}
		return p.AppendTo(dst), true
	}, nil
}

// portOf is "" of what has none, such as a pipe, whatever its path is.
func portOf(address string) string {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return ""
	}
	return address[strings.LastIndexByte(address, ':')+1:]
}
