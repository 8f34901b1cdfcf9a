package filter_test

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

func init() {
	register := func(name string, t codecs.Traits, first byte) {
		codecs.Register(name, func(*anypb.Any, codecs.Limits) (codecs.Codec, error) {
			return modelToy{boundedToy{toy{t, first}}}, nil
		})
	}
	register("model.byid", codecs.Traits{Correlation: codecs.ByID, MaxID: 1<<31 - 1, ShareByDefault: true}, 'r')
	register("model.scarce", codecs.Traits{Correlation: codecs.ByID, MaxID: 1<<15 - 1, ShareByDefault: true}, 'r')
	register("model.hidden", codecs.Traits{Correlation: codecs.ByID, MaxID: 1<<31 - 1, HiddenOneway: true}, 'r')
	register("model.inorder", codecs.Traits{Correlation: codecs.InOrder, ShareByDefault: true}, 'r')
	register("model.exclusive", codecs.Traits{Correlation: codecs.Exclusive}, 'r')
	registerModelDBs()
}

// modelToy is a boundedToy whose servers can also leave with an answer ("leaving")
// or without having processed the request ("notprocessed"), and which knows
// requests by their keys: an answer of another one's is an error.
type modelToy struct{ boundedToy }

func (t modelToy) NewDecoder(codecs.Direction) codecs.Decoder { return t }

func (t modelToy) Sniff(b []byte) codecs.Guess {
	if i := bytes.IndexByte(b, ' '); i >= 0 {
		if _, ok := toyTypes[strings.TrimPrefix(string(b[:i]), "v")]; ok {
			return codecs.Yes
		}
		return codecs.No
	}
	if len(b) > 8 {
		return codecs.No
	}
	return codecs.Maybe
}

func (t modelToy) Decode(b []byte, m *codecs.Metadata) (int, error) {
	n, err := t.boundedToy.Decode(b, m)
	if err == nil && n <= len(b) {
		m.GoesAway = bytes.Contains(m.Raw, []byte("leaving"))
		m.NotProcessed = m.Type == codecs.Error && bytes.Contains(m.Raw, []byte("notprocessed"))
		f := strings.Fields(string(m.Raw))
		key := f[len(f)-1]
		key = key[strings.LastIndexByte(key, ';')+1:]
		m.Put([]byte("key"), []byte(key))
		m.ReplyInfo = append(m.ReplyInfo, key...)
	}
	return n, err
}

// DecodeAnswer implements codecs.AnswerDecoder: requests know their keys.
func (t modelToy) DecodeAnswer(b []byte, m, req *codecs.Metadata) (int, error) {
	n, err := t.Decode(b, m)
	if err == nil && n <= len(b) && m.Type == codecs.Response && req != nil && !bytes.Contains(m.Raw, req.ReplyInfo) {
		err = &codecs.ProtocolError{Protocol: "toy", Reason: "another one's answer"}
	}
	return n, err
}

// Timeout implements codecs.Deadliner: "in" and milliseconds, before what follows a ";".
func (t modelToy) Timeout(req *codecs.Metadata) time.Duration {
	f := strings.Fields(string(req.Raw))
	in, _, _ := strings.Cut(f[len(f)-1], ";")
	ms, _ := strconv.Atoi(strings.TrimPrefix(in, "in"))
	return time.Duration(ms) * time.Millisecond
}

// Encode implements codecs.Codec: not all can be encoded.
func (t modelToy) Encode(dst []byte, m *codecs.Metadata, mut *codecs.Mutation) ([]byte, error) {
	if bytes.Contains(m.Raw, []byte("bad;")) {
		return nil, errBad
	}
	return t.boundedToy.Encode(dst, m, mut)
}

func (modelToy) EncodeGoAway(dst []byte, _ uint8) ([]byte, error) {
	return append(dst, "away 0 - -\n"...), nil
}

// asked is a request of a client.
type asked struct {
	id             uint64
	key            string // in its frame, and in its answer's
	method         string
	oneway, stream bool
	answered       bool
	ended          bool // the stream

	client *modelClient
	index  int           // among those of its client
	at     time.Duration // when it was sent, on the clock of the model
	beat   bool          // a heartbeat or goodbye
	got    int           // how many servers' it has come to
	undone int           // of which so many have said that they have not executed it
	maybe  bool          // it may get no answer: it is quiet, or its answer silent
}

type modelClient struct {
	*filtertest.Client
	n       int
	cfg     *filtertest.Config
	asked   []*asked
	sent    bool   // something
	rest    []byte // of what has come
	half    bool   // it sends no more
	blocked bool
	partial bool // it has sent all but the last byte of a frame
	plain   bool // it speaks no protocol

	arrived map[*filtertest.Cluster]arrival
	holds   map[hold]holding
}

type modelServer struct {
	owed    []string // "type id method key" of what is to be answered
	streams []string // "id key" of those that it has opened
	fixed   bool     // its answers have no ids of the pipeline's
	seen    bool     // something
	blocked bool

	modelDB
}

// model is a host with clients and servers that do as they like, and what they are
// owed.
type model struct {
	*filtertest.Host
	t     *testing.T
	mod   *filter.Module
	rng   *rand.Rand
	trace []string

	log      string // the access log
	requests int64  // that configurations which are gone have counted

	codec           string
	ordered, hidden bool
	shared          bool
	same            bool // all requests of a client have one id
	db              bool // the codec has all that protocols without ids have
	policies        bool // routes have some
	calm            bool // not everything goes wrong: most further attempts succeed
	preface         bool // it wants to be greeted
	good            bool // from now on all do what they should

	ups     []*filtertest.Cluster
	plain   *filtertest.Cluster // of unrecognised bytes
	cfgs    []*filtertest.Config
	version int // of the configuration
	clients []*modelClient
	servers map[*filtertest.Server]*modelServer
	order   []*filtertest.Server // in which they came

	paused []filter.Resumer
	keys   map[string]*asked
	seen   map[string]bool // by filters
	ends   map[string]int

	now time.Duration // since the start, when the time that passes now has passed
}

func (w *model) Advance(d time.Duration) {
	w.now += d
	w.Host.Advance(d)
}

func (w *model) chance(n int) bool { return w.rng.IntN(n) == 0 }

func pickOf[T any](w *model, s ...T) T { return s[w.rng.IntN(len(s))] }

func (w *model) logf(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf(format, args...))
}

func (w *model) fail(format string, args ...any) {
	w.t.Helper()
	w.t.Log(strings.Join(w.trace, "\n"))
	w.t.Fatalf(format, args...)
}

func (w *model) config() string {
	mode := "EXCLUSIVE"
	if w.shared {
		mode = "SHARED"
	}
	return fmt.Sprintf(`{"stat_prefix": "m", "protocol": {"name": "toy", "codec": {"name": "model.%s"}, "connection_mode": "%s"}, "route_config": {"name": "r", "routes": [
	{"match": {"metadata": [{"name": "method", "exact_match": "nowhere"}]}, "route": {"cluster": "none"}},
	{"match": {"metadata": [{"name": "method", "exact_match": "unknown"}]}, "route": {"cluster": "unknown"}},
	{"match": {"metadata": [{"name": "method", "prefix_match": "mb"}]}, "route": {"cluster": "up1"%s}},
	{"match": {"metadata": [{"name": "method", "prefix_match": "mc"}]}, "route": {"cluster": "up0"%s}},
	{"match": {"metadata": [{"name": "method", "prefix_match": "mf"}]}, "route": {"cluster": "up0"%s}},
	{"match": {"metadata": [{"name": "method", "prefix_match": "m"}]}, "route": {"cluster": "up0"%s},
	 "request_mutation": [{"key": "q", "value": "%d"}], "response_mutation": [{"key": "a", "value": "%s"}]}],
	"clusters": [{"name": "*", "retry_budget": %s%s}]},
	"passthrough": {"cluster": "plain"}, "request_timeout": "1s", "idle_timeout": "60s",
	"upstream": {"max_pending_requests": 6, "max_pending_bytes": 2000, "max_requests": %d, "max_connections": 3, "max_exclusive_connections": 4, "max_connection_age": "3s", "target_in_flight": 2, "idle_timeout": "10s"},
	"limits": {"max_requests_in_flight": 5, "max_write_buffer_bytes": 3000, "max_unread_bytes": %d, "max_partial_bytes": 30, "partial_frame_timeout": "4s", "max_streams": 3, "stream_idle_timeout": "8s"},
	"meta_protocol_filters": [{"name": "test"}, {"name": "next"}, {"name": "aeraki.meta_protocol.filters.router"}],
	"access_log": [%s]}`,
		w.codec, mode, w.policy(true), w.policy(true), w.policy(true), w.policy(false), w.version, strings.Repeat("2", pickOf(w, 1, 1, 3000)),
		pickOf(w, `{}`, `{}`, `{"max_concurrent_retries": 2}`, `{"min_retries_per_second": 0}`), w.rules(), pickOf(w, 12, 100), pickOf(w, 20_000, 200_000),
		accessLog(w.log, "%MESSAGE_TYPE% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\n"))
}

// mostRetries of a request, and the hedge besides.
const mostRetries = 3

// policy makes one of a route whose methods may be executed twice, or may not.
func (w *model) policy(idempotent bool) string {
	if !w.policies || w.chance(4) {
		return ""
	}
	on, codes, hedge := "connect-failure,refused,overloaded", "", ""
	if idempotent {
		on += ",reset,timeout"
		if w.chance(2) {
			on += ",server-error"
		} else {
			on, codes = on+",retriable-status-codes", `, "retriable_status_codes": [3, 4]`
		}
		hedge = `, "idempotent": true` + pickOf(w, "", `, "hedge_policy": {"hedge_delay": "0.02s"}`,
			`, "hedge_policy": {"hedge_delay": "0.2s"}`, `, "hedge_policy": {"hedge_percentile": {"value": 50}}`)
	}
	retry := fmt.Sprintf(`, "retry_policy": {"retry_on": %q%s, "num_retries": %d%s, "retry_back_off": {"base_interval": %q}}`,
		on, codes, w.rng.IntN(mostRetries+1), pickOf(w, "", `, "per_try_timeout": "0.1s"`, `, "per_request_buffer_limit_bytes": 16`), pickOf(w, "0.001s", "0.05s"))
	return pickOf(w, "", "", `, "timeout": "0.3s"`, `, "timeout": "0.9s"`) + hedge + pickOf(w, "", retry, retry)
}

// rules makes what a cluster has besides.
func (w *model) rules() string {
	if !w.policies {
		return ""
	}
	return pickOf(w, "", `, "outlier_detection": {"consecutive_failures": 2, "base_ejection_time": "0.2s", "max_ejection_percent": 60}`) +
		pickOf(w, "", "", `, "circuit_breakers": {"max_requests": 20, "max_pending_requests": 3, "max_connections": 2}`,
			`, "circuit_breakers": {"keys": [{"names": ["method"], "max_requests": 4, "error_percent": 50, "minimum_requests": 3, "open_time": "0.1s"}]}`)
}

// may reports whether a request may be executed more than once.
func (a *asked) may() bool {
	return !a.oneway && !a.stream && !a.beat && slices.ContainsFunc([]string{"mb", "mc", "mf"}, func(p string) bool { return strings.HasPrefix(a.method, p) })
}

// executes notes that a server has got a request.
func (w *model) executes(l string, a *asked) {
	a.got++
	switch {
	case a.got > 1 && (w.ordered && w.codec != "exclusive" || a.oneway || a.stream || !w.policies || strings.HasPrefix(l, "again ")):
		w.fail("a server gets %q once more", l)
	case !a.may() && a.got-a.undone > 1:
		w.fail("a server gets %q, which has been executed", l)
	case a.got > 2+mostRetries:
		w.fail("a server gets %q for the %dth time", l, a.got)
	}
}

func key(md *codecs.Metadata) string {
	k, _ := md.Get("key")
	return string(k)
}

func (w *model) filters() {
	check := func(m *filter.Message) string {
		k := key(m.Request())
		if w.keys[k] == nil {
			w.fail("a filter sees the request %q, which nobody has sent", k)
		}
		if r := m.Response(); r != nil {
			if rk := key(r); !strings.HasSuffix(rk, k) {
				w.fail("a filter sees the answer %q to %q", rk, k)
			}
			if r.Raw != nil && !strings.Contains(string(r.Raw), k) {
				w.fail("the answer's frame is %q", r.Raw)
			}
		}
		return k
	}
	decide := func(m *filter.Message) filter.Verdict {
		k := check(m)
		w.seen[k] = true
		if w.good {
			return filter.Continue
		}
		switch w.rng.IntN(24) {
		case 0:
			w.logf("filter replies to %s", k)
			return m.Reply(codecs.Denied, "denied")
		case 1, 2, 3:
			w.logf("filter pauses %s", k)
			w.paused = append(w.paused, m.Resumer())
			return filter.Pause
		}
		return filter.Continue
	}
	current = &testFilter{onRequest: decide, onResponse: decide, onEnd: func(m *filter.Message) {
		k := check(m)
		if w.ends[k]++; w.ends[k] > 1 {
			w.fail("%s has ended twice", k)
		}
	}}
	next = &testFilter{onRequest: decide, onResponse: decide}
}

func (w *model) dial() {
	cfg := w.cfgs[len(w.cfgs)-1]
	if w.chance(8) {
		cfg = pickOf(w, w.cfgs...)
	}
	w.LimitBuffers(pickOf(w, 0, 0, 16, 30, 100))
	c := &modelClient{
		n: len(w.clients), cfg: cfg, Client: w.DialOn(cfg, pickOf(w, 0, 0, 0, 1)),
		arrived: map[*filtertest.Cluster]arrival{}, holds: map[hold]holding{},
	}
	c.plain = w.chance(6)
	w.clients = append(w.clients, c)
}

func (w *model) send(c *modelClient, s string) {
	w.logf("c%d sends %q", c.n, s)
	c.sent = true
	c.Send([]byte(s))
}

// id is that of the client's next request.
func (w *model) id(c *modelClient) uint64 {
	switch {
	case !w.same:
		return uint64(len(c.asked) + 1)
	case w.ordered || w.hidden || c.n%2 == 0:
		return 0
	}
	return 7
}

// asks notes a request of a client.
func (w *model) asks(c *modelClient, a *asked) {
	a.client, a.index, a.at = c, len(c.asked), w.now
	c.asked = append(c.asked, a)
	w.keys[a.key] = a
}

// line makes a message of a client.
func (w *model) line(c *modelClient) string {
	id := w.id(c)
	a := &asked{id: id, key: fmt.Sprintf("c%d.%d", c.n, len(c.asked)+1), method: pickOf(w, "ma", "ma", "ma", "mb", "mc", "md")}
	if w.policies && w.chance(2) {
		a.method = pickOf(w, "mb", "mc")
	}
	text := a.key
	typ := "req"
	switch w.rng.IntN(30) {
	case 0:
		a.method = "nowhere"
	case 1:
		a.method = "unknown"
	case 2:
		a.method = "lost"
	case 3, 4, 5:
		typ, a.oneway = "one", true
	case 6:
		text = pickOf(w, "malformed;", "bad;") + text
	case 7:
		if !w.db {
			text = "size=60;" + text + strings.Repeat("x", 200)
		}
	case 8:
		if w.ordered {
			a.beat = true
			w.asks(c, a)
		}
		return fmt.Sprintf("hb %d - %s\n", id, a.key)
	case 9:
		if !w.ordered && !w.hidden {
			a.method = "mfixed"
		}
	case 10:
		if w.hidden {
			a.method = "mcertain"
		}
	case 11:
		typ = "vreq"
	case 15:
		typ = "again"
	case 16, 17:
		if w.policies {
			text = pickOf(w, "in1;", "in50;", "in50;", "in-1;", "in500;") + text
		}
	case 12, 13, 14:
		if !w.same {
			typ, a.stream = "init", true
		}
	}
	if w.hidden && typ == "req" && w.chance(3) {
		a.method = pickOf(w, "mone", "mone", "mtwo")
	}
	if w.db && !a.stream {
		typ = w.dbLine(a, typ)
	}
	l := fmt.Sprintf("%s %d %s %s", typ, id, a.method, text)
	if strings.HasPrefix(text, "size=") {
		l = fmt.Sprintf("%-59.59s", l)
	}
	w.asks(c, a)
	return l + "\n"
}

func (w *model) clientStep() {
	c := pickOf(w, w.clients...)
	if c.Closed() {
		return
	}
	if c.plain {
		switch w.rng.IntN(12) {
		case 2, 3:
			w.blockClient(c)
		case 0:
			w.logf("c%d closes", c.n)
			c.Close()
		case 1:
			c.half = true
			w.logf("c%d half closes", c.n)
			c.CloseWrite()
		default:
			if !c.half {
				w.send(c, strings.Repeat("?", 9+w.rng.IntN(100)))
			}
		}
		return
	}
	if c.half {
		if w.chance(4) {
			w.logf("c%d closes", c.n)
			c.Close()
		}
		return
	}
	end := "\n"
	if c.partial {
		c.partial = false
		w.send(c, end)
		return
	}
	switch w.rng.IntN(24) {
	case 0:
		w.logf("c%d closes", c.n)
		c.Close()
	case 1:
		c.half = true
		w.logf("c%d half closes", c.n)
		c.CloseWrite()
	case 3:
		l := w.line(c)
		c.partial = true
		w.send(c, l[:len(l)-1])
	case 4, 5:
		w.blockClient(c)
	case 6:
		if c.sent && w.chance(4) {
			text := pickOf(w, "garbage\n", "bye\n", "bye behind", "far")
			if w.db && (text == "far" || w.chance(2)) {
				a := &asked{id: w.id(c), key: fmt.Sprintf("c%d.bye", c.n), beat: true}
				w.asks(c, a)
				text = fmt.Sprintf("bye %d - %s\n", a.id, a.key)
			}
			if text == "bye behind" {
				text = w.line(c) + "bye\n"
			}
			if text == "far" {
				a := &asked{id: w.id(c), method: "ma", key: fmt.Sprintf("c%d.far", c.n)}
				w.asks(c, a)
				text = fmt.Sprintf("req %d m size=2000;", a.id)
			}
			w.send(c, text)
			c.half = true
		}
	case 7, 8, 9, 10:
		var open []*asked
		for _, a := range c.asked {
			if a.stream && !a.ended {
				open = append(open, a)
			}
		}
		if len(open) > 0 {
			a := pickOf(w, open...)
			w.send(c, fmt.Sprintf("%s %d - %s\n", pickOf(w, "data", "data", "data", "half", "end"), a.id, pickOf(w, a.key, a.key, a.key, a.key, a.key, "malformed;"+a.key)))
		}
	case 11:
		var b strings.Builder
		for range 3 + w.rng.IntN(12) {
			b.WriteString(w.line(c))
		}
		w.send(c, b.String())
	default:
		var b strings.Builder
		for range 1 + w.rng.IntN(3) {
			b.WriteString(w.line(c))
		}
		w.send(c, b.String())
	}
}

func (w *model) blockClient(c *modelClient) {
	c.blocked = !c.blocked
	w.logf("c%d blocked %v", c.n, c.blocked)
	c.Block(c.blocked)
}

// serve takes what a server has got.
func (w *model) serve(s *filtertest.Server, b []byte) int {
	ms := w.servers[s]
	if ms == nil {
		ms = &modelServer{}
		w.servers[s], w.order = ms, append(w.order, s)
		ms.up = w.ups[slices.IndexFunc(w.ups, func(up *filtertest.Cluster) bool { return slices.Contains(up.Servers(), s) })]
	}
	if ms.blocked {
		return 0
	}
	n := 0
	for {
		i := bytes.IndexByte(b[n:], '\n')
		if i < 0 {
			return n
		}
		l := string(b[n : n+i])
		n += i + 1
		ms.seen = true
		f := strings.Fields(l)
		if len(f) < 4 {
			w.fail("a server gets %q", l)
		}
		if w.db && w.rite(s, f) {
			continue
		}
		k := f[3][strings.LastIndexByte(f[3], ';')+1:]
		if w.keys[k] == nil && f[0] != "hb" {
			w.fail("a server gets %q", l)
		}
		if a := w.keys[k]; w.ordered && w.codec != "exclusive" && a != nil && !a.stream {
			w.arrives(s, f, a)
		}
		if a := w.keys[k]; a != nil && f[0] != "data" && f[0] != "half" && f[0] != "end" && f[0] != "hb" {
			w.executes(l, a)
		}
		switch f[0] {
		case "quiet", "muted":
			if f[0] == "muted" || w.chance(2) {
				ms.owed = append(ms.owed, f[0]+" "+f[1]+" "+f[2]+" "+k)
				if w.good {
					w.answer(s, 0, "")
				}
			}
		case "req", "vreq", "init", "again":
			if w.hidden && (f[2] == "mone" || f[2] == "mtwo") {
				break
			}
			ms.fixed = ms.fixed || f[2] == "mfixed"
			ms.owed = append(ms.owed, f[0]+" "+f[1]+" "+f[2]+" "+k)
			if w.good {
				w.answer(s, 0, "")
			} else if w.calm && !w.chance(3) {
				w.answer(s, 0, pickOf(w, "", "", "nope ", "fail "))
			}
		case "hb":
		case "data", "half", "end":
			if w.chance(3) && !w.good {
				s.Send([]byte(l + "\n"))
			}
		}
	}
}

// answer gives the i-th answer that a server owes.
func (w *model) answer(s *filtertest.Server, i int, text string) {
	ms := w.servers[s]
	f := strings.Fields(ms.owed[i])
	ms.owed = slices.Delete(ms.owed, i, i+1)
	typ := "res"
	if f[0] == "init" {
		typ = "init"
		if w.chance(6) {
			typ = "res"
		} else {
			ms.streams = append(ms.streams, f[1]+" "+f[3])
		}
	}
	if kind, rest, ok := strings.Cut(text, " "); ok {
		typ, text = kind, rest
	}
	if typ == "nope" || typ == "busy" || text == "notprocessed;" {
		w.keys[f[3]].undone++
	}
	if text == "silent;" {
		w.keys[f[3]].maybe = true
	}
	send := func(b []byte) { // in pieces
		n := 0
		if w.chance(3) {
			n = w.rng.IntN(len(b))
			s.Send(b[:n])
		}
		s.Send(b[n:])
	}
	if text == "big" {
		send(fmt.Appendf(nil, "%-59.59s\n", fmt.Sprintf("%s %s %s size=60;%s", typ, f[1], f[2], f[3])))
		return
	}
	send(fmt.Appendf(nil, "%s %s %s %s%s\n", typ, f[1], f[2], text, f[3]))
}

func (w *model) serverStep() {
	var open []*filtertest.Server
	for _, up := range w.ups {
		open = append(open, up.Servers()...)
	}
	if plain := w.plain.Servers(); len(plain) > 0 && w.chance(6) {
		s := pickOf(w, plain...)
		switch w.rng.IntN(6) {
		case 0:
			s.Close()
		case 1:
			s.Reset()
		case 2:
			s.Send(bytes.Repeat([]byte("!"), 70_000))
		default:
			s.Block(w.chance(2))
		}
		w.Settle()
		return
	}
	if len(open) == 0 {
		return
	}
	s := pickOf(w, open...)
	ms := w.servers[s]
	if ms == nil || !ms.seen && w.chance(3) {
		return
	}
	say := func(what string) { w.logf("%s of %p %s", s.Host, s, what) }
	defer w.Settle()
	if ms.rites != "" && w.chance(3) {
		say("comes to " + ms.rites)
		w.endRite(s, !w.chance(3))
		return
	}
	if len(ms.owed) > 0 && (w.calm || !w.chance(3)) {
		i := 0
		if !w.ordered {
			i = w.rng.IntN(len(ms.owed))
		}
		if w.policies && w.chance(3) {
			kind := pickOf(w, "nope ", "busy ", "fail ", "err ")
			say("answers " + ms.owed[i] + " " + kind)
			w.answer(s, i, kind)
			return
		}
		text := pickOf(w, "", "", "", "", "", "", "", "bad;", "big", "leaving;", "err ", "err notprocessed;", "nope ", "busy ", "fail ")
		if w.db && (text == "big" || w.chance(8)) {
			text = ""
			if !strings.HasPrefix(ms.owed[i], "init") {
				text = "silent;"
			}
		}
		say("answers " + ms.owed[i] + " " + text)
		w.answer(s, i, text)
		return
	}
	switch w.rng.IntN(16) {
	case 0:
		say("closes")
		s.Close()
	case 1:
		say("resets")
		s.Reset()
	case 2:
		say("goes away")
		s.Send([]byte("away 0 - -\n"))
	case 3:
		say("sends garbage")
		s.Send([]byte(pickOf(w, "what\n", "req 5 m x\n", "hb 4 - beat\n", "hb 4 - beat\n", "xyz")))
	case 4:
		if !ms.fixed || len(ms.owed) == 0 && !ms.blocked {
			say("sends strays")
			s.Send(bytes.Repeat([]byte("res 987654321 ma stray\n"), pickOf(w, 1, 1, 3, 1200)))
		}
	case 5, 6, 7:
		ms.blocked = !ms.blocked
		say(fmt.Sprint("blocked ", ms.blocked))
		s.Block(ms.blocked)
	default:
		if w.db && !ms.blocked && w.chance(2) {
			say("pushes")
			s.Send([]byte("push 0 - " + ms.lastName() + "\n"))
		} else if len(ms.streams) > 0 {
			f := strings.Fields(pickOf(w, ms.streams...))
			typ := pickOf(w, "data", "data", "data", "data", "half", "end")
			say("sends " + typ)
			s.Send(bytes.Repeat([]byte(fmt.Sprintf("%s %s - %s\n", typ, f[0], f[1])), pickOf(w, 1, 1, 1, 5000)))
		}
	}
}

func (w *model) resume() {
	if len(w.paused) == 0 {
		return
	}
	i := w.rng.IntN(len(w.paused))
	r := w.paused[i]
	w.paused = slices.Delete(w.paused, i, i+1)
	w.logf("a message is resumed")
	switch w.rng.IntN(5) {
	case 0:
		r.Do(func(m *filter.Message) filter.Verdict { return m.Reply(codecs.Denied, "denied late") })
	case 1:
		r.Do(func(m *filter.Message) filter.Verdict { return m.Forward("up1") })
	case 2:
		r.Do(func(m *filter.Message) filter.Verdict {
			w.paused = append(w.paused, m.Resumer())
			return filter.Pause
		})
	default:
		r.Continue()
	}
	if w.chance(4) {
		r.Continue()
	}
	w.Settle()
}

func (w *model) worldStep() {
	up := pickOf(w, append(w.ups, w.plain)...)
	n := w.rng.IntN(10)
	if w.calm && n < 5 {
		n = 9
	}
	switch n {
	case 0:
		w.logf("hosts change")
		up.SetHosts(pickOf(w, []string{"h1"}, []string{"h1", "h2"}, []string{"h3", "h2"}, nil)...)
	case 1:
		w.logf("connects fail")
		up.Fail = func() (host.CloseReason, bool) {
			return pickOf(w, host.ConnectFailed, host.Overflow, host.Draining, host.NoHost), w.chance(2)
		}
	case 2, 3:
		up.Fail, up.Hang = nil, false
		up.SetHosts("h1", "h2")
		up.Admit()
	case 4:
		w.logf("connects hang")
		up.Hang = true
	case 6:
		cfg := w.cfgs[0]
		if len(w.cfgs) > 1 && !slices.ContainsFunc(w.clients, func(c *modelClient) bool { return c.cfg == cfg && !c.Closed() }) {
			w.logf("a configuration is destroyed")
			w.cfgs = w.cfgs[1:]
			w.retire(cfg)
		}
	case 5:
		if w.chance(3) {
			w.logf("a new configuration")
			w.version++
			w.filters()
			w.cfgs = append(w.cfgs, w.MustLoad(w.config()))
		}
	default:
		d := pickOf(w, 5*time.Millisecond, 50*time.Millisecond, 300*time.Millisecond, 1100*time.Millisecond, 5*time.Second)
		if w.policies && w.chance(2) {
			d = pickOf(w, 5*time.Millisecond, 25*time.Millisecond, 110*time.Millisecond) // what they wait for
		}
		w.logf("%v pass", d)
		w.Advance(d)
	}
}

// read checks what a client has got.
func (w *model) read(c *modelClient) {
	b := slices.Concat(c.rest, c.Take())
	c.rest = nil
	if c.plain {
		return
	}
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			c.rest = append([]byte(nil), b...)
			return
		}
		l := string(b[:i])
		b = b[i+1:]
		f := strings.SplitN(l, " ", 4)
		if len(f) < 4 {
			w.fail("c%d gets %q", c.n, l)
		}
		id, _ := strconv.ParseUint(f[1], 10, 64)
		k := f[3][strings.LastIndexByte(f[3], ';')+1:]
		switch f[0] {
		case "hb":
			if w.ordered {
				i := slices.IndexFunc(c.asked, func(a *asked) bool { return a.beat && !a.answered })
				if i < 0 || c.asked[i].id != id {
					w.fail("c%d gets %q", c.n, l)
				}
				c.asked[i].answered = true
				w.inTurn(c, i, l)
			}
			continue
		case "away":
			continue
		case "push":
			if k != fmt.Sprintf("c%d", c.n) {
				w.fail("c%d gets %q", c.n, l)
			}
			continue
		case "data", "half", "end":
			i := slices.IndexFunc(c.asked, func(a *asked) bool { return a.id == id && a.stream })
			if i < 0 || f[0] != "end" && c.asked[i].key != k {
				w.fail("c%d gets %q", c.n, l)
			}
			if f[0] == "end" {
				c.asked[i].ended = true
			}
			continue
		}
		i = slices.IndexFunc(c.asked, func(a *asked) bool {
			if a.id != id || a.answered || a.oneway || a.beat {
				return false
			}
			return f[0] == "err" && f[2] == "-" && !w.db || a.key == k
		})
		if i < 0 {
			w.fail("c%d gets %q, which answers nothing", c.n, l)
		}
		a := c.asked[i]
		a.answered = true
		if a.stream {
			a.ended = f[0] != "init"
		} else if w.ordered {
			w.inTurn(c, i, l)
		}
	}
}

// inTurn checks that the i-th request of c may be answered now, by l.
func (w *model) inTurn(c *modelClient, i int, l string) {
	for _, o := range c.asked[:i] {
		if o.maybe {
			o.answered = true
		}
		if !o.oneway && !o.stream && !o.answered {
			w.fail("c%d gets %q before the answer to %s", c.n, l, o.key)
		}
	}
}

func (w *model) check() {
	for _, c := range w.clients {
		w.read(c)
	}
	if wrong := w.mod.Books(); wrong != "" {
		w.fail("%s", wrong)
	}
	if w.Panics() > 0 || slices.ContainsFunc(w.Log(), func(l string) bool { return strings.Contains(l, "panic") }) {
		w.fail("a panic: %s", strings.Join(w.Log(), "\n"))
	}
}

func (w *model) step() {
	switch n := w.rng.IntN(20); {
	case n == 0 && len(w.clients) < 40:
		w.dial()
	case n < 9:
		w.clientStep()
	case n < 15:
		w.serverStep()
	case n < 17:
		w.resume()
	default:
		w.worldStep()
	}
	w.check()
}

// settle lets everything end that can, and checks that it does.
func (w *model) settle() {
	w.logf("peace")
	w.good = true
	for _, up := range append(w.ups, w.plain) {
		up.Fail, up.Hang = nil, false
		up.SetHosts("h1", "h2")
		up.Admit()
	}
	for _, c := range w.clients {
		if c.blocked {
			w.blockClient(c)
		}
	}
	for _, s := range w.plain.Servers() {
		s.Block(false)
	}
	for range 2 {
		for len(w.paused) > 0 {
			w.paused[0].Continue()
			w.paused = w.paused[1:]
			w.Settle()
		}
		for _, s := range w.order {
			if ms := w.servers[s]; ms.blocked {
				ms.blocked = false
				s.Block(false)
			}
		}
		w.Settle()
		w.Advance(2 * time.Second)
	}
	for _, c := range w.clients {
		if c.partial && !c.Closed() {
			c.Send([]byte("\n"))
		}
	}
	w.check()
	w.Advance(40 * time.Second)
	w.check()
	for _, c := range w.clients {
		w.read(c)
		if c.Closed() {
			continue
		}
		if c.ReadDisabled() {
			w.fail("c%d is not read any more", c.n)
		}
		if c.plain {
			if c.half && c.sent {
				w.fail("c%d has sent all and is not closed", c.n)
			}
			continue
		}
		for _, a := range c.asked {
			if a.oneway || a.maybe || w.hidden && (w.same || a.method != "mcertain") {
				continue
			}
			if !a.answered {
				w.fail("c%d got no answer to %s", c.n, a.key)
			}
		}
		if c.half {
			open := false
			for _, a := range c.asked {
				open = open || a.stream && !a.ended
			}
			if !open {
				w.fail("c%d has sent all and is not closed", c.n)
			}
			continue
		}
		a := &asked{id: 77777, method: "ma", key: fmt.Sprintf("c%d.last", c.n)}
		w.asks(c, a)
		w.send(c, fmt.Sprintf("req %d ma %s\n", a.id, a.key))
		w.Advance(3 * time.Second)
		if w.read(c); !a.answered && !c.Closed() {
			w.fail("c%d got no answer to its last request", c.n)
		}
	}
	for _, c := range w.clients {
		if !c.Closed() {
			c.Close()
		}
	}
	w.check()
	w.Advance(10 * time.Minute)
	w.check()
	if left := w.mod.Left(); left != "" {
		w.fail("%s", left)
	}
	for k := range w.seen {
		if w.ends[k] != 1 {
			w.fail("%s has ended %d times", k, w.ends[k])
		}
	}
	for _, cfg := range w.cfgs {
		w.retire(cfg)
	}
	w.mod.Wait()
	b, err := os.ReadFile(w.log)
	if err != nil {
		w.fail("%v", err)
	}
	logged := map[string]int64{}
	for _, l := range lines(b) {
		logged[outcomeOf(l)]++
	}
	if n := int64(bytes.Count(b, []byte("\n"))); n != w.requests || n == 0 {
		w.fail("%d requests are %d lines of the access log", w.requests, n)
	}
	w.telemetry(logged)
}

// outcomeOf is what telemetry calls the outcome of a line of the log.
func outcomeOf(line string) string {
	f := strings.Fields(line)
	switch code, flags := f[1], f[2]; {
	case flags != "-":
		return flags
	case code == "200":
		return "ok"
	case code == "0":
		return "none"
	default:
		return "error"
	}
}

// telemetry tells that all requests have been counted by what they call, each with the
// outcome that was logged.
func (w *model) telemetry(logged map[string]int64) {
	all, err := w.mod.Metrics().Gather()
	if err != nil {
		w.fail("%v", err)
	}
	for _, f := range all {
		n := int64(0)
		counted := map[string]int64{}
		for _, m := range f.GetMetric() {
			n += int64(m.GetCounter().GetValue() + m.GetGauge().GetValue())
			for _, l := range m.GetLabel() {
				if l.GetName() == "outcome" {
					counted[l.GetValue()] += int64(m.GetCounter().GetValue())
				}
			}
		}
		if f.GetName() == "meltemi_requests_total" && !maps.Equal(counted, logged) {
			w.fail("outcomes are counted as %v, and logged as %v", counted, logged)
		}
		want := w.requests
		switch f.GetName() {
		case "meltemi_requests_total", "meltemi_listener_request_total":
		case "meltemi_requests_in_flight", "meltemi_listener_request_active":
			want = 0
		default:
			continue
		}
		if n != want {
			w.fail("%s is %d, want %d", f.GetName(), n, want)
		}
	}
}

// retire destroys a configuration without connections.
func (w *model) retire(cfg *filtertest.Config) {
	for _, name := range []string{"request_active", "stream_active", "passthrough_active", "connection_panic", "filter_panic"} {
		if n := cfg.Counter("toy.m." + name); n != 0 {
			w.fail("%s is %d", name, n)
		}
	}
	cfg.Destroy()
	w.requests += cfg.Counter("toy.m.request")
}

func runModel(t *testing.T, seed uint64) {
	mod := filter.NewModule()
	mod.Seed(seed)
	mod.Observe()
	w := &model{
		Host: filtertest.NewWith(t, mod, 2), log: filepath.Join(t.TempDir(), "log"), t: t, mod: mod, rng: rand.New(rand.NewPCG(seed, 1)),
		servers: map[*filtertest.Server]*modelServer{}, keys: map[string]*asked{}, ends: map[string]int{}, seen: map[string]bool{},
	}
	w.codec = pickOf(w, "byid", "byid", "scarce", "hidden", "hidden", "inorder", "inorder", "exclusive", "db", "db", "db.preface", "db.reset", "db.all")
	w.db = strings.HasPrefix(w.codec, "db")
	w.preface = w.codec == "db.preface" || w.codec == "db.all"
	w.ordered = w.db || w.codec == "inorder" || w.codec == "exclusive"
	w.hidden = w.codec == "hidden"
	w.shared = w.codec != "exclusive" && !w.chance(3)
	w.same = w.ordered && w.chance(2) || w.chance(6)
	w.policies = !w.chance(4)
	w.calm = w.policies && w.chance(2)
	w.logf("codec %s shared %v same %v policies %v", w.codec, w.shared, w.same, w.policies)
	for i := range 2 {
		up := w.Cluster(fmt.Sprintf("up%d", i), "h1", "h2")
		up.Serve = w.serve
		w.ups = append(w.ups, up)
	}
	w.Cluster("none")
	w.plain = w.Cluster("plain", "p")
	w.plain.Serve = func(s *filtertest.Server, b []byte) int {
		if !w.chance(3) {
			s.Send(bytes.Repeat(b, pickOf(w, 1, 1, 1, 1000)))
		}
		if w.chance(10) {
			s.Close()
		}
		return len(b)
	}
	w.filters()
	w.cfgs = append(w.cfgs, w.MustLoad(w.config()))
	for range 4 {
		w.dial()
	}
	for range 400 {
		w.step()
	}
	w.settle()
}

var (
	modelFirst = flag.Uint64("model.first", 1, "the first seed of TestModel")
	modelSeeds = flag.Uint64("model.seeds", uint64(raced.Of(40)), "how many seeds TestModel tries")
)

// TestModel has clients, servers, filters and the configuration do at random what
// they may. Each request gets one answer or error, its own and in its turn, or its
// connection ends; what the pipeline counts is right after each step, and nothing
// is left in the end.
func TestModel(t *testing.T) {
	for seed := *modelFirst; seed < *modelFirst+*modelSeeds; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { runModel(t, seed) })
	}
}
