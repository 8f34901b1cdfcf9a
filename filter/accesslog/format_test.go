package accesslog

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/facts"
	"github.com/meltemi-mesh/meltemi/filter/host"
)

// TestWhatIsCleanIsNotEscaped, and what is not is, wherever it stands.
func TestWhatIsCleanIsNotEscaped(t *testing.T) {
	for n := range 20 {
		for at := range n {
			for c := range 256 {
				b := []byte(strings.Repeat(" ", n))
				b[at] = byte(c)
				same := c >= ' ' && c < 0x80 && c != '"' && c != '\\'
				if clean(b) != same || clean(string(b)) != same {
					t.Fatalf("%q is taken for clean: %v", b, clean(b))
				}
				said := quote(nil, b)
				if same != (string(said) == `"`+string(b)+`"`) {
					t.Fatalf("%q is written as %s", b, said)
				}
			}
		}
	}
	require.True(t, clean(""))
}

// TestHowValuesAreQuoted does not depend on how operators tell them.
func TestHowValuesAreQuoted(t *testing.T) {
	for _, s := range []string{"a", "12345678", "a\"b", "\\", "12345678\n", "ü", "\xff", "1234567\x00"} {
		want, err := json.Marshal(s)
		require.NoError(t, err)
		of := func(*Entry) string { return s }
		for i, o := range []operator{word(of), cut(word(of), 100), {value: word(of).value}} {
			got, ok := o.node()([]byte("x"), nil)
			require.True(t, ok)
			var read string
			require.NoError(t, json.Unmarshal(got[1:], &read), fmt.Sprint(i))
			require.Equal(t, strings.ToValidUTF8(s, "\ufffd"), read)
			if !strings.Contains(s, "\xff") {
				require.Equal(t, string(want), string(got[1:]))
			}
		}
	}
	for _, o := range []operator{word(func(*Entry) string { return "" }), {value: nothing}, {value: nothing, bare: true}} {
		got, ok := o.node()([]byte("x"), nil)
		require.False(t, ok)
		require.Equal(t, "x", string(got))
	}
}

// TestBareOperatorsAreClean: those that are said to be, of an entry that is as hostile as
// can be.
func TestBareOperatorsAreClean(t *testing.T) {
	e := hostile()
	n := 0
	for name, o := range plain {
		if !o.bare {
			continue
		}
		n++
		b, _ := o.value(nil, e)
		require.True(t, clean(b), "%s: %q", name, b)
	}
	require.Greater(t, n, 15)
}

// hostile is an entry whose strings are all what nobody wants in a log.
func hostile() *Entry {
	const s = "a\"\n\x00ü\xff"
	e := &Entry{Request: new(codecs.Metadata), RemoteAddress: s, DirectRemoteAddress: s, LocalAddress: s, Details: s}
	e.Protocol, e.Route, e.Cluster, e.Host, e.Hosts = s, s, s, s, []string{s, s}
	e.Flags, e.Replied, e.Local.Message = ^facts.Flags(0), true, s
	e.Trace.ID[3], e.Trace.Span[5], e.Rand = 0xff, 0x22, [2]uint64{1, ^uint64(0)}
	e.Start, e.Sent, e.Answered, e.End = 1, 1<<40, 1<<30, 1<<50
	return e
}

func BenchmarkLine(b *testing.B) {
	s, err := structpb.NewStruct(map[string]any{
		"start": "%START_TIME%", "call": "%REQ(:PATH)%", "tenant": "%REQ(tenant)%", "code": "%RESPONSE_CODE%", "flags": "%RESPONSE_FLAGS%",
		"details": "%RESPONSE_CODE_DETAILS%", "ms": "%DURATION%", "received": "%BYTES_RECEIVED%", "sent": "%BYTES_SENT%",
		"client": "%DOWNSTREAM_REMOTE_ADDRESS%", "host": "%UPSTREAM_HOST%", "cluster": "%UPSTREAM_CLUSTER%", "trace": "%TRACE_ID%",
	})
	require.NoError(b, err)
	f := jsonFormat(s, false, "", func(path string, err error) { b.Fatal(path, err) })
	e := &Entry{
		Request: new(codecs.Metadata), RemoteAddress: "10.0.0.1:40000", Second: new(Second),
		StartTime: time.Date(2026, 11, 29, 1, 2, 3, 4_005_006, time.UTC),
	}
	e.Request.SetOperation([]byte("org.example.Greeter"), []byte("sayHello"))
	e.Request.Set("tenant", "acme")
	e.Host, e.Cluster, e.ReceivedBytes, e.SentBytes, e.Trace.ID = "10.0.0.3:20880", "outbound|20880||greeter", 317, 157, [16]byte{1}
	e.Start, e.Sent, e.Answered, e.End = time.Second, time.Second, time.Second, time.Second
	var line []byte
	b.ReportAllocs()
	for b.Loop() {
		line = f.append(line[:0], e)
	}
}

// TestWhatIsOfNoLineIsShown wherever it stands alone.
func TestWhatIsOfNoLineIsShown(t *testing.T) {
	f, err := textFormat("%PROTOCOL%|\n", false)
	require.NoError(t, err)
	for s, want := range map[string]string{"a\x7f": `a\x7f`, "a\n": `a\x0a`, "\x7f\"": `\x7f"`, "ü": "ü", `a\b`: `a\b`} {
		require.Equal(t, want+"|\n", string(f.append(nil, &Entry{Facts: facts.Facts{Protocol: s}})))
	}
}

// TestNumbersThatJSONHasNot are refused.
func TestNumbersThatJSONHasNot(t *testing.T) {
	var said []string
	all := map[string]*structpb.Value{"inf": structpb.NewNumberValue(math.Inf(-1)), "nan": structpb.NewNumberValue(math.NaN()), "ok": structpb.NewNumberValue(1e300)}
	jsonFormat(&structpb.Struct{Fields: all}, false, "p", func(path string, err error) { said = append(said, path+": "+err.Error()) })
	require.Equal(t, []string{"p.inf: JSON has no number -Inf", "p.nan: JSON has no number NaN"}, said)
}

// FuzzLines: one line for each entry, whatever peers say, which is JSON where it should be.
func FuzzLines(f *testing.F) {
	var text strings.Builder
	members := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for _, o := range append(slices.Collect(maps.Keys(plain)), "REQ(k)", "RESP(k):3", "REQ(:path)", "REQ(none?k):2", "DYNAMIC_METADATA(a:k)", "RESPONSE_CODE_DETAILS",
		"RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)", "REQUESTED_SERVER_NAME", "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT(24)",
		`COALESCE({"operators": [{"command": "REQ", "param": "k", "max_length": 2}, "PROTOCOL"]})`) {
		text.WriteString("%" + o + "% ")
		members.Fields[o] = structpb.NewStringValue("%" + o + "%")
		members.Fields["in "+o] = structpb.NewStringValue("in %" + o + "%")
	}
	lines, err := textFormat(text.String()+"\n", false)
	require.NoError(f, err)
	none := func(path string, err error) { f.Fatal(path, err) }
	objects := []format{jsonFormat(members, false, "p", none), jsonFormat(members, true, "p", none)}
	f.Add("a\"\n\x00ü\xff", "\x7f", "10.0.0.1:1", int64(-1), uint64(7))
	f.Add("10.0.0.1:00", "[::1]:007", "[::1%\"]:1", int64(0), uint64(0))
	f.Fuzz(func(t *testing.T, a, b, address string, n int64, u uint64) {
		md := new(codecs.Metadata)
		md.SetOperation([]byte(a), []byte(b))
		md.Set("k", a)
		md.Set("x-request-id", b)
		e := &Entry{
			Facts: facts.Facts{
				Protocol: a, Route: b, Cluster: a, Host: address, Hosts: []string{address, a}, Flags: facts.Flags(u),
				Replied: u&1 == 0, Local: codecs.LocalError{Message: b}, ReceivedBytes: n, Code: int32(n), Attempts: int(n),
				Start: 1, Sent: 2, Answered: 3, End: 4,
			},
			Request: md, Response: md, RemoteAddress: address, DirectRemoteAddress: a, LocalAddress: b, ConnectionID: u, Details: a,
			TLS: &host.TLS{ServerName: a, URISANs: []string{b, a}, DNSSANs: []string{b}, Subject: a, Fingerprint: b, Version: a},
		}
		line := lines.append(nil, e)
		require.Equal(t, len(line)-1, slices.IndexFunc(line, control), "%q", line)
		for _, o := range objects {
			line := o.append(nil, e)
			require.True(t, json.Valid(line) && utf8.Valid(line) && bytes.Count(line, newline) == 1, "%q", line)
		}
	})
}
