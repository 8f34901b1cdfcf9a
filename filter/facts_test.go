package filter_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/facts"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
)

// TestFactsOfAMessage tells of each way in which one can end.
func TestFactsOfAMessage(t *testing.T) {
	request := req(1, acme)
	for _, tt := range []struct {
		name  string
		do    func(e *env)
		flags string
		want  filter.Facts // but for Start, Flags
	}{
		{
			name:  "answered",
			flags: "-",
			do: func(e *env) {
				e.Advance(30 * time.Millisecond)
				s := e.v2.Servers()[0]
				s.Send(dubbotest.Response(parse(s.Take())[0].ID, "x"))
			},
			want: filter.Facts{
				Cluster: "v2", Host: "h2", Attempts: 1, RequestBytes: len(request), ResponseBytes: len(dubbotest.Response(1, "x")),
				SentBytes: int64(len(dubbotest.Response(1, "x"))), Code: 20, Answered: 30 * time.Millisecond, End: 30 * time.Millisecond,
			},
		},
		{
			name:  "timed out",
			flags: "UT",
			do:    func(e *env) { e.Advance(time.Minute) },
			want: filter.Facts{
				Cluster: "v2", Host: "h2", Attempts: 1, RequestBytes: len(request), SentBytes: 41, End: 15 * time.Second,
				Status: codecs.StatusError, Replied: true, Local: codecs.LocalError{Type: codecs.Timeout, Message: "upstream request timeout"},
			},
		},
		{
			name:  "left by its client",
			flags: "DC",
			do:    func(e *env) { e.c.Close() },
			want:  filter.Facts{Cluster: "v2", Host: "h2", Attempts: 1, RequestBytes: len(request)},
		},
		{
			name:  "lost",
			flags: "UC",
			do:    func(e *env) { e.v2.Servers()[0].Close() },
			want: filter.Facts{
				Cluster: "v2", Host: "h2", Attempts: 1, RequestBytes: len(request), SentBytes: 83,
				Status: codecs.StatusError, Replied: true,
				Local: codecs.LocalError{Type: codecs.UpstreamReset, Message: "upstream connection ended before the answer: closed by the server"},
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []filter.Facts
			e := withFilter(t, &testFilter{onEnd: func(m *filter.Message) {
				f := m.Facts()
				if f.Sent > 0 {
					f.Sent -= f.Start
				}
				if f.Answered > 0 {
					f.Answered -= f.Start
				}
				f.End -= f.Start
				f.Start = 0
				got = append(got, f)
			}})
			e.v2.Serve = func(*filtertest.Server, []byte) int { return 0 }
			e.c.Send(request)
			tt.do(e)
			e.Settle()
			require.Len(t, got, 1)
			require.Equal(t, tt.flags, got[0].Flags.String())
			got[0].Flags, got[0].Server = 0, nil // filters/istiostats has tests of the latter
			tt.want.Protocol, tt.want.ReceivedBytes, tt.want.UpstreamSentBytes = "dubbo", int64(len(request)), int64(len(request))
			tt.want.UpstreamReceivedBytes = int64(tt.want.ResponseBytes)
			require.Equal(t, tt.want, got[0])
		})
	}
}

func TestFactsOfAMessageThatGoesNowhere(t *testing.T) {
	var got []filter.Facts
	deny := false
	e := withFilter(t, &testFilter{
		onRequest: func(m *filter.Message) filter.Verdict {
			if deny {
				return m.Reply(codecs.Denied, "no")
			}
			return filter.Continue
		},
		onEnd: func(m *filter.Message) { got = append(got, m.Facts()) },
	})
	for _, tt := range []struct {
		flags string
		send  func()
	}{
		{"UAEX", func() { deny = true; e.c.Send(req(1, acme)); deny = false }},
		{"NR", func() { e.c.Send(dubbotest.Request{ID: 2, Method: "other"}.Bytes()) }},
		{"UH", func() { e.v1.SetHosts(); e.c.Send(req(3)) }},
	} {
		got = nil
		tt.send()
		e.Settle()
		require.Len(t, got, 1, tt.flags)
		require.Equal(t, tt.flags, got[0].Flags.String())
		require.Empty(t, got[0].Host)
		require.Zero(t, got[0].Sent)
		require.Zero(t, got[0].ResponseBytes)
	}
	require.Equal(t, "UH,NR,DC", (facts.NoHealthyUpstream | facts.NoRouteFound | facts.DownstreamConnectionTermination).String())
}
