package accesslog

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/facts"
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
