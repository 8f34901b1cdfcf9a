package main

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// protocol is what the load, the echo server and the proxies are told of one
// protocol. Its frames are built here, independently of Meltemi's codecs.
type protocol struct {
	name string
	// codec is its config name, "" for Meltemi's own of that name.
	codec string
	// so is the folder, beside the other shared object, of one that has the codec.
	so string
	// request appends a request.
	request func(dst []byte, id uint64) []byte
	// next returns the length of the frame at the start of b, 0 if it is not
	// whole.
	next func(b []byte) int
	// reply appends the answer to a request.
	reply func(dst, req []byte) []byte
	// answer reads an answer's id and whether it is a success.
	answer func(b []byte) (id uint64, ok bool)
	// targets that are compared.
	targets   []string
	scenarios []scenario
	// rival's idle connections are compared with Meltemi's.
	rival string
}

var protocols = []*protocol{&dubbo, &thrift, &brpc, &trpc, &memcached}

func text(size int, first byte) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = first + byte(i%26)
	}
	return b
}

var dubboAnswer = dubboResponse(128)

var dubbo = func() protocol {
	req := dubboRequest(128)
	return protocol{
		name: "dubbo",
		request: func(dst []byte, id uint64) []byte {
			at := len(dst)
			dst = append(dst, req...)
			binary.BigEndian.PutUint64(dst[at+4:], id)
			return dst
		},
		next: func(b []byte) int {
			return whole(b, 16, func() int { return 16 + int(binary.BigEndian.Uint32(b[12:])) })
		},
		reply: func(dst, req []byte) []byte {
			at := len(dst)
			dst = append(dst, dubboAnswer...)
			copy(dst[at+4:at+12], req[4:])
			return dst
		},
		answer:  func(b []byte) (uint64, bool) { return binary.BigEndian.Uint64(b[4:]), b[3] == 20 },
		targets: []string{"direct", "tcp_proxy", "dubbo_proxy", "meltemi", "haproxy"},
		rival:   "dubbo_proxy",
		scenarios: append([]scenario{
			{name: "16x1", conns: 16, outstanding: 1, goals: []goal{{"meltemi", "tcp_proxy", 0.70}, {"meltemi", "dubbo_proxy", 0.65}, {"meltemi" + golangSuffix, "tcp_proxy", 1.60}}},
			{name: "16x16", conns: 16, outstanding: 16, goals: []goal{{"meltemi", "tcp_proxy", 0.95}, {"meltemi", "dubbo_proxy", 0.10}, {"meltemi" + golangSuffix, "dubbo_proxy", 0.12}}},
			{name: "200x1", conns: 200, outstanding: 1, goals: []goal{{"meltemi", "tcp_proxy", 0.48}}},
			{name: "1x1", conns: 1, outstanding: 1},
			{
				name: "policies", conns: 16, outstanding: 1,
				targets: []string{"meltemi", policiesTarget}, goals: []goal{{policiesTarget, "meltemi", 1.15}},
			},
			{
				name: "guards", conns: 16, outstanding: 1,
				targets: []string{"meltemi", guardsTarget}, goals: []goal{{guardsTarget, "meltemi", 1.25}},
			},
			{
				name: "telemetry", conns: 16, outstanding: 1,
				targets: []string{"meltemi", telemetryTarget}, goals: []goal{{telemetryTarget, "meltemi", 1.15}},
			},
			{name: "open", conns: 16, open: true, goals: []goal{{"meltemi", "tcp_proxy", 0.95}}, p99: []goal{{"meltemi", "tcp_proxy", 0.90}}},
		}, everything...),
	}
}()

// whole returns size() if b has the header and that much.
func whole(b []byte, header int, size func() int) int {
	if len(b) < header {
		return 0
	}
	if n := size(); n <= len(b) {
		return n
	}
	return 0
}

// thrift is framed binary: echo(1: string) returns string.
var thrift = func() protocol {
	const version, call, reply = 0x80010000, 1, 2
	const seqid = 4 + 4 + 4 + len("echo")
	message := func(kind uint32, field uint16, arg []byte) []byte {
		b := binary.BigEndian.AppendUint32(make([]byte, 4), version|kind)
		b = append(binary.BigEndian.AppendUint32(b, 4), "echo"...)
		b = binary.BigEndian.AppendUint32(b, 0)
		b = binary.BigEndian.AppendUint16(append(b, 11), field)
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(arg))), arg...)
		b = append(b, 0)
		binary.BigEndian.PutUint32(b, uint32(len(b)-4))
		return b
	}
	req, resp := message(call, 1, text(128, 'a')), message(reply, 0, text(128, 'A'))
	return protocol{
		name: "thrift",
		request: func(dst []byte, id uint64) []byte {
			at := len(dst)
			dst = append(dst, req...)
			binary.BigEndian.PutUint32(dst[at+seqid:], uint32(id))
			return dst
		},
		next: func(b []byte) int { return whole(b, 4, func() int { return 4 + int(binary.BigEndian.Uint32(b)) }) },
		reply: func(dst, req []byte) []byte {
			at := len(dst)
			dst = append(dst, resp...)
			copy(dst[at+seqid:at+seqid+4], req[seqid:])
			return dst
		},
		answer: func(b []byte) (uint64, bool) {
			return uint64(binary.BigEndian.Uint32(b[seqid:])), b[7] == reply
		},
		targets: []string{"direct", "tcp_proxy", "thrift_proxy", "meltemi", "meltemi-shared"},
		rival:   "thrift_proxy",
		scenarios: []scenario{
			{name: "16x1", conns: 16, outstanding: 1, goals: []goal{{"meltemi", "tcp_proxy", 1.05}, {"meltemi", "thrift_proxy", 0.80}}},
			{name: "16x16", conns: 16, outstanding: 16, goals: []goal{{"meltemi-shared", "thrift_proxy", 0.10}}},
			{name: "200x1", conns: 200, outstanding: 1, goals: []goal{{"meltemi", "tcp_proxy", 1.05}, {"meltemi-shared", "tcp_proxy", 0.60}}},
		},
	}
}()

// against tcp_proxy alone: Envoy has no filter for the protocol.
var againstTCP = []scenario{
	{name: "16x1", conns: 16, outstanding: 1, goals: []goal{{"meltemi", "tcp_proxy", 0.85}}},
	{name: "200x1", conns: 200, outstanding: 1, goals: []goal{{"meltemi", "tcp_proxy", 0.85}}},
}

// byID is that with many outstanding, too.
var byID = append([]scenario{
	{name: "16x16", conns: 16, outstanding: 16, goals: []goal{{"meltemi", "tcp_proxy", 1.00}}},
}, againstTCP...)

var plainTargets = []string{"direct", "tcp_proxy", "meltemi"}

// varint finds a varint field of a protobuf message.
func varint(b []byte, field protowire.Number) uint64 {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return 0
		}
		b = b[n:]
		if num == field && typ == protowire.VarintType {
			v, _ := protowire.ConsumeVarint(b)
			return v
		}
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return 0
		}
		b = b[n:]
	}
	return 0
}

func field(b []byte, num protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
}

func number(b []byte, num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

// brpc is baidu_std: RpcMeta with request 1, response 2, correlation id 4.
var brpc = func() protocol {
	body := text(128, 'a')
	var request []byte
	request = field(request, 1, []byte("org.bench.Echo"))
	request = field(request, 2, []byte("echo"))
	request = number(request, 3, 4711)
	frame := func(dst []byte, fixed []byte, id uint64) []byte {
		at := len(dst)
		dst = append(dst, "PRPC\x00\x00\x00\x00\x00\x00\x00\x00"...)
		dst = number(append(dst, fixed...), 4, id)
		meta := len(dst) - at - 12
		dst = append(dst, body...)
		binary.BigEndian.PutUint32(dst[at+4:], uint32(len(dst)-at-12))
		binary.BigEndian.PutUint32(dst[at+8:], uint32(meta))
		return dst
	}
	meta := func(b []byte) []byte { return b[12 : 12+binary.BigEndian.Uint32(b[8:])] }
	req, resp := field(nil, 1, request), field(nil, 2, nil)
	return protocol{
		name:    "brpc",
		request: func(dst []byte, id uint64) []byte { return frame(dst, req, id) },
		next: func(b []byte) int {
			return whole(b, 12, func() int { return 12 + int(binary.BigEndian.Uint32(b[4:])) })
		},
		reply: func(dst, req []byte) []byte { return frame(dst, resp, varint(meta(req), 4)) },
		answer: func(b []byte) (uint64, bool) {
			m := meta(b)
			return varint(m, 4), len(m) > 1 && m[0] == 2<<3|2 && m[1] == 0
		},
		targets: plainTargets, scenarios: byID,
	}
}()

// trpc is unary: RequestProtocol and ResponseProtocol with the request id 3.
var trpc = func() protocol {
	body := text(128, 'a')
	var request []byte
	request = field(request, 5, []byte("trpc.bench.client.Echo"))
	request = field(request, 6, []byte("trpc.bench.echo.Echo"))
	request = field(request, 7, []byte("/trpc.bench.echo.Echo/Echo"))
	frame := func(dst []byte, fixed []byte, id uint64) []byte {
		at := len(dst)
		dst = append(dst, "\x09\x30\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00"...)
		dst = append(number(dst, 3, id), fixed...)
		header := len(dst) - at - 16
		dst = append(dst, body...)
		binary.BigEndian.PutUint32(dst[at+4:], uint32(len(dst)-at))
		binary.BigEndian.PutUint16(dst[at+8:], uint16(header))
		binary.BigEndian.PutUint32(dst[at+10:], uint32(id))
		return dst
	}
	header := func(b []byte) []byte { return b[16 : 16+binary.BigEndian.Uint16(b[8:])] }
	return protocol{
		name:    "trpc",
		request: func(dst []byte, id uint64) []byte { return frame(dst, request, id+1) },
		next:    func(b []byte) int { return whole(b, 16, func() int { return int(binary.BigEndian.Uint32(b[4:])) }) },
		reply:   func(dst, req []byte) []byte { return frame(dst, nil, varint(header(req), 3)) },
		answer: func(b []byte) (uint64, bool) {
			h := header(b)
			return varint(h, 3) - 1, varint(h, 4) == 0 && varint(h, 5) == 0
		},
		targets: plainTargets, scenarios: byID,
	}
}()

// memcached is a get of one key, with the codec of examples/memcached. The id is in
// the key.
var memcached = func() protocol {
	const get, value = "get user:", "VALUE user:"
	const digits, line = 16, "\r\n"
	body := text(128, 'A')
	number := func(b []byte) (id uint64) {
		for _, c := range b[:digits] {
			id = id*10 + uint64(c-'0')
		}
		return id
	}
	suffix := fmt.Sprintf(" 0 %d%s%s%sEND%s", len(body), line, body, line, line)
	return protocol{
		name: "memcached", codec: "example.codec.memcached", so: "memcached",
		request: func(dst []byte, id uint64) []byte { return fmt.Appendf(dst, "%s%0*d%s", get, digits, id, line) },
		next: func(b []byte) int {
			return whole(b, 1, func() int {
				if b[0] == get[0] {
					return len(get) + digits + len(line)
				}
				return len(value) + digits + len(suffix)
			})
		},
		reply: func(dst, req []byte) []byte {
			return append(append(append(dst, value...), req[len(get):len(get)+digits]...), suffix...)
		},
		answer: func(b []byte) (uint64, bool) {
			return number(b[len(value):]), bytes.HasPrefix(b, []byte(value)) && bytes.HasSuffix(b, []byte(suffix))
		},
		targets: plainTargets, scenarios: againstTCP,
	}
}()
