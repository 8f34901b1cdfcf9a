package memcached

import (
	"fmt"
	"strings"
	"testing"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/codectest"
)

const (
	c2s = codecs.ClientToServer
	s2c = codecs.ServerToClient
)

func suite() codectest.Suite {
	s := codectest.Suite{
		New:         func(l codecs.Limits) (codecs.Codec, error) { return New(nil, l) },
		Captures:    []string{"testdata/captures/*.bin"},
		Golden:      "testdata/captures.golden",
		NoErrorText: true, // what is malformed is answered in memcached's own words
	}
	request := func(b string) {
		s.Frames = append(s.Frames, codectest.Frame{Name: name(b), Direction: c2s, Bytes: []byte(b)})
	}
	for _, b := range []string{
		"get a\r\n", "  get  user:1 user:2  \n", "gets a\r\n", "gat 10 a b\r\n", "gats -1 user:1\r\n", "gat 10\r\n",
		"set user:1 0 0 5\r\nhello\r\n", "set a 4294967295 -1 0\r\n\r\n", "cas a 1 2 3 18446744073709551615\r\nabc\r\n", "append a 0 0 2 junk\r\n\r\n\r\n",
		"set user:1 0 0 2 noreply\r\nhi\r\n", "cas a 0 0 1 7 noreply\r\nx\r\n", "delete a\r\n", "delete a 0 noreply\r\n", "delete a noreply\r\n",
		"incr a 1\r\n", "decr a 1 noreply\r\n", "touch a 10\r\n", "stats\r\n", "stats items\r\n", "version\r\n", "verbosity 1\r\n",
		"flush_all\r\n", "flush_all 0 noreply\r\n", "quit\r\n", "mn\r\n",
		"mg user:1 v k Oabc\r\n", "mg dXNlcjox b v\r\n", "mg a v q\r\n", "mg a qqq O1\r\n", "ms a 2 T0\r\nhi\r\n", "ms a 2 q k\r\nhi\r\n",
		"md a q\r\n", "ma a N0 J5 q v\r\n", "me a\r\n", "me dXNlcjox b\r\n",
		"set " + strings.Repeat("k", maxKey) + " 0 0 3000\r\n" + strings.Repeat("x", 3000) + "\r\n",
		"get" + strings.Repeat(" k", maxLine) + "\r\n",
	} {
		request(b)
	}
	for requests, answers := range answered {
		for _, b := range answers {
			s.Frames = append(s.Frames, codectest.Frame{Name: name(requests + " " + b), Direction: s2c, Bytes: []byte(b), Requests: []byte(requests)})
		}
	}
	for requests, answers := range notAnswered {
		for _, b := range answers {
			s.Invalid = append(s.Invalid, codectest.Invalid{Name: name(requests + " " + b), Direction: s2c, Bytes: []byte(b), Requests: []byte(requests)})
		}
	}
	for _, b := range noFrames {
		s.Invalid = append(s.Invalid, codectest.Invalid{Name: name(b), Direction: c2s, Bytes: []byte(b)})
	}
	for b := range refused {
		s.Malformed = append(s.Malformed, codectest.Frame{Name: name(b), Direction: c2s, Bytes: []byte(b)})
	}
	const large = 1 << 20
	s.Hostile = []codectest.Frame{
		{Name: "keys", Direction: c2s, Bytes: []byte("get" + strings.Repeat(" k", large/2-10) + "\r\n")},
		{Name: "spaces", Direction: c2s, Bytes: []byte("get" + strings.Repeat(" ", large-10) + "\r\n")},
		{Name: "delimiters", Direction: c2s, Bytes: []byte("get" + strings.Repeat(" "+strings.Repeat(":", maxKey), large/260) + "\r\n")},
		{Name: "data", Direction: c2s, Bytes: []byte("set k 0 0 1048576\r\n" + strings.Repeat("\r\n", large/2) + "\r\n")},
		{
			Name: "values", Direction: s2c, Requests: []byte("get" + strings.Repeat(" k", 2000) + "\r\n"),
			Bytes: []byte(strings.Repeat("VALUE k 0 100\r\n"+strings.Repeat("x", 100)+"\r\n", 2000) + "END\r\n"),
		},
		{Name: "statistics", Direction: s2c, Requests: []byte("stats\r\n"), Bytes: []byte(strings.Repeat("STAT\r\n", large/6) + "END\r\n")},
	}
	return s
}

// name is what the kit calls them: each its own.
func name(b string) string {
	if len(b) < 80 {
		return b
	}
	return fmt.Sprintf("%s… of %d bytes, ending in %q", b[:40], len(b), b[len(b)-8:])
}

// answered are answers of servers.
var answered = map[string][]string{
	"get a\r\n":              {"END\r\n", "VALUE a 0 2\r\nhi\r\nEND\r\n", "ERROR\r\n", "CLIENT_ERROR bad\r\n", "SERVER_ERROR out of memory\r\n", "VALUE a 1 5\r\nEND\r\n\r\nEND\r\n"},
	"get a b c\r\n":          {"END\r\n", "VALUE b 0 0\r\n\r\nEND\r\n", "VALUE a 0 0\r\n\r\nVALUE c 0 1\r\nx\r\nEND\r\n"},
	"get a a\r\n":            {"VALUE a 0 0\r\n\r\nVALUE a 0 0\r\n\r\nEND\r\n"},
	"gets a\r\n":             {"VALUE a 0 2 17\r\nhi\r\nEND\r\n"},
	"gats 0 a\r\n":           {"VALUE a 0 2 17\r\nhi\r\nEND\r\n", "CLIENT_ERROR invalid exptime argument\r\n"},
	"set a 0 0 1\r\nx\r\n":   {"STORED\r\n", "NOT_STORED\r\n", "SERVER_ERROR object too large for cache\r\n"},
	"cas a 0 0 1 1\r\nx\r\n": {"EXISTS\r\n", "NOT_FOUND\r\n"},
	"delete a\r\n":           {"DELETED\r\n", "NOT_FOUND\r\n"},
	"touch a 0\r\n":          {"TOUCHED\r\n", "NOT_FOUND\r\n"},
	"incr a 1\r\n":           {"18446744073709551615\r\n", "NOT_FOUND\r\n", "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"},
	"stats\r\n":              {"STAT pid 1\r\nSTAT uptime 2\r\nEND\r\n", "RESET\r\n", "OK\r\n", "END\r\n", "ITEM k [1 b; 0 s]\r\nEND\r\n", "PREFIX a get 1 hit 0 set 0 del 0\r\nEND\r\n", "ERROR\r\n"},
	"version\r\n":            {"VERSION 1.6.18\r\n"},
	"flush_all\r\n":          {"OK\r\n"},
	"mn\r\n":                 {"MN\r\n"},
	"mg a\r\n":               {"HD\r\n", "EN\r\n", "HD W\r\n", "CLIENT_ERROR invalid flag\r\n"},
	"mg a v k Oabc\r\n":      {"VA 2 ka Oabc\r\nhi\r\n", "EN\r\n", "EN Oabc ka\r\n", "HD Oabc ka W\r\n", "VA 2 kYQ== b Oabc\r\nhi\r\n"},
	"mg YQ== b k\r\n":        {"HD kYQ== b\r\n", "HD ka\r\n", "EN kYQ== b\r\n"},
	"mg a v q\r\n":           {"EN\r\n", "VA 0\r\n\r\n", "HD\r\n", "SERVER_ERROR x\r\n"},
	"ms a 1 q\r\nx\r\n":      {"HD\r\n", "NS\r\n", "EX\r\n", "NF\r\n"},
	"md a q O1\r\n":          {"HD O1\r\n", "NF O1\r\n", "EX O1\r\n"},
	"ma a v q\r\n":           {"VA 1\r\n6\r\n", "HD\r\n", "NF\r\n", "NS\r\n", "EX\r\n"},
	"me a\r\n":               {"ME a exp=-1 la=0 cas=5 fetch=yes cls=1 size=61\r\n", "ME YQ== exp=-1\r\n", "EN\r\n"},
}

// notAnswered are no answers to those requests.
var notAnswered = map[string][]string{
	"":                     {"END\r\n", "STORED\r\n", "ERROR Too many open connections\r\n"},
	"get a b\r\n":          {"STORED\r\n", "VALUE c 0 1\r\nx\r\nEND\r\n", "VALUE b 0 1\r\nx\r\nVALUE a 0 1\r\nx\r\nEND\r\n", "VALUE a 0 1 7\r\nx\r\nEND\r\n", "VALUE a 0 1\r\nxEND\r\n\r\n", "VALUE a 0 -1\r\n\r\nEND\r\n", "VALUE a 0 99999999999\r\n", "VALUE a 0 20000000\r\n", "VALUE a\r\n", "VALUE a 0 1\r\nx\r\nERROR\r\n", "END\n", "\r\n", strings.Repeat("x", maxLine)},
	"gets a\r\n":           {"VALUE a 0 1\r\nx\r\nEND\r\n"},
	"set a 0 0 1\r\nx\r\n": {"DELETED\r\n", "END\r\n", "HD\r\n", "5\r\n"},
	"delete a\r\n":         {"STORED\r\n"},
	"incr a 1\r\n":         {"5 6\r\n", "-5\r\n", "x\r\n"},
	"stats\r\n":            {"STAT a\r\nOK\r\n", "STAT a\r\nERROR\r\n", "VALUE a 0 0\r\n\r\nEND\r\n"},
	"mg a k Oabc\r\n":      {"HD ka Oabd\r\n", "HD kb Oabc\r\n", "HD ka\r\n", "HD kYg== b Oabc\r\n", "MN\r\n", "NS\r\n"},
	"mg a v\r\n":           {"HD Oabc\r\n", "VA x\r\n", "VA 1\r\nxyz\r\n", "EN kb\r\n"},
	"me a\r\n":             {"ME b exp=-1\r\n", "HD\r\n"},
	"ms a 1\r\nx\r\n":      {"VA 1\r\nx\r\n", "EN\r\n"},
	"version\r\n":          {"OK\r\n"},
}

// noFrames end a client's connection.
var noFrames = []string{
	"\x80\x00\x00\x00", "GET / HTTP/1.1\r\n", "get a\x00b\r\n", strings.Repeat("x", maxLine),
	"set a 0 0 +5\r\nhello\r\n", "set a 0 0 4294967301\r\nhello\r\n", "set a 0 0 5\t\r\nhello\r\n", "set a 4294967296 0 5\r\nhello\r\n",
	"set a 0 2147483648 5\r\nhello\r\n", "set a 0 0 -0\r\n\r\n", "cas a 0 0 1 18446744073709551616\r\nx\r\n", "ms a +1\r\nx\r\n",
}

// refused requests are answered by the codec, as memcached does: the test of it in
// e2e has them all answered by a real one too.
var refused = map[string]string{
	"\r\n": "ERROR", "\n": "ERROR", "x\r\n": "ERROR", "shutdown\r\n": "ERROR", "GET a\r\n": "ERROR", "get\r\n": "ERROR", "mg\r\n": "ERROR",
	"set a 0 0\r\n": "ERROR", "set a 0 0 1 2 noreply\r\n": "ERROR", "incr a\r\n": "ERROR", "touch a\r\n": "ERROR", "verbosity\r\n": "ERROR",
	"flush_all 1 2 3\r\n": "ERROR", "cas a 0 0 1\r\n": "ERROR",
	"get " + strings.Repeat("k", 251) + "\r\n":       "CLIENT_ERROR bad command line format",
	"set " + strings.Repeat("k", 251) + " 0 0 1\r\n": "CLIENT_ERROR bad command line format",
	"delete " + strings.Repeat("k", 251) + "\r\n":    "CLIENT_ERROR bad command line format",
	"mg " + strings.Repeat("k", 251) + "\r\n":        "CLIENT_ERROR bad command line format",
	"set a x 0 1\r\n":                          "CLIENT_ERROR bad command line format",
	"set a -1 0 1\r\n":                         "CLIENT_ERROR bad command line format",
	"set a 0 0 5x\r\n":                         "CLIENT_ERROR bad command line format",
	"set a 0 0 -1\r\n":                         "CLIENT_ERROR bad command line format",
	"set a 0 0 2147483647\r\n":                 "CLIENT_ERROR bad command line format",
	"cas a 0 0 1 x\r\n":                        "CLIENT_ERROR bad command line format",
	"set a x 0 1 noreply\r\n":                  "CLIENT_ERROR bad command line format",
	"incr a noreply\r\n":                       "CLIENT_ERROR bad command line format",
	"verbosity noreply\r\n":                    "CLIENT_ERROR bad command line format",
	"ms a\r\n":                                 "CLIENT_ERROR bad command line format",
	"ms a S1\r\n":                              "CLIENT_ERROR bad command line format",
	"me\r\n":                                   "CLIENT_ERROR bad command line format",
	"me Q b\r\n":                               "CLIENT_ERROR bad command line format",
	"set a 0 0 1\r\nxyz":                       "CLIENT_ERROR bad data chunk",
	"set a 0 0 1 noreply\r\nxyz":               "CLIENT_ERROR bad data chunk",
	"ms a 1 q\r\nxyz":                          "CLIENT_ERROR bad data chunk",
	"delete a 1\r\n":                           "CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]",
	"delete a 1 noreply\r\n":                   "CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]",
	"mg a q q\r\n":                             "CLIENT_ERROR duplicate flag",
	"ms a 1 k k\r\nx\r\n":                      "CLIENT_ERROR duplicate flag",
	"md a k k\r\n":                             "CLIENT_ERROR invalid or duplicate flag",
	"mg Q b\r\n":                               "CLIENT_ERROR error decoding key",
	"ms Q 1 b\r\nx\r\n":                        "CLIENT_ERROR error decoding key",
	"ma Q b\r\n":                               "CLIENT_ERROR invalid or duplicate flag",
	"mg a" + strings.Repeat(" v", 18) + "\r\n": "CLIENT_ERROR options flags are too long",
	"ms a 1" + strings.Repeat(" v", 17) + "\r\n": "CLIENT_ERROR options flags too long",
	"get user:1 session:1\r\n":                   "CLIENT_ERROR the keys of one command must have one prefix",
	"gat 10 user:1 a\r\n":                        "CLIENT_ERROR the keys of one command must have one prefix",
}

func TestConformance(t *testing.T) { codectest.Run(t, suite()) }

func FuzzDecode(f *testing.F) { codectest.FuzzDecode(f, suite()) }

func FuzzEncode(f *testing.F) { codectest.FuzzEncode(f, suite()) }
