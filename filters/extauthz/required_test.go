package extauthz

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"strconv"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/codecs"
	_ "github.com/meltemi-mesh/meltemi/codecs/brpc"
	"github.com/meltemi-mesh/meltemi/codecs/brpc/brpctest"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	_ "github.com/meltemi-mesh/meltemi/codecs/thrift"
	_ "github.com/meltemi-mesh/meltemi/codecs/trpc"
	"github.com/meltemi-mesh/meltemi/codecs/trpc/trpctest"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// frameLimit is that of the listeners here.
const frameLimit = 60_000

// forged is what the client says itself, with as many others as there may be.
func forged(n int) [][2]string {
	all := [][2]string{{"x-user", "admin"}}
	for i := 1; i < n; i++ {
		all = append(all, [2]string{"k" + strconv.Itoa(i), "v"})
	}
	return all
}

// filled is a frame that has just the bytes that it may, less of those that an id takes.
func filled(less int, frame func(padding int) []byte) []byte {
	b := frame(0)
	for padding := frameLimit - less - len(b) - 16; ; padding++ { // lengths may grow by some bytes
		if next := frame(padding); len(next) <= frameLimit-less {
			b = next
			continue
		}
		return b
	}
}

// thriftCall is a call of the binary protocol, in the transport with headers that has this
// magic, or framed without one.
func thriftCall(magic, info, argument string) []byte {
	b := make([]byte, 4)
	if magic != "" {
		info += strings.Repeat("\x00", (4-(len(info)+2)%4)%4)
		b = append(b, magic+"\x00\x00\x00\x00\x00\x07"...)
		b = binary.BigEndian.AppendUint16(b, uint16((len(info)+2)/4))
		b = append(b, "\x00\x00"+info...)
	}
	b = append(b, "\x80\x01\x00\x01\x00\x00\x00\x04echo\x00\x00\x00\x07\x0b\x00\x01"...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(argument)))
	b = append(append(b, argument...), 0)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

const (
	theader, ttheader = "\x0f\xff", "\x10\x00"
	// One header, as each of the transports has it.
	theaderUser, ttheaderUser = "\x01\x01\x06x-user\x05admin", "\x01\x00\x01\x00\x06x-user\x00\x05admin"
)

// protocols are the codecs with a message of each that carries changes, and the answer to a
// request.
var protocols = map[string]struct {
	usual  []byte
	answer func(id uint64, request []byte) []byte
}{
	"dubbo": {dubbotest.Request{ID: 7, Attachments: forged(1)}.Bytes(), func(id uint64, _ []byte) []byte { return dubbotest.Response(id, "hello") }},
	"thrift": {thriftCall(theader, theaderUser, "hello"), func(_ uint64, request []byte) []byte {
		return bytes.Replace(request, []byte("\x80\x01\x00\x01"), []byte("\x80\x01\x00\x02"), 1)
	}},
	"brpc": {brpctest.Request{ID: 7, UserFields: forged(1)}.Bytes(), func(id uint64, _ []byte) []byte {
		return brpctest.Response{ID: id, Body: []byte("hello")}.Bytes()
	}},
	"trpc": {trpctest.Request{ID: 7, TransInfo: forged(1)}.Bytes(), func(id uint64, _ []byte) []byte {
		return trpctest.Response{ID: uint32(id), Body: []byte("hello")}.Bytes()
	}},
}

// unchangeable are messages that cannot carry a change, and why.
var unchangeable = map[string]struct {
	protocol, why string
	frame         []byte
	next          []byte // on the same connection; nil: what is usual
}{
	"dubbo, many attachments":     {"dubbo", "more than 1024 attachments", dubbotest.Request{ID: 7, Attachments: forged(1025)[1:]}.Bytes(), nil},
	"dubbo, another format":       {"dubbo", "its serialization is 23", dubbotest.Frame(0xc0|23, 0, 7, []byte(`{"x-user": "admin"}`)), nil},
	"dubbo, full":                 {"dubbo", "larger than the limits", filled(0, func(n int) []byte { return dubbotest.Request{ID: 7, Argument: strings.Repeat("x", n)}.Bytes() }), nil},
	"thrift, framed":              {"thrift", "framed transport has no headers", thriftCall("", "", "x"), thriftCall("", "", "hello")},
	"thrift, an unknown part":     {"thrift", "parts of an unknown kind", thriftCall(theader, theaderUser+"\x77", "x"), nil},
	"thrift, an unknown of Kitex": {"thrift", "parts of an unknown kind", thriftCall(ttheader, ttheaderUser+"\x77", "x"), thriftCall(ttheader, ttheaderUser, "hello")},
	"thrift, full":                {"thrift", "larger than the limits", filled(0, func(n int) []byte { return thriftCall(theader, "", strings.Repeat("x", n)) }), nil},
	"brpc, many fields":           {"brpc", "larger than the limits", brpctest.Request{ID: 7, UserFields: forged(1025)[1:]}.Bytes(), nil},
	"brpc, full":                  {"brpc", "larger than the limits", filled(0, func(n int) []byte { return brpctest.Request{ID: 7, Body: make([]byte, n)}.Bytes() }), nil},
	"trpc, many entries":          {"trpc", "larger than the limits", trpctest.Request{ID: 7, TransInfo: forged(1025)[1:]}.Bytes(), nil},
	"trpc, full":                  {"trpc", "larger than the limits", filled(8, func(n int) []byte { return trpctest.Request{ID: 7, Body: make([]byte, n)}.Bytes() }), nil},
	"trpc, a stream":              {"trpc", "larger than the limits", trpctest.Request{ID: 7, TransInfo: forged(1025)[1:]}.Init(), nil},
}

// carrying is a bed of a protocol, whose server answers, and notes what it has got.
func carrying(t *testing.T, protocol, more string) (b *bed, got *[]string) {
	b = newBed(t, byCluster+more, routes)
	got = new([]string)
	b.greeter.Serve = func(s *filtertest.Server, in []byte) int {
		newCodec, _ := codecs.Lookup("aeraki.meta_protocol.codec." + protocol)
		codec, err := newCodec(nil, codecs.Limits{})
		require.NoError(t, err)
		var m codecs.Metadata
		n, err := codec.NewDecoder(codecs.ClientToServer).Decode(in, &m)
		require.NoError(t, err)
		*got = append(*got, string(m.Raw))
		s.Send(protocols[protocol].answer(m.ID, m.Raw))
		return n
	}
	l := strings.ReplaceAll(listener(byCluster+more, routes), "dubbo", protocol)
	b.cfg = b.MustLoad(strings.Replace(l, `{"stat_prefix"`, `{"limits": {"max_frame_bytes": `+strconv.Itoa(frameLimit)+`}, "stat_prefix"`, 1))
	b.c = b.Dial(b.cfg)
	return b, got
}

// told waits for what the client is answered.
func (b *bed) told() (answer string) {
	b.t.Helper()
	b.WaitUntil(func() bool {
		answer += string(b.c.Take())
		return answer != ""
	})
	return answer
}

// TestMessagesThatCannotCarryChanges are refused: a client cannot have its own word go on in
// the place of the service's. One without headers has nothing to be removed.
func TestMessagesThatCannotCarryChanges(t *testing.T) {
	removes := &authv3.OkHttpResponse{HeadersToRemove: []string{"x-user"}}
	for name, tt := range unchangeable {
		sets := &authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{header("x-user", "alice")}}
		for change, answer := range map[string]*authv3.OkHttpResponse{"set": sets, "removed": removes} {
			if change == "removed" && !strings.Contains(name, "another format") && !strings.Contains(name, "unknown") {
				continue // there is less of it then
			}
			t.Run(name+", "+change, func(t *testing.T) {
				b, got := carrying(t, tt.protocol, "")
				b.c.Send(tt.frame)
				b.authorizer.next().allow(answer)
				told := b.told()
				require.Contains(t, told, codecs.ErrNoMutation.Error()+": ")
				require.Contains(t, told, tt.why)
				require.Empty(t, *got)
				require.False(t, b.c.Closed())
				count := func(name string) int64 { return b.cfg.Counter(tt.protocol + ".t." + name) }
				b.Advance(1e9)
				require.EqualValues(t, 1, count("mutation_refused"))
				require.EqualValues(t, 1, count("local_response_business_exception"))
				require.Zero(t, count("mutation_skipped"))
				require.Contains(t, strings.Join(b.Log(), "\n"), " not sent, as it cannot carry what is required: "+codecs.ErrNoMutation.Error()+": ")

				if tt.next == nil {
					tt.next = protocols[tt.protocol].usual
				}
				b.c.Send(tt.next)
				if name == "thrift, framed" {
					sets = removes // which it does not need to carry
				}
				b.authorizer.next().allow(sets)
				require.Contains(t, b.told(), "hello")
				require.Len(t, *got, 1)
				require.Equal(t, name != "thrift, framed", strings.Contains((*got)[0], "alice"))
				require.NotContains(t, (*got)[0], "admin")
				b.Advance(1e9)
				require.Zero(t, count("mutation_skipped"))
			})
		}
	}
}

// TestAOnewayThatCannotCarryChanges ends without a word.
func TestAOnewayThatCannotCarryChanges(t *testing.T) {
	b, got := carrying(t, "dubbo", "")
	b.c.Send(dubbotest.Frame(0x80|23, 0, 7, []byte(`{"x-user": "admin"}`)))
	b.authorizer.next().allow(&authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{header("x-user", "alice")}})
	b.WaitUntil(func() bool { return strings.Contains(strings.Join(b.Log(), "\n"), " not sent, ") })
	b.Advance(1e9)
	require.Empty(t, *got)
	require.Empty(t, b.c.Take())
	require.EqualValues(t, 1, b.cfg.Counter("dubbo.t.mutation_refused"))
	require.EqualValues(t, 1, b.cfg.Counter("dubbo.t.oneway_dropped"))
}

// TestAServerThatIsNotTold of a service that has failed is not asked, if it wants to know.
func TestAServerThatIsNotTold(t *testing.T) {
	for add, text := range map[string]string{"true": codecs.ErrNoMutation.Error(), "false": "hello"} {
		b, _ := carrying(t, "dubbo", `, "failure_mode_allow": true, "failure_mode_allow_header_add": `+add)
		b.c.Send(unchangeable["dubbo, another format"].frame)
		b.authorizer.next().say(&authv3.CheckResponse{Status: &status.Status{Code: 13}, HttpResponse: &authv3.CheckResponse_ErrorResponse{ErrorResponse: &authv3.DeniedHttpResponse{}}})
		require.Contains(t, b.told(), text)
	}
}

// TestAnAnswerThatCannotCarryChanges goes on without: its client has been served.
func TestAnAnswerThatCannotCarryChanges(t *testing.T) {
	b, _ := carrying(t, "dubbo", "")
	b.greeter.Serve = func(s *filtertest.Server, in []byte) int {
		frames, rest := dubbotest.Parse(in)
		s.Send(dubbotest.ErrorResponse(frames[0].ID, 70, "what the server says"))
		return len(in) - len(rest)
	}
	b.c.Send(protocols["dubbo"].usual)
	b.authorizer.next().allow(&authv3.OkHttpResponse{ResponseHeadersToAdd: []*corev3.HeaderValueOption{header("checked", "yes")}})
	require.Contains(t, b.told(), "what the server says")
	b.Advance(1e9)
	require.EqualValues(t, 1, b.cfg.Counter("dubbo.t.mutation_skipped"))
}

// TestWhatIsAppendedTo counts: what the client says must not make a value that is none.
func TestWhatIsAppendedTo(t *testing.T) {
	for old, ok := range map[int]bool{codecs.MaxText - len(",admin"): true, codecs.MaxText - len("admin"): false} {
		b := newBed(t, byCluster+`, "failure_mode_allow": true`, routes)
		b.ask([2]string{"roles", strings.Repeat("x", old)})
		appended := header("roles", "admin")
		appended.Append = wrapperspb.Bool(true) //nolint:staticcheck // as services say it
		b.authorizer.next().allow(&authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{appended}})
		if ok {
			b.passes()
			require.Contains(t, string(b.got[0].Body), "x,admin")
			continue
		}
		b.refused(40, "the authorization service failed")
		require.Empty(t, b.got)
		b.counts(map[string]int{"invalid": 1})
	}
}

// TestADenialIsNotKeptWhole: what a cache keeps is what a client is told.
func TestADenialIsNotKeptWhole(t *testing.T) {
	c := &config{ttl: 1e9, maxEntries: 100}
	cache := newCache(c)
	heap := func() int {
		runtime.GC()
		var ms runtime.MemStats
		runtime.ReadMemStats(&ms)
		return int(ms.HeapAlloc)
	}
	before := heap()
	for i := range 100 {
		d, err := c.decide(&authv3.CheckResponse{Status: &status.Status{Code: 7}, HttpResponse: &authv3.CheckResponse_DeniedResponse{
			DeniedResponse: &authv3.DeniedHttpResponse{Body: strings.Repeat("x", 1<<20)},
		}})
		require.NoError(t, err)
		require.Len(t, d.reply.Message, maxText)
		cache.put(key{byte(i)}, d, 0)
	}
	require.Less(t, heap()-before, 2<<20)
	require.Len(t, cache.known, 100)
}
