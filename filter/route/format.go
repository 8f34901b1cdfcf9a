package route

import (
	"errors"
	"os"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/substitution"
)

// Source is a message whose mutation is made: what formats take their values from.
type Source interface {
	// Request and Response return metadata whose properties can be had; nil if they
	// cannot.
	Request() *codecs.Metadata
	Response() *codecs.Metadata
	// RemoteAddress and LocalAddress are the client's and that which it is connected
	// to, "ip:port" or a pipe's name, "" if unknown.
	RemoteAddress() string
	LocalAddress() string
	// Direction is the traffic direction of the listener.
	Direction() corev3.TrafficDirection
	// TLS is what is known of the client's, nil if there is none.
	TLS() *host.TLS
	// SourceField is what is known of the workload that the request came from; "" if
	// nothing is.
	SourceField(name string) string
	// RouteName and Cluster are those of the route that was chosen.
	RouteName() string
	Cluster() string
	// Check tells whether the message's codec can set key to value.
	Check(key, value string) error
}

// Format is a frozen text with Envoy's command operators, as KeyValue.format has them.
type Format []piece

// piece is a text, or one operator.
type piece struct {
	op          operator
	text        string // of the text
	name, other string // of the property, and of the one in its place
	most        int    // bytes; 0: all
}

type operator uint8

const (
	opText operator = iota
	opRequest
	opResponse
	opRemote
	opRemoteIP
	opRemotePort
	opLocal
	opLocalIP
	opLocalPort
	opRouteName
	opCluster
	opOperation
	opService
	opMethod
	opDirection
	opSource
	opURISAN
	opDNSSAN
	opSubject
	opServerName
	opEnvironment // is text when it has been read
)

var operators = map[string]operator{
	"REQ": opRequest, "REQUEST_HEADER": opRequest,
	"RESP": opResponse, "RESPONSE_HEADER": opResponse,
	"DOWNSTREAM_REMOTE_ADDRESS":              opRemote,
	"DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": opRemoteIP,
	"DOWNSTREAM_REMOTE_PORT":                 opRemotePort,
	"DOWNSTREAM_LOCAL_ADDRESS":               opLocal,
	"DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":  opLocalIP,
	"DOWNSTREAM_LOCAL_PORT":                  opLocalPort,
	"ROUTE_NAME":                             opRouteName,
	"UPSTREAM_CLUSTER":                       opCluster,
	"OPERATION":                              opOperation,
	"SERVICE":                                opService,
	"METHOD":                                 opMethod,
	"TRAFFIC_DIRECTION":                      opDirection,
	"FILTER_STATE":                           opSource,
	"DOWNSTREAM_PEER_URI_SAN":                opURISAN,
	"DOWNSTREAM_PEER_DNS_SAN":                opDNSSAN,
	"DOWNSTREAM_PEER_SUBJECT":                opSubject,
	"REQUESTED_SERVER_NAME":                  opServerName,
	"ENVIRONMENT":                            opEnvironment,
}

// WorkloadFields are the names of what Istio's proxies know of a workload.
var WorkloadFields = []string{"app", "cluster", "name", "namespace", "revision", "service", "version", "workload"}

// ParseFormat parses a format for messages of one direction. The error says which
// operator is at fault.
func ParseFormat(s string, d codecs.Direction) (Format, error) {
	var f Format
	text := func(s string) {
		if n := len(f); n > 0 && f[n-1].op == opText {
			f[n-1].text += s
		} else if s != "" {
			f = append(f, piece{text: s})
		}
	}
	err := substitution.Scan(s, text, func(o substitution.Operator) error {
		p, err := parseOperator(o, d)
		if p.op == opText {
			text(p.text)
		} else {
			f = append(f, p)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

func parseOperator(o substitution.Operator, d codecs.Direction) (piece, error) {
	op, known := operators[o.Name]
	p := piece{op: op, most: o.Length}
	if !known {
		return p, errors.New("unknown operator")
	}
	takes := op == opRequest || op == opResponse || op == opSource || op == opEnvironment
	switch {
	case takes && o.Argument == "":
		return p, errors.New("needs a name in parentheses")
	case !takes && o.Argument != "":
		return p, errors.New("takes nothing in parentheses")
	case (op == opRequest || op >= opOperation && op <= opMethod) && d == codecs.ServerToClient:
		return p, errors.New("the request's properties are gone when the answer comes")
	case op == opResponse && d == codecs.ClientToServer:
		return p, errors.New("there is no answer yet")
	case !takes && o.Length > 0:
		return p, errors.New("takes no length")
	}
	if op == opEnvironment {
		v := []byte(os.Getenv(o.Argument))
		return piece{text: string(v[:substitution.Cut(v, p.most)])}, nil
	}
	if op == opSource {
		field, ok := strings.CutPrefix(o.Argument, "downstream_peer:FIELD:")
		if !ok || !slices.Contains(WorkloadFields, field) {
			return p, errors.New("is there only as downstream_peer:FIELD: and one of " + strings.Join(WorkloadFields, ", "))
		}
		p.name = field
		return p, nil
	}
	p.name, p.other, _ = strings.Cut(o.Argument, "?")
	if takes && p.name == "" {
		return p, errors.New("needs a name in parentheses")
	}
	return p, nil
}

// Append appends the text that f makes of what s has. If that has more than
// [codecs.MaxText] bytes, which nobody takes, it is not whole.
func (f Format) Append(dst []byte, s Source) []byte {
	before := len(dst)
	for i := range f {
		if dst = f[i].append(dst, s); len(dst)-before > codecs.MaxText {
			break
		}
	}
	return dst
}

// Enough is the beginning of a value from which a text is made: if there is more, that is
// too long in any case.
func Enough(v []byte) []byte { return v[:min(len(v), codecs.MaxText+1)] }

func (p *piece) append(dst []byte, s Source) []byte {
	switch p.op {
	case opRequest:
		return p.property(dst, s.Request())
	case opResponse:
		return p.property(dst, s.Response())
	case opRemote:
		return append(dst, s.RemoteAddress()...)
	case opRemoteIP, opRemotePort:
		return p.half(dst, s.RemoteAddress())
	case opLocal:
		return append(dst, s.LocalAddress()...)
	case opLocalIP, opLocalPort:
		return p.half(dst, s.LocalAddress())
	case opRouteName:
		return append(dst, s.RouteName()...)
	case opCluster:
		return append(dst, s.Cluster()...)
	case opOperation, opService, opMethod:
		return p.operation(dst, s.Request())
	case opDirection:
		if d := s.Direction(); d != corev3.TrafficDirection_UNSPECIFIED {
			dst = append(dst, d.String()...)
		}
		return dst
	case opURISAN, opDNSSAN, opSubject, opServerName:
		return p.tls(dst, s.TLS())
	case opSource:
		v := s.SourceField(p.name)
		return append(dst, v[:substitution.Cut(v, p.most)]...)
	default:
		return append(dst, p.text...)
	}
}

// property appends the value of the property that p names.
func (p *piece) property(dst []byte, md *codecs.Metadata) []byte {
	if md == nil {
		return dst
	}
	v, ok := md.Get(p.name)
	if !ok && p.other != "" {
		v, _ = md.Get(p.other)
	}
	return append(dst, Enough(v[:substitution.Cut(v, p.most)])...)
}

// operation appends what the request calls, or a part of it.
func (p *piece) operation(dst []byte, md *codecs.Metadata) []byte {
	switch {
	case md == nil:
		return dst
	case p.op == opService:
		return append(dst, Enough(md.Service())...)
	case p.op == opMethod:
		return append(dst, Enough(md.Method())...)
	default:
		return md.AppendOperationUpTo(dst, codecs.MaxText+1)
	}
}

// tls appends what is known of the client's TLS: several names with commas between
// them.
func (p *piece) tls(dst []byte, t *host.TLS) []byte {
	if t == nil {
		return dst
	}
	switch p.op {
	case opURISAN:
		return list(dst, t.URISANs)
	case opDNSSAN:
		return list(dst, t.DNSSANs)
	case opSubject:
		return append(dst, t.Subject...)
	default:
		return append(dst, t.ServerName...)
	}
}

func list(dst []byte, all []string) []byte {
	for i, s := range all {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, s...)
	}
	return dst
}

// half appends the IP address of an address, without brackets, or its port. A
// pipe's name has no port.
func (p *piece) half(dst []byte, address string) []byte {
	i := strings.LastIndexByte(address, ':')
	ip, port := address, ""
	if i >= 0 {
		ip, port = address[:i], address[i+1:]
	}
	if p.op == opRemotePort || p.op == opLocalPort {
		return append(dst, port...)
	}
	return append(dst, strings.Trim(ip, "[]")...)
}

// AsksRoute reports whether f tells of the route or the cluster that was chosen.
func (f Format) AsksRoute() bool {
	return slices.ContainsFunc(f, func(p piece) bool { return p.op == opRouteName || p.op == opCluster })
}

// constant reports whether f is the same for each message, and what it is.
func (f Format) constant() (text string, ok bool) {
	switch {
	case len(f) == 0:
		return "", true
	case len(f) == 1 && f[0].op == opText:
		return f[0].text, true
	}
	return "", false
}
