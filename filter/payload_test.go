package filter_test

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// bodies is a listener of Dubbo with the probes a and b, and a server that notes what it
// is asked, and answers with what a test wants.
type bodies struct {
	*env
	a, b  *hooks
	asked []string // the arguments
	reply func(id uint64, argument string) []byte
}

// newBodies makes one whose routes are those of table.
func newBodies(t *testing.T, routes, more string) *bodies {
	t.Helper()
	h := filtertest.New(t)
	e := &bodies{env: &env{Host: h, t: t, v1: h.Cluster("v1", "h1", "h2"), v2: h.Cluster("v2", "h3")}, a: &hooks{}, b: &hooks{}}
	setProbe(t, "probe.a", built(func(*filter.Scope) filter.Filter { return e.a }))
	setProbe(t, "probe.b", built(func(*filter.Scope) filter.Filter { return e.b }))
	e.reply = func(id uint64, argument string) []byte { return dubbotest.Response(id, "hello "+argument) }
	serve := func(s *filtertest.Server, b []byte) int {
		frames, rest := dubbotest.Parse(b)
		for _, f := range frames {
			_, behind, _ := strings.Cut(string(f.Body), "Ljava/lang/String;")
			argument := behind[1 : 1+behind[0]]
			e.asked = append(e.asked, argument)
			if f.Flags&0x40 != 0 {
				s.Send(e.reply(f.ID, argument))
			}
		}
		return len(b) - len(rest)
	}
	e.v1.Serve, e.v2.Serve = serve, serve
	e.cfg = h.MustLoad(listener(routes, probed+more))
	e.c = h.Dial(e.cfg)
	return e
}

const toV1 = `{"routes": [{"name": "all", "route": {"cluster": "v1"}}]}`

// call sends a request with the argument and returns the answer.
func (e *bodies) call(argument string) dubbotest.Parsed {
	e.t.Helper()
	e.c.Send(dubbotest.Request{ID: 7, Argument: argument, Attachments: [][2]string{acme}}.Bytes())
	e.Advance(time.Second)
	f := one(e.t, e.c)
	require.EqualValues(e.t, 7, f.ID)
	return f
}

// hessian is a short string, as Dubbo has it.
func hessian(s string) codecs.Payload {
	return codecs.Payload{Bytes: append([]byte{byte(len(s))}, s...)}
}

// replacing replaces a part of the message's text.
func replacing(t *testing.T, from, to string) func(m *filter.Message) filter.Verdict {
	return func(m *filter.Message) filter.Verdict {
		p, err := m.Payload()
		require.NoError(t, err)
		require.NoError(t, m.SetPayload(hessian(strings.ReplaceAll(string(p.Bytes[1:]), from, to))))
		return filter.Continue
	}
}

func TestPayloadsAreChangedByOneFilterAfterTheOther(t *testing.T) {
	e := newBodies(t, toV1, "")
	e.a.request, e.b.request = replacing(t, "bob", "eve"), replacing(t, "eve", "mallory")
	e.a.response = replacing(t, "welcome", "go away,")
	e.b.response = func(m *filter.Message) filter.Verdict {
		m.MutateResponse().Set("by", "b")
		return replacing(t, "hello", "welcome")(m)
	}
	f := e.call("bob")
	require.Equal(t, []string{"mallory"}, e.asked)
	require.Equal(t, dubbotest.Response(7, "go away, mallory", [2]string{"by", "b"})[16:], f.Body)
	require.EqualValues(t, 1, e.count("response_success"))
}

// TestAPayloadOutlivesItsEvent: the frame of a request that waits has long gone.
func TestAPayloadOutlivesItsEvent(t *testing.T) {
	e := newBodies(t, toV1, "")
	e.a.request = func(m *filter.Message) filter.Verdict {
		p, _ := m.Payload()
		require.NoError(t, m.SetPayload(codecs.Payload{Bytes: append([]byte{3}, p.Bytes[1:4]...)}))
		return m.Delay(time.Millisecond, nil)
	}
	e.b.response = func(m *filter.Message) filter.Verdict {
		return m.Delay(time.Millisecond, func(m *filter.Message) filter.Verdict {
			p, err := m.Payload()
			require.NoError(t, err)
			require.Equal(t, hessian("hello ali"), p)
			return replacing(t, "ali", "bob")(m)
		})
	}
	require.Equal(t, "hello bob", e.call("alice").Text())
}

// TestAPayloadThatCannotGoOut ends the message: it never goes out with the old one.
func TestAPayloadThatCannotGoOut(t *testing.T) {
	e := newBodies(t, toV1, `, "limits": {"max_frame_bytes": 300}`)
	set := func(b []byte) func(m *filter.Message) filter.Verdict {
		return func(m *filter.Message) filter.Verdict {
			m.MutateRequest().Set("zone", "a")
			m.MutateResponse().Set("zone", "a")
			require.NoError(t, m.SetPayload(codecs.Payload{Bytes: b}))
			return filter.Continue
		}
	}
	large := append([]byte{'S', 1, 44}, strings.Repeat("x", 300)...)
	for b, why := range map[string]string{"\x05off": "cut off", "\x01a\x01b": "more than 1 values", string(large): "larger than the limits"} {
		e.a.request = set([]byte(b))
		f := e.call("bob")
		require.EqualValues(t, 40, f.Status)
		require.Contains(t, f.Text(), why)
		require.Contains(t, f.Text(), codecs.ErrNoPayload.Error())
		require.Empty(t, e.asked)
		e.a.request = nil

		e.a.response = set([]byte(b))
		f = e.call("bob")
		require.EqualValues(t, 50, f.Status)
		require.Contains(t, f.Text(), why)
		e.a.response, e.asked = nil, nil
	}
	e.a.request = func(m *filter.Message) filter.Verdict {
		_, err := m.Payload()
		require.ErrorIs(t, err, codecs.ErrNoPayload)
		require.Equal(t, err, m.SetPayload(hessian("x")))
		return m.Reply(codecs.Denied, "cannot be looked into")
	}
	e.c.Send(serialized(fastjson2, 9, unread))
	require.Equal(t, "cannot be looked into", one(t, e.c).Text())
}

// TestAPayloadThatItsCodecDoesNotKnow: a codec may be none that could tell.
func TestAPayloadThatItsCodecDoesNotKnow(t *testing.T) {
	a := &hooks{}
	setProbe(t, "probe.a", built(func(*filter.Scope) filter.Filter { return a }))
	e := newProbed(t)
	a.request = func(m *filter.Message) filter.Verdict {
		require.ErrorContains(t, m.SetPayload(hessian("x")), "codec toy.byid cannot tell it")
		m.MutateRequest().SetPayload(hessian("x"))
		return filter.Continue
	}
	e.say("req 1 m -")
	require.Contains(t, e.got(), "codec toy.byid cannot tell it")
	a.request = func(m *filter.Message) filter.Verdict { return m.Answer(hessian("x")) }
	e.say("req 2 m -", "init 3 m -")
	require.Equal(t, "err 2 - codec toy.byid cannot answer with a payload\nerr 3 - a stream cannot be answered with a payload\n", e.got())
}

// TestAnAnswerOfAFilter is an answer like a server's to the filters before it.
func TestAnAnswerOfAFilter(t *testing.T) {
	e := newBodies(t, toV1, "")
	var end filter.Facts
	e.a.response = func(m *filter.Message) filter.Verdict {
		require.Equal(t, codecs.Response, m.Response().Type)
		require.Nil(t, m.Response().Raw)
		v, _ := m.Request().Get("tenant")
		require.Equal(t, "acme", string(v))
		m.SetAttribute("seen", "yes")
		return replacing(t, "cached", "seen")(m)
	}
	e.a.local = func(*filter.Message, *codecs.LocalError) { t.Error("it is no error") }
	e.a.end = func(m *filter.Message) { end = m.Facts() }
	e.b.request = func(m *filter.Message) filter.Verdict { return m.Answer(hessian("cached")) }
	e.b.response = func(*filter.Message) filter.Verdict { t.Error("its own answer"); return filter.Continue }
	require.Equal(t, dubbotest.Frame(2, 20, 7, append([]byte{0x94}, "\x04seenH\x04seen\x03yesZ"...)), e.frameOf(e.call("bob")))
	require.Empty(t, e.asked)
	require.False(t, end.Replied)
	require.Equal(t, codecs.StatusOK, end.Status)
	require.Zero(t, end.Attempts)
	require.Zero(t, end.Flags)
	require.Positive(t, end.Answered)
	require.EqualValues(t, 1, e.count("local_response_success"))
	require.Zero(t, e.count("local_response_business_exception"))
	require.Zero(t, e.count("response"))
	require.Zero(t, e.count("request_active"))

	e.c.Send(dubbotest.Request{ID: 8, Oneway: true}.Bytes())
	require.EqualValues(t, 1, e.count("oneway_dropped"))
	require.Empty(t, e.c.Take())

	// An empty one, after a while; a text; what is no value at all.
	e.a.response, e.a.local = nil, nil
	e.b.request = func(m *filter.Message) filter.Verdict {
		return m.Delay(time.Millisecond, func(m *filter.Message) filter.Verdict { return m.Answer(codecs.Payload{}) })
	}
	require.Equal(t, "\x92", string(e.call("bob").Body))
	e.b.request = func(m *filter.Message) filter.Verdict {
		return m.Answer(codecs.Payload{Bytes: []byte("größer"), Text: true})
	}
	require.Equal(t, "\x91\x06größer", string(e.call("bob").Body))
	e.b.request = func(m *filter.Message) filter.Verdict { return m.Answer(codecs.Payload{Bytes: []byte{0xff}}) }
	f := e.call("bob")
	require.EqualValues(t, 50, f.Status, f.Text())
	require.EqualValues(t, 1, e.count("local_response_business_exception"))
	e.b.request = nil

	// In place of a server's answer: what is stale is better than an error.
	e.reply = func(id uint64, _ string) []byte { return dubbotest.ErrorResponse(id, 80, "down") }
	e.a.response = replacing(t, "stale", "rather old")
	e.b.response = func(m *filter.Message) filter.Verdict {
		if m.Response().Status == codecs.StatusError {
			return m.Answer(hessian("stale"))
		}
		return filter.Continue
	}
	require.Equal(t, "rather old", e.call("bob").Text())
	require.Equal(t, codecs.StatusOK, end.Status)
	require.Equal(t, 1, end.Attempts)
	e.a.response = func(m *filter.Message) filter.Verdict { return m.Reply(codecs.Denied, "no") }
	require.Equal(t, "no", e.call("bob").Text())
}

func (e *bodies) frameOf(f dubbotest.Parsed) []byte {
	return dubbotest.Frame(f.Flags, f.Status, f.ID, f.Body)
}

// TestAnAnswerOfAFilterToAnOldClient has no attachments, which that would not read.
func TestAnAnswerOfAFilterToAnOldClient(t *testing.T) {
	e := newBodies(t, toV1, "")
	e.b.request = func(m *filter.Message) filter.Verdict {
		m.MutateResponse().Set("by", "b")
		return m.Answer(hessian("cached"))
	}
	old := bytes.Replace(dubbotest.Request{ID: 7}.Bytes(), []byte("2.0.2"), []byte("2.6.2"), 1)
	e.c.Send(old)
	require.Equal(t, dubbotest.Response(7, "cached"), e.frameOf(one(t, e.c)))
	require.EqualValues(t, 1, e.count("mutation_skipped"))
}

// TestEachAttemptAndCopyHasThePayload: a retry, and a mirror after mutation.
func TestEachAttemptAndCopyHasThePayload(t *testing.T) {
	e := newBodies(t, `{"routes": [{"route": {"cluster": "v1", "retry_policy": {"retry_on": "overloaded", "num_retries": 2, `+quick+`},
		"request_mirror_policies": [{"cluster": "v2", "after_mutation": true}, {"cluster": "v2"}]}}]}`, "")
	e.a.request = replacing(t, "bob", "mallory")
	tries := 0
	reply := e.reply
	e.reply = func(id uint64, argument string) []byte {
		if tries++; tries < 5 {
			return dubbotest.ErrorResponse(id, 100, "busy")
		}
		return reply(id, argument)
	}
	require.Equal(t, "hello mallory", e.call("bob").Text())
	require.ElementsMatch(t, []string{"mallory", "mallory", "mallory", "mallory", "bob"}, e.asked)
}

func TestARequestIsRepeatedAsAFilterWants(t *testing.T) {
	e := newBodies(t, toV1, `, "request_timeout": "10s"`)
	var end filter.Facts
	var verdicts []bool
	e.a.request = func(m *filter.Message) filter.Verdict { m.AllowRepeat(); return filter.Continue }
	e.a.end = func(m *filter.Message) { end = m.Facts() }
	e.b.response = func(m *filter.Message) filter.Verdict {
		p, err := m.Payload()
		require.NoError(t, err)
		require.Nil(t, m.Request().Raw)
		again := strings.Contains(string(p.Bytes), "old")
		verdicts = append(verdicts, again)
		m.MutateResponse().Set("answer", string(p.Bytes[1:]))
		if !again {
			return filter.Continue
		}
		m.MutateResponse().Set("dropped", "with the answer")
		m.MutateRequest().Set("token", "new")
		return m.Delay(time.Millisecond, func(m *filter.Message) filter.Verdict { return m.Repeat() })
	}
	tries := 0
	e.reply = func(id uint64, _ string) []byte {
		if tries++; tries == 1 {
			return dubbotest.Response(id, "old token")
		}
		return dubbotest.Response(id, "welcome")
	}
	require.Equal(t, dubbotest.Response(7, "welcome", [2]string{"answer", "welcome"})[16:], e.call("bob").Body)
	require.Equal(t, []string{"bob", "bob"}, e.asked)
	require.Equal(t, []bool{true, false}, verdicts)
	require.Equal(t, 2, end.Attempts)
	require.EqualValues(t, 1, e.count("request_retry"))
	require.EqualValues(t, 1, e.count("request_retry_success"))
	require.EqualValues(t, 1, e.count("response_success"))

	// Not for ever: four times in all, then the answer goes on.
	tries, e.asked = -10, nil
	e.reply = func(id uint64, _ string) []byte { return dubbotest.Response(id, "old token") }
	require.Equal(t, "old token", dubbotest.Parsed{Status: 20, Body: e.call("bob").Body}.Text())
	require.Len(t, e.asked, 4)
	require.EqualValues(t, 1, e.count("request_retry_limit_exceeded"))

	// Not without consent, nor what is too large.
	consent := e.a.request
	e.a.request, e.asked = nil, nil
	require.EqualValues(t, 20, e.call("bob").Status)
	require.Len(t, e.asked, 1)
	e.a.request = consent
	large := dubbotest.Request{ID: 7, Argument: "x", Attachments: [][2]string{{"k", strings.Repeat("x", 65<<10)}}}.Bytes()
	e.c.Send(large)
	e.Advance(time.Second)
	require.EqualValues(t, 20, one(t, e.c).Status)
	require.Len(t, e.asked, 2)

	// A client that leaves meanwhile ends it.
	e.asked = nil
	e.c.Send(dubbotest.Request{ID: 8, Argument: "x"}.Bytes())
	e.c.Close()
	e.Advance(time.Second)
	require.LessOrEqual(t, len(e.asked), 2)
	require.Zero(t, e.count("request_active"))
}

// TestABudgetBoundsRepeats as it does retries: no storm of filters.
func TestABudgetBoundsRepeats(t *testing.T) {
	e := newBodies(t, `{"routes": [{"route": {"cluster": "v1"}}],
		"clusters": [{"name": "*", "retry_budget": {"budget_percent": {"value": 20}, "min_retries_per_second": 1}}]}`, "")
	e.a.request = func(m *filter.Message) filter.Verdict { m.AllowRepeat(); return filter.Continue }
	e.a.response = func(m *filter.Message) filter.Verdict { return m.Repeat() }
	for range 100 {
		e.c.Send(dubbotest.Request{ID: 7, Argument: "x"}.Bytes())
	}
	e.Advance(5 * time.Second)
	require.Len(t, replies(t, e.c), 100)
	require.Less(t, len(e.asked), 200)
	require.Positive(t, e.count("request_retry_overflow"))
}

func TestARouteAnswersWithASuccess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	e := newBodies(t, `{"routes": [
		{"name": "mock", "match": {"metadata": [{"name": "method", "string_match": {"exact": "sayHello"}}]},
		 "direct_response": {"success": {"text": "hello"}}, "response_mutation": [{"key": "mocked", "value": "yes"}]},
		{"direct_response": {"success": {"payload": "kA=="}}}]}`,
		`, "access_log": [`+accessLog(path, "%ROUTE_NAME% %RESPONSE_CODE% %STATUS_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %UPSTREAM_HOST% %UPSTREAM_REQUEST_ATTEMPT_COUNT% %LOCAL_REPLY_BODY%\n")+`]`)
	e.a.response = func(m *filter.Message) filter.Verdict {
		p, _ := m.Payload()
		require.Equal(t, codecs.Payload{Bytes: []byte("hello"), Text: true}, p)
		return filter.Continue
	}
	require.Equal(t, dubbotest.Response(7, "hello", [2]string{"mocked", "yes"})[16:], e.call("bob").Body)
	e.a.response = nil
	e.c.Send(dubbotest.Request{ID: 8, Method: "other"}.Bytes())
	require.Equal(t, "\x91\x90", string(one(t, e.c).Body), "an int, 0")
	require.Empty(t, e.asked)
	require.EqualValues(t, 2, e.count("request_direct_response"))
	require.EqualValues(t, 2, e.count("local_response_success"))
	require.Equal(t, []string{"mock 200 20 - direct_response - 0 -\n", "- 200 20 - direct_response - 0 -\n"}, logLines(t, e.Host, path, 2))
}

func TestSuccessesThatNoProtocolCanGive(t *testing.T) {
	for config, why := range map[string]string{
		`"success": {}, "status": "DENIED"`:                                            "routes[0].direct_response.success: does not go with",
		`"success": {}, "body": "x"`:                                                   "routes[0].direct_response.success: does not go with",
		`"success": {"payload": "BW9mZg=="}`:                                           "routes[0].direct_response.success.payload: codec aeraki.meta_protocol.codec.dubbo: the new payload: hessian: value is cut off",
		`"success": {"text": "` + strings.Repeat("x", 65537) + `"}`:                    "routes[0].direct_response.success.text: must have at most 65536 bytes",
		`"success": {}}, "request_mutation": [{"key": "k", "value": "v"}], "match": {`: "routes[0].direct_response: does not go with mutations of requests",
	} {
		faults := filter.Check([]byte(listener(`{"routes": [{"direct_response": {`+config+`}}]}`, "")))
		require.Len(t, faults, 1)
		require.ErrorContains(t, faults[0], why)
	}
	faults := filter.Check([]byte(policyConfig("toy.byid", `}, "direct_response": {"success": {"text": "x"}`, "", "")))
	require.NotEmpty(t, faults)
	require.ErrorContains(t, faults[len(faults)-1], "codec toy.byid cannot answer with a payload")
}
