package thrift

import (
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
)

func timeoutOf(t testing.TB, m *codecs.Metadata) time.Duration {
	t.Helper()
	return newCodec(t).(codecs.Deadliner).Timeout(m)
}

func decodeCall(t testing.TB, b string) *codecs.Metadata {
	t.Helper()
	m := new(codecs.Metadata)
	n, err := newCodec(t).NewDecoder(c2s).Decode([]byte(b), m)
	require.NoError(t, err)
	require.Equal(t, len(b), n)
	return m
}

// numbers16 is a part with numbered headers.
func numbers16(kv ...string) string {
	s := "\x10" + string([]byte{0, byte(len(kv) / 2)})
	for i := 0; i < len(kv); i += 2 {
		n, _ := strconv.Atoi(kv[i])
		s += string([]byte{0, byte(n), 0, byte(len(kv[i+1]))}) + kv[i+1]
	}
	return s
}

// headersOf are the headers of a TTHeader, as a reader sees them that is not ours.
func headersOf(t testing.TB, frame []byte) (numbers map[int][]string, names map[string][]string) {
	t.Helper()
	numbers, names = map[int][]string{}, map[string][]string{}
	u16 := func(b []byte) int { return int(b[0])<<8 | int(b[1]) }
	b := frame[16 : 14+4*u16(frame[12:])]
	text := func() string {
		n := u16(b)
		s := string(b[2 : 2+n])
		b = b[2+n:]
		return s
	}
	for len(b) > 0 {
		part := b[0]
		if b = b[1:]; part == 0 {
			continue
		}
		n := u16(b)
		for b = b[2:]; n > 0; n-- {
			if part == 1 {
				name := text()
				names[name] = append(names[name], text())
				continue
			}
			require.EqualValues(t, 0x10, part)
			number := u16(b)
			b = b[2:]
			numbers[number] = append(numbers[number], text())
		}
	}
	return numbers, names
}

func TestTimeouts(t *testing.T) {
	for _, tc := range []struct {
		name, parts string
		want        time.Duration
		written     []string
	}{
		{"none", "", 0, []string{"1234"}},
		{"Kitex's", numbers16("12", "1000"), time.Second, []string{"1234"}},
		{"among others", numbers16("2", "log", "12", "7", "9", "m"), 7 * time.Millisecond, []string{"1234"}},
		{"of two the later", numbers16("12", "1", "12", "2"), 2 * time.Millisecond, []string{"1234", "1234"}},
		{"of two parts the later", numbers16("12", "1") + numbers16("12", "2"), 2 * time.Millisecond, []string{"1234", "1234"}},
		{"of two the later, which is none", numbers16("12", "1", "12", "x"), 0, []string{"1234", "1234"}},
		{"behind names", strings16("a", "b") + numbers16("12", "5"), 5 * time.Millisecond, []string{"1234"}},
		{"a name is no number", strings16("rpc-timeout", "5"), 0, []string{"1234"}},
		{"0", numbers16("12", "0"), 0, []string{"1234"}},
		{"less than nothing", numbers16("12", "-5"), 0, []string{"1234"}},
		{"no number", numbers16("12", "5ms"), 0, []string{"1234"}},
		{"empty", numbers16("12", ""), 0, []string{"1234"}},
		{"the largest", numbers16("12", "2147483647"), math.MaxInt32 * time.Millisecond, []string{"1234"}},
		{"too much", numbers16("12", "2147483648"), 0, []string{"1234"}},
		{"far too much", numbers16("12", strings.Repeat("9", 99)), 0, []string{"1234"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, message := range []string{
				call(typeCall, "hello", 5, "\x00"), inFrame(call(typeOneway, "hello", 5, "\x00")), callCompact(typeCall, "hello", 5, "\x00"),
			} {
				protocol := "\x00"
				if message[0] == compactID {
					protocol = "\x02"
				}
				m := decodeCall(t, inHeader(kitexHeader, 5, protocol+"\x00"+tc.parts, message))
				require.Empty(t, m.Malformed)
				require.Equal(t, tc.want, timeoutOf(t, m))
				before, names := headersOf(t, m.Raw)
				m.ID = 1 << 30
				out, err := newCodec(t).Encode(nil, m, &codecs.Mutation{Timeout: 1234567 * time.Microsecond})
				require.NoError(t, err)
				numbers, after := headersOf(t, out)
				require.Equal(t, tc.written, numbers[12])
				require.Equal(t, names, after)
				delete(before, 12)
				delete(numbers, 12)
				require.Equal(t, before, numbers)
				got := decodeCall(t, string(out))
				require.Equal(t, 1234*time.Millisecond, timeoutOf(t, got))
				require.EqualValues(t, 1<<30, got.ID)
				require.Equal(t, "hello", string(got.Method()))
				require.False(t, got.Retried)
			}
		})
	}
}

func TestTheMarkOfARetry(t *testing.T) {
	hello := call(typeCall, "hello", 5, "\x00")
	for _, tc := range []struct {
		name, parts string
		retried     bool
	}{
		{"none", "", false},
		{"a first retry", strings16(keyRetried, "1"), true},
		{"among others", strings16("a", "b", keyRetried, "2", "c", "d"), true},
		{"empty is none", strings16(keyRetried, ""), false},
		{"another case is another key", strings16("rpc_persist_retryreq", "1"), false},
		{"what is not passed on", strings16("RPC_TRANSIT_RetryReq", "1"), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := decodeCall(t, inHeader(kitexHeader, 5, "\x00\x00"+tc.parts, hello))
			require.Equal(t, tc.retried, m.Retried)
			mut := &codecs.Mutation{Timeout: time.Second, Retry: 2}
			mut.Set("a", "new")
			for range 2 {
				out, err := newCodec(t).Encode(nil, m, mut)
				require.NoError(t, err)
				require.True(t, decodeCall(t, string(out)).Retried)
				numbers, names := headersOf(t, out)
				require.Equal(t, []string{"1000"}, numbers[12])
				require.Equal(t, []string{"2"}, names[keyRetried])
				if tc.name == "among others" {
					require.Equal(t, []string{"d"}, names["c"])
				}
				mut = &codecs.Mutation{Timeout: time.Second, Retry: 2}
			}
		})
	}
	answer := decodeAnswer(t, inHeader(kitexHeader, 5, "\x00\x00"+strings16(keyRetried, "1"), call(typeReply, "hello", 5, "\x00")))
	require.False(t, answer.Retried)
	apache := "\x00\x00\x01\x01\x14" + keyRetried + "\x011"
	require.False(t, decodeCall(t, inHeader(theader, 5, apache, hello)).Retried)
}

// TestWithoutMarks: what has no place for them goes out as it is, and no error says so.
func TestWithoutMarks(t *testing.T) {
	forms := everyForm("hello", 77)
	forms["unknown parts"] = inHeader(kitexHeader, 77, "\x00\x00"+numbers16("12", "5")+"\x77", call(typeCall, "hello", 77, "\x00"))
	full := numbers16()
	for range maxHeaders {
		full += strings16("k", "v")
	}
	forms["too many headers"] = inHeader(kitexHeader, 77, "\x00\x00"+full, call(typeCall, "hello", 77, "\x00"))
	for name, b := range forms {
		if strings.HasPrefix(name, "ttheader") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			m := decodeCall(t, b)
			require.Zero(t, timeoutOf(t, m))
			out, err := newCodec(t).Encode(nil, m, &codecs.Mutation{Timeout: time.Second, Retry: 1})
			require.NoError(t, err)
			require.Equal(t, b, string(out))
		})
	}
	answer := inHeader(kitexHeader, 5, "\x00\x00"+strings16("crrst", "1"), call(typeReply, "hello", 5, "\x00"))
	out, err := newCodec(t).Encode(nil, decodeAnswer(t, answer), &codecs.Mutation{Timeout: time.Second, Retry: 1})
	require.NoError(t, err)
	numbers, names := headersOf(t, out)
	require.Empty(t, numbers)
	require.Empty(t, names)
}

// TestTimeoutsOfKitexClients: every call of theirs takes one.
func TestTimeoutsOfKitexClients(t *testing.T) {
	files, err := filepath.Glob("testdata/captures/*tth*.c2s.bin")
	require.NoError(t, err)
	calls := 0
	for _, file := range files {
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		dec := newCodec(t).NewDecoder(c2s)
		for len(b) > 0 {
			var m codecs.Metadata
			n, err := dec.Decode(b, &m)
			require.NoError(t, err)
			b = b[n:]
			require.False(t, m.Retried)
			said, names := headersOf(t, m.Raw)
			out, err := newCodec(t).Encode(nil, &m, &codecs.Mutation{Timeout: 90 * time.Millisecond, Retry: 1})
			require.NoError(t, err)
			got, after := headersOf(t, out)
			said[12], names[keyRetried] = []string{"90"}, []string{"1"}
			require.Equal(t, said, got)
			require.Equal(t, names, after)
			calls++
		}
	}
	require.Positive(t, calls)
}

// TestFailures: of the types of exceptions, those after which another attempt may help,
// in whatever order an exception's fields are, and with others among them.
func TestFailures(t *testing.T) {
	want := map[int32]codecs.FailureClass{
		6: codecs.HostFailure, 11: codecs.Overloaded, 12: codecs.HostFailure, 16: codecs.Overloaded,
	}
	for kind := range int32(30) {
		k := string([]byte{0, 0, 0, byte(kind)})
		for _, body := range []string{
			"\x0b\x00\x01\x00\x00\x00\x02no\x08\x00\x02" + k + "\x00",
			"\x08\x00\x02" + k + "\x0b\x00\x01\x00\x00\x00\x02no\x00",
			"\x08\x00\x02" + k + "\x00",
			"\x08\x00\x03\x00\x00\x00\x63\x0b\x00\x04\x00\x00\x00\x00\x08\x00\x02" + k + "\x00",
			"\x08\x00\x02" + k + "\x02\x00\x05\x01\x00",
		} {
			for _, b := range []string{
				inFrame(call(typeException, "x", 1, body)), call(typeException, "x", 1, body), inFrame(callLax(typeException, "x", 1, body)),
				inHeader(theader, 1, "\x00\x01\x01", deflated(call(typeException, "x", 1, body))),
				inHeader(kitexHeader, 1, "\x00\x00", call(typeException, "x", 1, body)),
			} {
				m := decodeAnswer(t, b)
				require.Equal(t, codecs.Error, m.Type)
				require.Equal(t, kind, m.Code)
				require.Equal(t, want[kind], m.Failure, kind)
			}
		}
		z := string([]byte{byte(kind) << 1})
		for _, body := range []string{
			"\x18\x02no\x15" + z + "\x00", "\x05\x04" + z + "\x08\x02\x02no\x00", "\x25" + z + "\x00", "\x35\x08\x05\x04" + z + "\x00", "\x25" + z + "\x11\x00",
		} {
			m := decodeAnswer(t, inFrame(callCompact(typeException, "x", 1, body)))
			require.Equal(t, kind, m.Code, "% x", body)
			require.Equal(t, want[kind], m.Failure)
		}
	}
	// What cannot be read is of an unknown type, and no server's fault.
	for _, body := range []string{
		"", "\x00", "\x08", "\x08\x00\x02\x00", "\x0b\x00\x01\x7f\xff\xff\xff\x00", "\x0b\x00\x01\xff\xff\xff\xff\x00", "\x0c\x00\x01\x00\x08\x00\x02\x00\x00\x00\x06\x00",
	} {
		require.Zero(t, decodeAnswer(t, inFrame(call(typeException, "x", 1, body))).Code)
	}
	for _, body := range []string{"", "\x00", "\x05", "\x05\x04", "\x18\x7f\x00", "\x18\xff\xff\xff\xff\x0f\x00", "\x1c\x00\x15\x0c\x00", "\x05\xff\xff\xff\xff\xff\xff\x00"} {
		require.Zero(t, decodeAnswer(t, inFrame(callCompact(typeException, "x", 1, body))).Code)
	}
	require.EqualValues(t, -2, decodeAnswer(t, inFrame(callCompact(typeException, "x", 1, "\x25\x03\x00"))).Code)
	for _, b := range []string{call(typeReply, "x", 1, "\x08\x00\x01\x00\x00\x00\x06\x00"), call(typeReply, "x", 1, "\x00")} {
		m := decodeAnswer(t, b)
		require.Zero(t, m.Code)
		require.Equal(t, codecs.NoFailure, m.Failure)
	}
}
