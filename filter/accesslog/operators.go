package accesslog

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	dataaccesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/facts"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/route"
	"github.com/meltemi-mesh/meltemi/filter/substitution"
)

// value appends what an operator has to say of an entry. It reports false if that is
// nothing.
type value func(dst []byte, e *Entry) ([]byte, bool)

// operator is one of a format, frozen.
type operator struct {
	value  value
	word   func(e *Entry) string // what value appends; nil: only value knows
	number bool                  // of JSON, if it stands alone
	bare   bool                  // it is digits, letters and the like, whatever peers say
	reads  bool                  // properties
}

// plain are the operators that take nothing.
var plain = map[string]operator{
	"PROTOCOL":                         word(func(e *Entry) string { return e.Protocol }),
	"UPSTREAM_PROTOCOL":                word(upstreamProtocol),
	"RESPONSE_CODE":                    number(func(e *Entry) int64 { return int64(e.ResponseCode()) }),
	"RESPONSE_FLAGS":                   {value: flags, bare: true},
	"RESPONSE_FLAGS_LONG":              {value: longFlags, bare: true},
	"LOCAL_REPLY_BODY":                 word(func(e *Entry) string { return e.Local.Message }),
	"BYTES_RECEIVED":                   number(func(e *Entry) int64 { return e.ReceivedBytes }),
	"BYTES_SENT":                       number(func(e *Entry) int64 { return e.SentBytes }),
	"DOWNSTREAM_WIRE_BYTES_RECEIVED":   number(func(e *Entry) int64 { return e.ReceivedBytes }),
	"DOWNSTREAM_WIRE_BYTES_SENT":       number(func(e *Entry) int64 { return e.SentBytes }),
	"UPSTREAM_WIRE_BYTES_RECEIVED":     number(func(e *Entry) int64 { return e.UpstreamReceivedBytes }),
	"UPSTREAM_WIRE_BYTES_SENT":         number(func(e *Entry) int64 { return e.UpstreamSentBytes }),
	"DURATION":                         {number: true, bare: true, value: span(start, end, time.Millisecond)},
	"REQUEST_DURATION":                 {number: true, bare: true, value: span(start, start, time.Millisecond)},
	"REQUEST_TX_DURATION":              {number: true, bare: true, value: span(start, sent, time.Millisecond)},
	"RESPONSE_DURATION":                {number: true, bare: true, value: span(start, answered, time.Millisecond)},
	"RESPONSE_TX_DURATION":             {number: true, bare: true, value: span(answered, told, time.Millisecond)},
	"UPSTREAM_HOST":                    word(upstream),
	"UPSTREAM_HOST_NAME":               word(upstream),
	"UPSTREAM_HOST_NAME_WITHOUT_PORT":  {value: withoutPort(upstream)},
	"UPSTREAM_REMOTE_ADDRESS":          word(upstream),
	"UPSTREAM_REMOTE_PORT":             port(upstream),
	"UPSTREAM_CLUSTER":                 word(func(e *Entry) string { return e.Cluster }),
	"UPSTREAM_CLUSTER_RAW":             word(func(e *Entry) string { return e.Cluster }),
	"UPSTREAM_REQUEST_ATTEMPT_COUNT":   number(func(e *Entry) int64 { return int64(e.Attempts) }),
	"UPSTREAM_HOSTS_ATTEMPTED":         attempted(false),
	"UPSTREAM_HOST_NAMES_ATTEMPTED":    attempted(false),
	"ROUTE_NAME":                       word(func(e *Entry) string { return e.Route }),
	"DOWNSTREAM_REMOTE_ADDRESS":        word(remote),
	"DOWNSTREAM_DIRECT_REMOTE_ADDRESS": word(direct),
	"DOWNSTREAM_REMOTE_PORT":           port(remote),
	"DOWNSTREAM_DIRECT_REMOTE_PORT":    port(direct),
	"DOWNSTREAM_LOCAL_ADDRESS":         word(local),
	"DOWNSTREAM_LOCAL_PORT":            port(local),
	"DOWNSTREAM_PEER_URI_SAN":          names(func(t *host.TLS) []string { return t.URISANs }),
	"DOWNSTREAM_PEER_DNS_SAN":          names(func(t *host.TLS) []string { return t.DNSSANs }),
	"DOWNSTREAM_PEER_SUBJECT":          ofTLS(func(t *host.TLS) string { return t.Subject }),
	"DOWNSTREAM_PEER_FINGERPRINT_256":  ofTLS(func(t *host.TLS) string { return t.Fingerprint }),
	"DOWNSTREAM_LOCAL_URI_SAN":         ofTLS(func(t *host.TLS) string { return t.OwnURISAN }),
	"DOWNSTREAM_LOCAL_DNS_SAN":         ofTLS(func(t *host.TLS) string { return t.OwnDNSSAN }),
	"DOWNSTREAM_LOCAL_SUBJECT":         ofTLS(func(t *host.TLS) string { return t.OwnSubject }),
	"DOWNSTREAM_TLS_VERSION":           ofTLS(func(t *host.TLS) string { return t.Version }),
	"CONNECTION_ID":                    number(func(e *Entry) int64 { return int64(e.ConnectionID) }),
	"UNIQUE_ID":                        {value: unique, bare: true},
	"STREAM_ID":                        {value: streamID, reads: true},
	"TRACE_ID":                         {value: traceID, bare: true},
	"SPAN_ID":                          {value: spanID, bare: true},
	"HOSTNAME":                         constant(hostname()),
	"ACCESS_LOG_TYPE":                  word(func(e *Entry) string { return dataaccesslogv3.AccessLogType_name[int32(e.logType())] }),
	// MESSAGE_TYPE and STATUS_CODE are Meltemi's own: what kind of message it was, and the
	// protocol's own code of its outcome.
	"MESSAGE_TYPE": word(func(e *Entry) string { return e.Kind.String() }),
	"STATUS_CODE":  {number: true, bare: true, value: statusCode},

	"UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT":      attempted(true),
	"UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT": attempted(true),

	// What Istio's own format asks for, and a module is not told: they have nothing to
	// say, so that the format can be used as it is.
	"CONNECTION_TERMINATION_DETAILS":    {value: nothing},
	"UPSTREAM_LOCAL_ADDRESS":            {value: nothing},
	"UPSTREAM_TRANSPORT_FAILURE_REASON": {value: nothing},
}

// Why operators of Envoy's are refused.
const (
	notTold    = "Envoy does not tell modules of it"
	notOfRPC   = "messages of RPC protocols do not have it: REQ and RESP name their properties"
	notHTTP    = "it is HTTP's"
	ofUpstream = "Envoy does not tell modules of its connections to servers"
)

// refused are the operators of Envoy's that never have anything to say here, and why.
var refused = func() map[string]string {
	all := map[string]string{}
	for why, names := range map[string]string{
		notTold: `DOWNSTREAM_TLS_CIPHER DOWNSTREAM_TLS_GROUP DOWNSTREAM_TLS_SESSION_ID DOWNSTREAM_PEER_ISSUER DOWNSTREAM_PEER_SERIAL
			DOWNSTREAM_PEER_FINGERPRINT_1 DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1 DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256 DOWNSTREAM_PEER_CHAIN_SERIALS
			DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256 DOWNSTREAM_PEER_ISSUER_SERIAL DOWNSTREAM_PEER_CERT DOWNSTREAM_PEER_CERT_V_START
			DOWNSTREAM_PEER_CERT_V_END DOWNSTREAM_PEER_IP_SAN DOWNSTREAM_PEER_EMAIL_SAN DOWNSTREAM_PEER_OTHERNAME_SAN DOWNSTREAM_LOCAL_IP_SAN
			DOWNSTREAM_LOCAL_EMAIL_SAN DOWNSTREAM_LOCAL_OTHERNAME_SAN TLS_JA3_FINGERPRINT TLS_JA4_FINGERPRINT DOWNSTREAM_HANDSHAKE_DURATION
			DOWNSTREAM_DIRECT_LOCAL_ADDRESS DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT DOWNSTREAM_DIRECT_LOCAL_PORT FILTER_CHAIN_NAME
			DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID DOWNSTREAM_TRANSPORT_FAILURE_REASON
			DOWNSTREAM_LOCAL_CLOSE_REASON DOWNSTREAM_DETECTED_CLOSE_TYPE CLUSTER_METADATA UPSTREAM_METADATA UPSTREAM_FILTER_STATE CUSTOM_FLAGS`,
		ofUpstream: `UPSTREAM_CONNECTION_ID UPSTREAM_CONNECTION_IDS_ATTEMPTED UPSTREAM_CONNECTION_POOL_READY_DURATION UPSTREAM_LOCAL_PORT
			UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID UPSTREAM_DETECTED_CLOSE_TYPE UPSTREAM_LOCAL_CLOSE_REASON
			UPSTREAM_LOCAL_DNS_SAN UPSTREAM_LOCAL_IP_SAN UPSTREAM_LOCAL_URI_SAN UPSTREAM_PEER_CERT UPSTREAM_PEER_CERT_V_END
			UPSTREAM_PEER_CERT_V_START UPSTREAM_PEER_DNS_SAN UPSTREAM_PEER_IP_SAN UPSTREAM_PEER_ISSUER UPSTREAM_PEER_SUBJECT
			UPSTREAM_PEER_URI_SAN UPSTREAM_SERVER_NAME UPSTREAM_TLS_CIPHER UPSTREAM_TLS_GROUP UPSTREAM_TLS_SESSION_ID UPSTREAM_TLS_VERSION`,
		notOfRPC: `TRAILER RESPONSE_TRAILER QUERY_PARAM QUERY_PARAMS PATH REQ_WITHOUT_QUERY STREAM_INFO_REQ CEL TYPED_CEL`,
		notHTTP: `GRPC_STATUS GRPC_STATUS_NUMBER VIRTUAL_CLUSTER_NAME BYTES_RETRANSMITTED PACKETS_RETRANSMITTED ROUNDTRIP_DURATION
			REQUEST_HEADERS_BYTES RESPONSE_HEADERS_BYTES RESPONSE_TRAILERS_BYTES UPSTREAM_HEADER_BYTES_SENT UPSTREAM_HEADER_BYTES_RECEIVED
			UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED DOWNSTREAM_HEADER_BYTES_SENT
			DOWNSTREAM_HEADER_BYTES_RECEIVED DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED`,
	} {
		for _, name := range strings.Fields(names) {
			all[name] = why
		}
	}
	return all
}()

var (
	errNoName  = errors.New("needs a name in parentheses")
	errUnknown = errors.New("unknown operator")
	errTakes   = errors.New("takes nothing in parentheses")
)

// parseOperator freezes an operator.
func parseOperator(s substitution.Operator) (operator, error) {
	o, known := plain[s.Name]
	if known && s.Given {
		return o, errTakes
	}
	var err error
	if !known {
		o, err = withArgument(s.Name, s.Argument)
	}
	return cut(o, s.Length), err
}

// withArgument freezes an operator that takes something, or may.
func withArgument(name, arg string) (o operator, err error) {
	switch name {
	case "START_TIME", "START_TIME_LOCAL":
		o.value, err = clock(arg, name == "START_TIME_LOCAL", func(e *Entry) time.Time { return e.StartTime })
		o.bare = arg == ""
	case "EMIT_TIME", "EMIT_TIME_LOCAL":
		o.value, err = clock(arg, name == "EMIT_TIME_LOCAL", func(e *Entry) time.Time { return e.StartTime.Add(e.End - e.Start) })
		o.bare = arg == ""
	case "COMMON_DURATION":
		o.number, o.bare = true, true
		o.value, err = commonDuration(arg)
	case "RESPONSE_CODE_DETAILS":
		if arg != "" && arg != "ALLOW_WHITESPACES" {
			err = fmt.Errorf("unknown argument %.40q: want ALLOW_WHITESPACES, or none", arg)
		}
		o.value = details(arg != "")
	case "REQ", "REQUEST_HEADER":
		return property(arg, func(e *Entry) *codecs.Metadata { return e.Request })
	case "RESP", "RESPONSE_HEADER":
		if o, err = property(arg, func(e *Entry) *codecs.Metadata { return e.Response }); serviceTime(arg) {
			o = coalesced([]operator{o, {value: span(sent, answered, time.Millisecond)}})
		}
	case "DYNAMIC_METADATA":
		return dynamic(arg)
	case "METADATA":
		switch kind, rest, _ := strings.Cut(arg, ":"); kind {
		case "DYNAMIC":
			return dynamic(rest)
		case "CLUSTER", "ROUTE", "UPSTREAM_HOST", "LISTENER", "LISTENER_FILTER_CHAIN", "VIRTUAL_HOST":
			return o, fmt.Errorf("%s: %s", kind, notTold)
		default:
			return o, fmt.Errorf("unknown type %.40q: want DYNAMIC", kind)
		}
	case "FILTER_STATE":
		o.value, err = workload(arg)
	case "REQUESTED_SERVER_NAME":
		// There is no other name of a host in RPCs that could stand for it.
		if want, _, _ := strings.Cut(arg, ":"); want != "" && want != "SNI_ONLY" && want != "SNI_FIRST" {
			err = fmt.Errorf("%.40q: %s", want, notHTTP)
		}
		o = ofTLS(func(t *host.TLS) string { return t.ServerName })
	case "ENVIRONMENT":
		if arg == "" {
			return o, errNoName
		}
		o = constant(cmp.Or(os.Getenv(arg), "-")) // as in Envoy, also in JSON
	case "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":
		o.value, err = masked(arg, remote)
	case "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT":
		o.value, err = masked(arg, direct)
	case "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":
		o.value, err = masked(arg, local)
	case "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":
		o.value, err = masked(arg, upstream)
	case "COALESCE":
		return coalesce(arg)
	default:
		if why := refused[name]; why != "" {
			return o, errors.New("not supported: " + why)
		}
		return o, errUnknown
	}
	return o, err
}

func nothing(dst []byte, _ *Entry) ([]byte, bool) { return dst, false }

func word(f func(e *Entry) string) operator {
	return operator{word: f, value: func(dst []byte, e *Entry) ([]byte, bool) {
		s := f(e)
		return append(dst, s...), s != ""
	}}
}

func number(f func(e *Entry) int64) operator {
	return operator{number: true, bare: true, value: func(dst []byte, e *Entry) ([]byte, bool) {
		return appendNumber(dst, f(e)), true
	}}
}

// appendNumber appends v in decimal digits. Most are short.
func appendNumber(dst []byte, v int64) []byte {
	switch {
	case v < 0 || v > 999:
		return strconv.AppendInt(dst, v, 10)
	case v > 99:
		return append(dst, byte('0'+v/100), byte('0'+v/10%10), byte('0'+v%10))
	case v > 9:
		return append(dst, byte('0'+v/10), byte('0'+v%10))
	default:
		return append(dst, byte('0'+v))
	}
}

func constant(s string) operator { return word(func(*Entry) string { return s }) }

// cut has o say no more than so many bytes, and no part of a character.
func cut(o operator, most int) operator {
	if most == 0 || o.value == nil {
		return o
	}
	f := o.value
	o.word = nil
	o.value = func(dst []byte, e *Entry) ([]byte, bool) {
		b, ok := f(dst, e)
		return b[:len(dst)+substitution.Cut(b[len(dst):], most)], ok
	}
	return o
}

// details are why it was answered as it was, in one word unless white space is allowed.
func details(spaces bool) value {
	return func(dst []byte, e *Entry) ([]byte, bool) {
		s, at := e.details(), len(dst)
		dst = append(dst, s...)
		for i, c := range dst[at:] {
			if !spaces && (c == ' ' || c == '\t' || c == '\n') {
				dst[at+i] = '_'
			}
		}
		return dst, s != ""
	}
}

func hostname() string {
	name, _ := os.Hostname()
	return name
}

func upstreamProtocol(e *Entry) string {
	if e.Sent == 0 {
		return ""
	}
	return e.Protocol
}

func statusCode(dst []byte, e *Entry) ([]byte, bool) {
	if e.Code == 0 && (e.Replied || e.Answered == 0 || e.Kind == facts.Heartbeat) {
		return dst, false
	}
	return strconv.AppendInt(dst, int64(e.Code), 10), true
}

// flags always say something, as Envoy's do, also in JSON.
func flags(dst []byte, e *Entry) ([]byte, bool) {
	if e.Flags == 0 {
		return append(dst, '-'), true
	}
	return e.Flags.Append(dst), true
}

func longFlags(dst []byte, e *Entry) ([]byte, bool) {
	if e.Flags == 0 {
		return append(dst, '-'), true
	}
	return e.Flags.AppendLong(dst), true
}

// ofTLS is something of the client's TLS.
func ofTLS(f func(t *host.TLS) string) operator {
	return word(func(e *Entry) string {
		if e.TLS == nil {
			return ""
		}
		return f(e.TLS)
	})
}

// names are several of the client's TLS, with commas between them.
func names(f func(t *host.TLS) []string) operator {
	return operator{value: func(dst []byte, e *Entry) ([]byte, bool) {
		if e.TLS == nil {
			return dst, false
		}
		all := f(e.TLS)
		for i, s := range all {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(dst, s...)
		}
		return dst, len(all) > 0
	}}
}

// attempted are the hosts of all attempts, with commas between them.
func attempted(bare bool) operator {
	of := func(dst []byte, address string) []byte {
		if bare {
			return appendBare(dst, address)
		}
		return append(dst, address...)
	}
	return operator{value: func(dst []byte, e *Entry) ([]byte, bool) {
		if len(e.Hosts) == 0 {
			return of(dst, e.Host), e.Host != ""
		}
		for i, h := range e.Hosts {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = of(dst, h)
		}
		return dst, true
	}}
}

func traceID(dst []byte, e *Entry) ([]byte, bool) {
	id := &e.Trace.ID
	if *id == [16]byte{} {
		return dst, false
	}
	return facts.AppendHex(dst, id[:]), true
}

func spanID(dst []byte, e *Entry) ([]byte, bool) {
	id := &e.Trace.Span
	if *id == [8]byte{} {
		return dst, false
	}
	return facts.AppendHex(dst, id[:]), true
}

// unique is a random UUID, the same in all lines of a message.
func unique(dst []byte, e *Entry) ([]byte, bool) {
	var id [16]byte
	for i := range id {
		id[i] = byte(e.Rand[i/8] >> (i % 8 * 8))
	}
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80 // version 4
	for i, n := range [...]int{4, 6, 8, 10, 16} {
		if i > 0 {
			dst = append(dst, '-')
		}
		dst = facts.AppendHex(dst, id[[...]int{0, 4, 6, 8, 10}[i]:n])
	}
	return dst, true
}

// streamID is what the request is known by: its id, or a random one.
func streamID(dst []byte, e *Entry) ([]byte, bool) {
	if id, ok := e.Request.Get("x-request-id"); ok {
		return append(dst, cutProperty(id)...), true
	}
	return unique(dst, e)
}

// moment is one of a message's, 0 if it has not come.
type moment func(f *facts.Facts) time.Duration

func start(f *facts.Facts) time.Duration    { return f.Start }
func sent(f *facts.Facts) time.Duration     { return f.Sent }
func answered(f *facts.Facts) time.Duration { return f.Answered }
func end(f *facts.Facts) time.Duration      { return f.End }

// told is when the client was: not if nothing went to it.
func told(f *facts.Facts) time.Duration {
	if f.SentBytes == 0 {
		return 0
	}
	return f.End
}

// span is the time between two moments, which is never negative.
func span(from, to moment, unit time.Duration) value {
	return func(dst []byte, e *Entry) ([]byte, bool) {
		a, b := from(&e.Facts), to(&e.Facts)
		if a == 0 || b == 0 {
			return dst, false
		}
		n := int64(0)
		if b-a >= unit { // most are short, and to divide is dear
			n = int64((b - a) / unit)
		}
		return appendNumber(dst, n), true
	}
}

var moments = map[string]moment{
	"DS_RX_BEG": start, "DS_RX_END": start, "US_TX_BEG": sent, "US_TX_END": sent,
	"US_RX_BEG": answered, "US_RX_BODY_BEG": answered, "US_RX_END": answered, "DS_TX_BEG": told, "DS_TX_END": told,
}

var units = map[string]time.Duration{"ms": time.Millisecond, "us": time.Microsecond, "ns": time.Nanosecond}

func commonDuration(arg string) (value, error) {
	parts := strings.Split(arg, ":")
	if len(parts) != 3 {
		return nil, errors.New("want START:END:PRECISION in parentheses")
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
func property(arg string, of func(e *Entry) *codecs.Metadata) (operator, error) {
	name, other, _ := strings.Cut(arg, "?")
	if name == "" {
		return operator{}, errNoName
	}
	first, second := named(name), named(other)
	return operator{reads: true, value: func(dst []byte, e *Entry) ([]byte, bool) {
		md := of(e)
		if md == nil {
			return dst, false
		}
		b, there := first(dst, md)
		if !there {
			b, there = second(dst, md)
		}
		return b, there
	}}, nil
}

// maxProperty is where properties are cut, in bytes: a client may send one that fills its
// frame.
const maxProperty = 16 << 10

func cutProperty(v []byte) []byte { return v[:substitution.Cut(v, maxProperty)] }

// named appends the property of a name, if there is one.
func named(name string) func(dst []byte, md *codecs.Metadata) ([]byte, bool) {
	switch name {
	case "":
		return func(dst []byte, _ *codecs.Metadata) ([]byte, bool) { return dst, false }
	case ":PATH", ":path":
		return func(dst []byte, md *codecs.Metadata) ([]byte, bool) {
			before := len(dst)
			dst = md.AppendOperationUpTo(append(dst, '/'), maxProperty)
			if len(dst) == before+1 {
				return dst[:before], false
			}
			return dst, true
		}
	case ":METHOD", ":method":
		return func(dst []byte, _ *codecs.Metadata) ([]byte, bool) { return append(dst, "POST"...), true }
	default:
		return func(dst []byte, md *codecs.Metadata) ([]byte, bool) {
			p, there := md.Get(name)
			return append(dst, cutProperty(p)...), there
		}
	}
}

// serviceTime reports whether a property is the one by which Envoy tells clients how long
// a server took: it is known also where no answer can tell it.
func serviceTime(name string) bool { return strings.EqualFold(name, "x-envoy-upstream-service-time") }

// dynamic is dynamic metadata: what filters have learnt of a request are its properties,
// whoever asks.
func dynamic(arg string) (operator, error) {
	_, key, found := strings.Cut(arg, ":")
	if !found {
		return operator{}, errors.New("want NAMESPACE:KEY in parentheses")
	}
	return property(key, func(e *Entry) *codecs.Metadata { return e.Request })
}

// workload is what is known of that at one of both ends, under the name of the filter
// state in which Istio's proxies have it.
func workload(arg string) (value, error) {
	peer, field, _ := strings.Cut(arg, ":FIELD:")
	var of func(e *Entry) Workload
	switch peer {
	case "downstream_peer":
		of = func(e *Entry) Workload { return e.Source }
	case "upstream_peer":
		of = func(e *Entry) Workload { return e.Destination }
	}
	if of == nil || !slices.Contains(route.WorkloadFields, field) {
		return nil, errors.New("is there only as downstream_peer:FIELD: or upstream_peer:FIELD: and one of " + strings.Join(route.WorkloadFields, ", "))
	}
	return word(func(e *Entry) string {
		if w := of(e); w != nil {
			return w.Field(field)
		}
		return ""
	}).value, nil
}

// coalesce is the first of several operators that has something to say.
func coalesce(arg string) (operator, error) {
	var of struct {
		Operators []json.RawMessage `json:"operators"`
	}
	d := json.NewDecoder(strings.NewReader(arg))
	d.DisallowUnknownFields()
	if err := d.Decode(&of); err != nil || len(of.Operators) == 0 {
		return operator{}, errors.New(`want {"operators": [...]} in parentheses, with an operator or more`)
	}
	var all []operator
	for i, raw := range of.Operators {
		var s struct {
			Command string `json:"command"`
			Param   string `json:"param"`
			Length  *int   `json:"max_length"`
		}
		if json.Unmarshal(raw, &s.Command) != nil {
			d := json.NewDecoder(strings.NewReader(string(raw)))
			d.DisallowUnknownFields()
			if err := d.Decode(&s); err != nil {
				return operator{}, fmt.Errorf("operators[%d]: want a name, or an object with command, param and max_length", i)
			}
		}
		length := 0
		if s.Length != nil {
			if length = *s.Length; length <= 0 {
				return operator{}, fmt.Errorf("operators[%d].max_length: must be positive, is %d", i, length)
			}
		}
		o, err := parseOperator(substitution.Operator{Name: s.Command, Argument: s.Param, Given: s.Param != "", Length: length})
		if err != nil {
			return operator{}, fmt.Errorf("operators[%d]: %s: %w", i, s.Command, err)
		}
		all = append(all, o)
	}
	return coalesced(all), nil
}

// coalesced says what the first of all that has something to say does. It is a number if
// all are.
func coalesced(all []operator) operator {
	o := operator{number: true, value: func(dst []byte, e *Entry) ([]byte, bool) {
		for i := range all {
			if b, ok := all[i].value(dst, e); ok && len(b) > len(dst) {
				return b, true
			}
		}
		return dst, false
	}}
	for i := range all {
		o.number, o.reads = o.number && all[i].number, o.reads || all[i].reads
	}
	return o
}
