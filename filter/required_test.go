package filter_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// many are attachments, so many with acme.
func many(n int) [][2]string {
	all := [][2]string{acme}
	for i := 1; i < n; i++ {
		all = append(all, [2]string{fmt.Sprint("k", i), "v"})
	}
	return all
}

// requiring has a request say key=value, or not go out.
func requiring(key, value string) func(m *filter.Message) filter.Verdict {
	return func(m *filter.Message) filter.Verdict {
		m.MutateRequest().Set(key, value)
		m.MutateRequest().Require(key)
		return filter.Continue
	}
}

// TestWhatIsRequiredComesFirst: what others set is left out if there is no room for both.
func TestWhatIsRequiredComesFirst(t *testing.T) {
	var got [][2]bool
	e := newBodies(t, toV1, "")
	e.v1.Serve = func(s *filtertest.Server, b []byte) int {
		frames, rest := dubbotest.Parse(b)
		for _, f := range frames {
			got = append(got, [2]bool{strings.Contains(string(f.Body), "\x06x-user\x05alice"), strings.Contains(string(f.Body), "optional")})
			s.Send(dubbotest.Response(f.ID, "x"))
		}
		return len(b) - len(rest)
	}
	e.a.request = requiring("x-user", "alice")
	e.b.request = func(m *filter.Message) filter.Verdict {
		m.MutateRequest().Set("optional", "x")
		return filter.Continue
	}
	for i, tt := range []struct {
		n                int
		got              [2]bool
		status           byte
		skipped, refused int64
	}{
		{1022, [2]bool{true, true}, 20, 0, 0},
		{1023, [2]bool{true, false}, 20, 1, 0},
		{1024, [2]bool{}, 40, 1, 1},
		{1, [2]bool{true, true}, 20, 1, 1},
	} {
		got = nil
		e.c.Send(dubbotest.Request{ID: uint64(i), Attachments: many(tt.n)}.Bytes())
		f := one(t, e.c)
		require.EqualValues(t, i, f.ID)
		require.Equal(t, tt.status, f.Status, tt.n)
		if tt.status == 20 {
			require.Equal(t, [][2]bool{tt.got}, got, tt.n)
		} else {
			require.Empty(t, got)
			require.Equal(t, "the message cannot be changed: more than 1024 attachments", f.Text())
			require.Contains(t, strings.Join(e.Log(), "\n"), "request not sent, as it cannot carry what is required: ")
		}
		require.Equal(t, tt.skipped, e.count("mutation_skipped"), tt.n)
		require.Equal(t, tt.refused, e.count("mutation_refused"), tt.n)
		require.Zero(t, e.count("request_retry"))
	}
}

// TestCopiesAndAttemptsRequireTheSame: mirrors after mutation, retries, and attempts that
// a filter sees.
func TestCopiesAndAttemptsRequireTheSame(t *testing.T) {
	for _, watched := range []bool{false, true} {
		e := newBodies(t, `{"routes": [{"route": {"cluster": "v1", "retry_policy": {"retry_on": "overloaded", "num_retries": 2, `+quick+`},
			"request_mirror_policies": [{"cluster": "v2", "after_mutation": true}]}}]}`, "")
		e.a.request = requiring("x-user", "alice")
		if watched {
			a := &attempts{hooks: *e.a, name: "a", log: new([]string)}
			setProbe(t, "probe.a", built(func(*filter.Scope) filter.Filter { return a }))
			e.cfg = e.MustLoad(listener(`{"routes": [{"route": {"cluster": "v1", "retry_policy": {"retry_on": "overloaded", "num_retries": 2, `+quick+`},
				"request_mirror_policies": [{"cluster": "v2", "after_mutation": true}]}}]}`, probed))
			e.c = e.Dial(e.cfg)
		}
		e.c.Send(dubbotest.Request{ID: 7, Argument: "bob", Attachments: many(1024)}.Bytes())
		e.Advance(time.Second)
		f := one(t, e.c)
		require.EqualValues(t, 40, f.Status)
		require.Empty(t, e.asked, "neither the one nor the other")
		require.EqualValues(t, 1, e.count("mutation_refused"))
		require.EqualValues(t, 1, e.count("mirror_failed"))
		require.Zero(t, e.count("request_retry"))
		require.Zero(t, e.count("mutation_skipped"))

		tries := 0
		reply := e.reply
		e.reply = func(id uint64, argument string) []byte {
			if tries++; tries < 4 {
				return dubbotest.ErrorResponse(id, 100, "busy")
			}
			return reply(id, argument)
		}
		require.Equal(t, "hello bob", e.call("bob").Text())
		require.Equal(t, []string{"bob", "bob", "bob", "bob"}, e.asked)
	}
}

// TestAnAnswerThatCannotCarryWhatIsRequired becomes an error: a server's, and a filter's.
func TestAnAnswerThatCannotCarryWhatIsRequired(t *testing.T) {
	for _, made := range []bool{false, true} {
		e := newBodies(t, toV1, "")
		key := "path" // which no answer can have
		e.b.request = func(m *filter.Message) filter.Verdict {
			m.MutateResponse().Set(key, "x")
			m.MutateResponse().Require(key)
			if made {
				return m.Answer(hessian("cached"))
			}
			return filter.Continue
		}
		f := e.call("bob")
		require.EqualValues(t, 50, f.Status)
		require.Contains(t, f.Text(), `response cannot be encoded: the message cannot be changed: "path" belongs to the call itself`)
		require.EqualValues(t, 1, e.count("mutation_refused"))
		require.Zero(t, e.count("mutation_skipped"))
		key = "by"
		require.EqualValues(t, 20, e.call("bob").Status)
		require.EqualValues(t, 1, e.count("mutation_refused"))
	}
}

func init() {
	codecs.Register("toy.fixed", func(*anypb.Any, codecs.Limits) (codecs.Codec, error) {
		return struct{ codecs.Codec }{toy{codecs.Traits{Correlation: codecs.ByID, MaxID: 1<<31 - 1, ShareByDefault: true}, 'r'}}, nil
	})
}

// TestACodecThatCannotChangeWhatIsRequired refuses the request.
func TestACodecThatCannotChangeWhatIsRequired(t *testing.T) {
	for _, tt := range []struct {
		codec, why string
		change     func(mu *codecs.Mutation)
	}{
		{"toy.byid", "its codec cannot remove anything", func(mu *codecs.Mutation) { mu.Remove("a") }},
		{"toy.fixed", "its codec cannot change anything", func(mu *codecs.Mutation) { mu.Set("a", "x") }},
	} {
		required := true
		current = &testFilter{onRequest: func(m *filter.Message) filter.Verdict {
			if tt.change(m.MutateRequest()); required {
				m.MutateRequest().Require("A")
			}
			return filter.Continue
		}}
		h := filtertest.New(t)
		up := h.Cluster("up", "h1")
		cfg := h.MustLoad(`{"stat_prefix": "t", "protocol": {"name": "any", "codec": {"name": "` + tt.codec + `"}},
			"meta_protocol_filters": [{"name": "test"}, {"name": "aeraki.meta_protocol.filters.router"}],
			"route_config": {"routes": [{"route": {"cluster": "up"}}]}}`)
		c := h.Dial(cfg)
		c.Send([]byte("req 1 m x\n"))
		h.Advance(time.Second)
		require.Contains(t, string(c.Take()), codecs.ErrNoMutation.Error()+": "+tt.why)
		require.Empty(t, up.Servers()[0].Take())
		require.EqualValues(t, 1, cfg.Counter("any.t.mutation_refused"))
		required = false
		c.Send([]byte("req 2 m x\n"))
		require.Contains(t, string(up.Servers()[0].Take()), " m x", "unchanged")
		h.Advance(time.Second)
		require.EqualValues(t, 1, cfg.Counter("any.t.mutation_refused"))
		require.EqualValues(t, 1, cfg.Counter("any.t.mutation_skipped"))
	}
}
