package codectest

import (
	"bytes"
	"slices"

	"github.com/meltemi-mesh/meltemi/codecs"
)

// sniffBytes is how many bytes of a connection are shown to Sniff at most.
const sniffBytes = 64

// Foreign are the first bytes of connections of other protocols, which a codec
// must not take for its own. Suite.OwnForeign excuses a codec by Protocol.
var Foreign = []struct{ Protocol, Name, Bytes string }{
	{"http/1", "HTTP/1.1 GET", "GET /index.html HTTP/1.1\r\nHost: example.org\r\nAccept: */*\r\nUser-Agent: x\r\n\r\n"},
	{"http/1", "HTTP/1.1 POST", "POST /a.Service/method HTTP/1.1\r\nHost: example.org\r\nContent-Length: 0\r\n\r\n"},
	{"http/2", "HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64" +
		"\x00\x04\x40\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x04\x08\x00\x00\x00\x00\x00\x7f\xff\x00\x00"},
	{"tls", "TLS ClientHello", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x5d\x11\x8a\x3c\x90\x07\x41\xe2\x6b\x0f\x25\xd4\x99" +
		"\x1c\x3e\x57\x88\xa2\x6d\x0b\xf1\x34\x72\xc5\x19\xee\x80\x46\x2f\x93\xd8\x20\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff\x00\x11\x22\x33\x44\x55"},
	{"redis", "Redis command", "*3\r\n$3\r\nSET\r\n$5\r\nmykey\r\n$7\r\nmyvalue\r\n*2\r\n$3\r\nGET\r\n$5\r\nmykey\r\n*1\r\n$4\r\nPING\r\n"},
	{"ssh", "SSH banner", "SSH-2.0-OpenSSH_9.6 a comment behind the version of the software\r\n"},
	{"dubbo", "Dubbo request", "\xda\xbb\xc2\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x3c\x052.0.2\x13org.example.Greeter\x00\x08sayHello\x12Ljava/lang/String;\x05world"},
	{"thrift", "Thrift, framed, binary", "\x00\x00\x00\x3a\x80\x01\x00\x01\x00\x00\x00\x08sayHello\x00\x00\x00\x01\x0b\x00\x01\x00\x00\x00\x1cthe argument of the function\x00"},
	{"thrift", "Thrift, unframed, binary", "\x80\x01\x00\x01\x00\x00\x00\x08sayHello\x00\x00\x00\x01\x0b\x00\x01\x00\x00\x00\x20the argument of the function here\x00"},
	{"thrift", "Thrift, framed, compact", "\x00\x00\x00\x38\x82\x21\x01\x08sayHello\x18\x28the one and only argument of the function\x00"},
	{"brpc", "bRPC request", "PRPC\x00\x00\x00\x34\x00\x00\x00\x22\x0a\x1b\x0a\x13example.EchoService\x12\x04Echo\x10\x00\x18\x00\x20\x01\x0a\x10a text to echo.."},
	{"trpc", "tRPC request", "\x09\x30\x00\x00\x00\x00\x00\x50\x00\x3c\x00\x00\x00\x01\x00\x00\x18\x01\x28\xe8\x07\x32\x0ctest.client.\x3a\x13trpc.example.Greeter" +
		"\x42\x1a/trpc.example.Greeter/Hello\x0a\x08"},
}

// sniffing checks that the codec knows its own connections, and no others.
func (c *check) sniffing() {
	sniffer, ok := c.codec.(codecs.Sniffer)
	if !ok {
		c.skipped = "the codec is no Sniffer"
		return
	}
	c.each(sound, func(st *stream) {
		if st.dir == codecs.ServerToClient {
			return
		}
		w := where{name: st.name, doing: "its first bytes sniffed"}
		if g := c.sniff(w, sniffer, st.bytes); g != codecs.Yes && st.kind == captured {
			c.failf(w, st.bytes[:min(len(st.bytes), sniffBytes)], "they are not recognised: the answer is %s", guess(g))
		} else if g == codecs.No && st.opens() {
			c.failf(w, st.bytes[:min(len(st.bytes), sniffBytes)], "they are taken for those of another protocol")
		}
	})
	own := map[string]bool{}
	for _, f := range Foreign {
		own[f.Protocol] = false
	}
	for _, name := range c.s.OwnForeign {
		if _, known := own[name]; !known {
			c.errorf("Suite.OwnForeign: there is no foreign protocol %q", name)
		}
		own[name] = true
	}
	for _, f := range Foreign {
		w := where{name: f.Name, doing: "its first bytes sniffed"}
		b := []byte(f.Bytes)
		c.attempt(func() {
			if g := c.sniff(w, sniffer, b); g != codecs.No && !own[f.Protocol] {
				c.failf(w, b, "the bytes of another protocol are taken for the codec's own: the answer is %s (see Suite.OwnForeign)", guess(g))
			}
		})
	}
	c.sniffNoise(sniffer)
}

// opens reports whether a connection may begin with the stream: that is not so
// of the frames of streams, and unknown of what has a prelude.
func (st *stream) opens() bool {
	switch st.frames[0].meta.Type {
	case codecs.Request, codecs.Oneway, codecs.StreamInit:
		return true
	default:
		return false
	}
}

// sniff shows b to the sniffer, byte by byte, and returns the last answer.
func (c *check) sniff(w where, s codecs.Sniffer, b []byte) (g codecs.Guess) {
	b = b[:min(len(b), sniffBytes)]
	last := codecs.Maybe
	for i := range b {
		shown := c.mem.lend(b[:i+1])
		c.guard(w, b[:i+1], func() { g = s.Sniff(shown) })
		switch {
		case g > codecs.Yes:
			c.failf(w, b[:i+1], "there is no guess %d", g)
		case last != codecs.Maybe && g != last:
			c.failf(w, b[:i+1], "with %d bytes the answer is %s, with %d %s", i, guess(last), i+1, guess(g))
		case g == codecs.Maybe && i+1 == sniffBytes:
			c.failf(w, b, "the answer to %d bytes is still Maybe", sniffBytes)
		case !intact(shown, b[:i+1]):
			c.failf(w, b[:i+1], "Sniff writes to the bytes that it is lent")
		}
		last = g
	}
	return g
}

func guess(g codecs.Guess) string {
	return [...]string{"No", "Maybe", "Yes"}[g]
}

// sniffNoise shows it what resembles clients' first bytes.
func (c *check) sniffNoise(s codecs.Sniffer) {
	var starts [][]byte
	for _, st := range c.streams {
		if st.dir == codecs.ClientToServer {
			starts = append(starts, st.bytes)
		}
	}
	if len(starts) == 0 {
		return
	}
	r := lots(1)
	for range 2000 {
		b := append(slices.Clone(starts[r.IntN(len(starts))]), bytes.Repeat([]byte{0}, sniffBytes)...)[:sniffBytes]
		b[r.IntN(len(b))] = byte(r.UintN(256))
		b[r.IntN(16)] = byte(r.UintN(256))
		c.sniff(where{name: "noise"}, s, b)
	}
}
