package dubbo

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

// changes are to requests with the attachments of TestKnownAttachmentsChangeAsReadOnes.
func changes() map[string]*codecs.Mutation {
	removing := func(mut *codecs.Mutation, keys ...string) *codecs.Mutation {
		for _, key := range keys {
			mut.Remove(key)
		}
		return mut
	}
	timed := func(mut *codecs.Mutation) *codecs.Mutation {
		mut.Timeout = 1234 * time.Millisecond
		return mut
	}
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprint("k", i), "v")
	}
	full, most := mutation(), removing(mutation(), "tenant")
	for i := range maxAttachments {
		full.Set(fmt.Sprint("k", i), "v")
		if i < maxAttachments-3 {
			most.Set(fmt.Sprint("k", i), "v")
		}
	}
	return map[string]*codecs.Mutation{
		"new":                      mutation("x-request-id", strings.Repeat("i", 36), "traceparent-", "new"),
		"as long as another":       mutation("tenans", "new"),
		"in another case":          mutation("Tenant", "new"),
		"in place":                 mutation("tenant", "new"),
		"in the place of a hole":   mutation("traceparent", "new"),
		"in the place of holes":    mutation("spanid", strings.Repeat("s", 50), "traceparent", ""),
		"before and behind holes":  mutation("last", "new", "tenant", "ü", "first", strings.Repeat("f", 2000)),
		"everything":               timed(mutation("first", "1", "traceparent", "2", "tenant", "3", "spanid", "4", "last", "5", "number", "6", "new", "7")),
		"a timeout":                timed(mutation()),
		"a timeout and an entry":   timed(mutation("timeout", "5", "_TO", "5")),
		"removed":                  removing(mutation(), "TENANT"),
		"removed, a hole":          removing(mutation(), "Traceparent"),
		"removed, what is not":     removing(mutation(), "tenans"),
		"removed, all":             removing(mutation(), "first", "traceparent", "tenant", "spanid", "last", "number", "timeout", "_to"),
		"removed and timed":        timed(removing(mutation(), "timeout", "_TO", "spanid")),
		"removed and set":          setting(removing(mutation(), "tenant", "spanid"), "tenant", "new"),
		"more than are remembered": mutation(many...),
		"too many":                 full,
		"as many as can be":        most, // behind three, as one is removed
		"the call's":               mutation("path", "other"),
	}
}

func setting(mut *codecs.Mutation, key, value string) *codecs.Mutation {
	mut.Set(key, value)
	return mut
}

// TestKnownAttachmentsChangeAsReadOnes: what is changed in a request of a known shape is
// what it is without shapes, to the byte, as is what the request says of its timeout.
func TestKnownAttachmentsChangeAsReadOnes(t *testing.T) {
	short := func(s string) string { return string(rune(len(s))) + s }
	trace := func(i int) string { return short(strings.Repeat(fmt.Sprint(i%7), i%7)) }
	long := func(i int) string {
		n := 32 + i%900
		return string([]byte{0x30 | byte(n>>8), byte(n)}) + strings.Repeat("l", n)
	}
	const first, rest = "H\x05first\x01f", "\x04path\x01i\x06tenant\x04acme"
	for _, tc := range []struct {
		name        string
		attachments func(i int) string
		holes       int
		read        bool // as they are not known
		timed       bool
	}{
		{"none", func(int) string { return "" }, 0, false, true},
		{"an empty map", func(int) string { return "HZ" }, 0, false, true},
		{"the same always", func(int) string { return first + rest + timeoutKey + "\x043000Z" }, 0, false, true},
		{"a key twice", func(int) string { return first + rest + "\x06tenant\x01b\x06TENANT\x01cZ" }, 0, false, true},
		{"values that are no strings", func(int) string {
			return first + rest + "\x06number\x91\x06tenantN" + leftKey + "\x80" + timeoutKey + "\xd4\x0b\xb8\x04last\x22byZ"
		}, 0, false, true},
		{"keys in chunks", func(int) string { return first + "R\x00\x03ten\x03ant\x01x" + "\x01\xc3\xbc\x01vZ" }, 0, false, true},
		{"no key", func(int) string { return first + "\x00\x01x" + rest + "Z" }, 0, false, true},
		{"holes", func(i int) string {
			return first + "\x0btraceparent" + trace(i+1) + rest + "\x06spanid" + long(i) + lowerKey + "\x99\x04last\x01lZ"
		}, 2, false, true},
		{"holes that are neighbours, and first and last", func(i int) string {
			return "H\x0btraceparent" + long(i) + "\x06spanid" + trace(i+2) + rest + "\x04last" + long(3*i) + "Z"
		}, 3, false, true},
		{"a timeout that differs", func(i int) string {
			return first + timeoutKey + short(fmt.Sprint(i*i+1)) + rest + "Z"
		}, 1, false, false},
		{"what is left that differs", func(i int) string {
			return first + lowerKey + short(fmt.Sprint(i*i+1)) + rest + leftKey + "\x99Z"
		}, 1, false, false},
		{"as many as are known", func(int) string { return "H" + strings.Repeat("\x06tenant\x01t", maxKnown) + "Z" }, 0, false, true},
		{"more", func(int) string { return "H" + strings.Repeat("\x06tenant\x01t", maxKnown) + timeoutKey + "\x0299Z" }, 0, true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCodec(t)
			tight, err := New(nil, codecs.Limits{MaxFrameBytes: 400})
			require.NoError(t, err)
			d := learner(t, new(codecs.Shapes))
			for i := range 20 {
				frame := dubbotest.Frame(0xc2-byte(i%2)<<6, 0, uint64(i), []byte(call+tc.attachments(i)))
				var want, got codecs.Metadata
				_, err := c.NewDecoder(codecs.ClientToServer).Decode(frame, &want)
				require.NoError(t, err)
				require.Empty(t, want.Malformed)
				_, err = d.Decode(frame, &got)
				require.NoError(t, err)
				if i > 10 { // it has been learnt, and found to have holes
					k := knownOf(&got)
					require.NotNil(t, k)
					require.Len(t, k.shape.Holes, tc.holes)
					require.Equal(t, tc.read, !k.placed)
					require.Equal(t, tc.timed, k.timed)
				}
				for range 2 {
					require.Equal(t, timeoutOf(t, &want), timeoutOf(t, &got))
					for name, mut := range changes() {
						for _, codec := range []codecs.Codec{c, tight} {
							x, errX := codec.Encode([]byte("before"), &want, mut)
							y, errY := codec.Encode([]byte("before"), &got, mut)
							require.Equal(t, fmt.Sprint(errX), fmt.Sprint(errY), name)
							require.Equal(t, string(x), string(y), name)
						}
					}
					got.Set("tenant", "of a filter") // which the frame does not have
					got.Detach()
					got.Raw = frame
				}
				got.Release()
				require.Nil(t, knownOf(&got))
			}
		})
	}
}

// TestKnownAttachmentsAreNotRead: a mutation of a request of a known shape, and a look at
// its timeout, take no memory, whatever becomes of its properties.
func TestKnownAttachmentsAreNotRead(t *testing.T) {
	c, d := newCodec(t), learner(t, new(codecs.Shapes))
	frame := typicalRequest()
	var m codecs.Metadata
	mut := mutation("x-request-id", "1", "tenant", "other")
	var out []byte
	mutated := func() {
		m.Reset()
		_, _ = d.Decode(frame, &m)
		m.Set("tenant", "other")
		c.(codecs.Deadliner).Timeout(&m)
		out, _ = c.Encode(out[:0], &m, mut)
	}
	mutated()
	mutated()
	require.NotNil(t, knownOf(&m))
	require.Nil(t, m.Shape())
	require.Zero(t, raced.AllocsPerRun(t, 100, mutated))
}
