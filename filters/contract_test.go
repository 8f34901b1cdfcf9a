package filters_test

// What README.md shows of the contract, as one filter. TestTheExamplesAreThis holds both
// against each other, and TestTheContractInOneFilter runs it.

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/route"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

type settings struct {
	Limit int    `json:"limit"`
	Peer  string `json:"peer"`
	Fast  string `json:"fast"`
	Away  string `json:"away"`

	fast  *route.Route
	guest *filter.Consumer
}

func init() { filter.Register("example.everything", builder{}) }

type builder struct{}

func (builder) Phase() filter.Phase { return filter.Authentication }

func (builder) Parse(config *anypb.Any, env *filter.Env) (filter.Config, error) {
	s := &settings{Limit: 100}
	if err := fields.Struct(config, s); err != nil {
		return nil, err
	}
	var faults fields.Faults
	if s.Limit < 1 {
		faults.Add("limit", "must be at least 1, is %d", s.Limit)
	}
	s.more(env, &faults)
	return s, faults.Err()
}

func (s *settings) more(env *filter.Env, faults *fields.Faults) {
	var err error
	s.fast, err = env.Route(&routev1alpha.Route{Name: "fast", Route: &routev1alpha.RouteAction{
		ClusterSpecifier: &routev1alpha.RouteAction_Cluster{Cluster: s.Fast},
		Timeout:          durationpb.New(50 * time.Millisecond),
	}})
	faults.AddAll("fast", err)
	s.guest, err = env.Consumer("guest", nil) // or with typed_per_filter_config
	faults.AddAll("", err)
}

func (builder) ParseRoute(config *anypb.Any, _ *filter.Env) (filter.Config, error) {
	s := &settings{}
	return s, fields.Struct(config, s)
}

func (builder) Merge(table, route filter.Config) filter.Config {
	all := *table.(*settings)
	if of := route.(*settings); of.Limit > 0 {
		all.Limit = of.Limit
	}
	return &all
}

func (builder) Build(c filter.Config, scope *filter.Scope) (filter.Filter, error) {
	e := &everything{settings: c.(*settings)}
	var errs [4]error
	e.refused, errs[0] = scope.Counter("everything_refused", filter.Label{"reason", "limit"})
	e.active, errs[1] = scope.Gauge("everything_active")
	e.size, errs[2] = scope.Histogram("everything_size")
	e.peer = scope.Shared(e.settings.Peer, func(life *filter.Life) any {
		p := &peer{}
		life.Go(func(ctx context.Context) { p.greet(ctx, life, e.settings.Peer) })
		return p
	}).(*peer)
	e.attempts, errs[3] = scope.CounterVec("everything_attempts", "host", "outcome")
	return e, errors.Join(errs[:]...)
}

// peer is what all configurations with one peer share.
type peer struct{ reached atomic.Bool }

func (p *peer) greet(ctx context.Context, life *filter.Life, cluster string) {
	for ctx.Err() == nil && !p.reached.Load() {
		conn, err := life.Dial(ctx, cluster) // one host of Envoy's cluster
		if err == nil {
			p.reached.Store(true)
			conn.Close()
			return
		}
		life.Logf(host.Warn, "peer %s: %v", cluster, err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

type everything struct {
	settings *settings
	peer     *peer
	refused  *filter.Counter
	active   *filter.Gauge
	size     *filter.Histogram
	attempts *filter.CounterVec
}

func (e *everything) ForWorker(w *filter.Worker) filter.Filter {
	p := &part{everything: e, worker: w}
	p.refill = w.NewTimer(func() {
		p.used = 0
		p.refill.Start(time.Second)
	})
	p.refill.Start(time.Second)
	return p
}

func (e *everything) OnRequest(*filter.Message) filter.Verdict { return filter.Continue }

func (e *everything) Close() { /* the configuration is gone, and all parts of it */ }

// part is a worker's, so it needs no lock.
type part struct {
	*everything
	worker *filter.Worker
	refill *filter.WorkerTimer
	used   int
}

func (p *part) OnRequest(m *filter.Message) filter.Verdict {
	limit := p.settings.Limit
	if of, ok := m.RouteConfig().(*settings); ok {
		limit = of.Limit
	}
	p.active.Add(1)
	m.Record(p.size, uint64(m.Request().BodySize))
	if p.used++; p.used > limit {
		m.Count(p.refused, 1)
		m.AddFlags(filter.RateLimited)
		return m.ReplyWith(codecs.LocalError{Type: codecs.OverLimit, Message: "too many"})
	}
	tenant, ok := m.Request().Get("tenant")
	if !ok {
		m.Logf(host.Info, "no tenant")
		return m.Reply(codecs.Denied, "no tenant")
	}
	if string(m.Request().Method()) == "version" {
		return m.Answer(codecs.Payload{Bytes: []byte("1.0"), Text: true})
	}
	m.AllowRepeat()                       // it is safe to execute it twice
	switch name := string(tenant); name { // a copy: the view ends with the hook
	case "slow":
		return m.Delay(20*time.Millisecond, func(m *filter.Message) filter.Verdict {
			return m.Reply(codecs.Timeout, "too slow")
		})
	case "stranger":
		return m.Go(func(ctx context.Context) func(m *filter.Message) filter.Verdict {
			zone, err := lookUp(ctx, name) // may block
			return func(m *filter.Message) filter.Verdict {
				if err != nil {
					return m.Reply(codecs.Denied, err.Error())
				}
				m.Request().Set("zone", zone) // for the rules of routes, not for the server
				m.ClearRoute()
				return filter.Continue
			}
		})
	}
	switch string(tenant) {
	case "guest":
		m.SetConsumer(p.settings.guest)
	case "hurried":
		m.SetRoute(p.settings.fast)
	case "pinned":
		m.SetHost("10.0.0.4:20880", true) // there, or NO_HEALTHY_UPSTREAM
	}
	m.SetState(&seen{at: m.Now()})
	m.SetValue(tenantKey{}, string(tenant))
	m.Span().SetTag("tenant", string(tenant)) // of nil, too
	m.MutateRequest().Set("checked", "yes")
	m.MutateRequest().Require("checked")
	return filter.Continue
}

type (
	seen struct {
		at    time.Duration
		aside bool
	}
	tenantKey struct{}
)

func lookUp(_ context.Context, name string) (string, error) {
	return "", errors.New("nobody knows " + name)
}

func (p *part) OnAttempt(_ *filter.Message, a *filter.Attempt) {
	if a.Host == p.settings.Away {
		a.Refuse("it is away")
		return
	}
	a.Mutate().Set("attempt", strconv.Itoa(a.Number))
}

func (p *part) OnAttemptEnd(m *filter.Message, a *filter.Attempt) {
	outcome := "ok"
	if a.Failure != nil {
		outcome = a.Failure.Type.String()
		m.SetHost("10.0.0.3:20880", false) // of a retry, if there is one
	}
	p.attempts.With([]byte(a.Host), []byte(outcome)).Add(1)
}

func (p *part) OnResponse(m *filter.Message) filter.Verdict {
	if m.Response().Status == codecs.StatusError && m.Facts().Attempts > 1 {
		return m.Reply(codecs.UpstreamReset, "tried more than once")
	}
	return p.look(m)
}

func (p *part) look(m *filter.Message) filter.Verdict {
	said, err := m.Payload()
	if err != nil {
		return m.Reply(codecs.BadResponse, err.Error())
	}
	if bytes.Contains(said.Bytes, []byte("token has expired")) {
		m.MutateRequest().Set("token", newToken())
		m.SetHost(m.Facts().Host, false) // the one that has answered
		return m.Repeat()
	}
	if bytes.Contains(said.Bytes, []byte("secret")) {
		said.Bytes = bytes.ReplaceAll(said.Bytes, []byte("secret"), []byte("******"))
		if err := m.SetPayload(said); err != nil {
			return m.Reply(codecs.BadResponse, err.Error())
		}
	}
	return filter.Continue
}

func newToken() string { return "new" }

func (p *part) OnLocalReply(m *filter.Message, e *codecs.LocalError) {
	e.Message += " (asked " + m.Connection().RemoteIP().String() + ")"
}

func (p *part) OnStreamFrame(m *filter.Message, d codecs.Direction, f *codecs.Metadata) filter.Verdict {
	if d == codecs.ClientToServer && f.BodySize > 1<<20 {
		return m.Reply(codecs.OverLimit, "the frame is too large")
	}
	return filter.Continue
}

func (p *part) OnEnd(m *filter.Message) {
	p.active.Add(-1)
	if s, ok := m.State().(*seen); ok {
		_ = m.Now() - s.at // how long it took
	}
}

func (p *part) OnAside(m *filter.Message) {
	if s, ok := m.State().(*seen); ok {
		s.aside = true
	}
}

func (p *part) OnConnect(*filter.Connection) any { return &dialogue{} }

func (p *part) OnDisconnect(_ *filter.Connection, state any) { state.(*dialogue).over = true }

type dialogue struct{ over bool }

func (p *part) Close() { /* this worker is done with the configuration */ }

func TestTheExamplesAreThis(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	source, err := os.ReadFile("contract_test.go")
	require.NoError(t, err)
	n := 0
	for _, block := range strings.Split(string(readme), "```go\n")[1:] {
		text, _, _ := strings.Cut(block, "```")
		require.Contains(t, string(source), "\n"+text)
		n++
	}
	require.Greater(t, n, 10)
}

func TestTheContractInOneFilter(t *testing.T) {
	h := filtertest.New(t)
	last := "" // what a server was sent
	serve := func(s *filtertest.Server, data []byte) int {
		calls, _ := dubbotest.Parse(data)
		for _, c := range calls {
			require.Contains(t, string(c.Body), "checked")
			require.Contains(t, string(c.Body), "attempt")
			last = string(c.Body)
			text := "the token has expired"
			if strings.Contains(string(c.Body), "\x05token\x03new") {
				text = "a secret hello"
			}
			s.Send(dubbotest.Response(c.ID, text))
		}
		return len(data)
	}
	greeter := h.Cluster("greeter")
	greeter.Tell(host.Member{Address: "10.0.0.3:20880", Weight: 1, Healthy: true}, host.Member{Address: "10.0.0.4:20880", Weight: 1, Healthy: true})
	greeter.Serve = serve
	h.Cluster("quick", "10.0.0.5:20880").Hang = true
	cfg := h.MustLoad(`{"stat_prefix": "t", "protocol": {"name": "dubbo", "codec": {"name": "aeraki.meta_protocol.codec.dubbo"}},
		"meta_protocol_filters": [
			{"name": "example.everything", "config": {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {"peer": "limiter", "fast": "quick", "away": "10.0.0.4:20880"}}},
			{"name": "aeraki.meta_protocol.filters.router"}],
		"route_config": {
			"typed_per_filter_config": {"example.everything": {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {"limit": 7}}},
			"routes": [{"route": {"cluster": "greeter"},
				"typed_per_filter_config": {"example.everything": {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {"limit": 3}}}}]}}`)
	c := h.Dial(cfg)
	method := ""
	call := func(tenant string) string {
		c.Send(dubbotest.Request{ID: 1, Method: method, Attachments: [][2]string{{"tenant", tenant}}}.Bytes())
		text := ""
		h.WaitUntil(func() bool {
			h.Advance(time.Millisecond)
			answers, _ := dubbotest.Parse(c.Take())
			if len(answers) == 1 {
				text = answers[0].Text()
			}
			return len(answers) == 1
		})
		return text
	}
	require.Equal(t, "a ****** hello", call("guest"))
	require.Equal(t, "too slow (asked 10.0.0.2)", call("slow"))
	require.Equal(t, "nobody knows stranger (asked 10.0.0.2)", call("stranger"))
	require.Equal(t, "too many (asked 10.0.0.2)", call("acme"))
	h.Advance(time.Second)
	require.Equal(t, "a ****** hello", call("acme"))
	method = "version"
	require.Equal(t, "1.0", call("acme"))
	method = ""
	h.Advance(time.Second)
	require.Contains(t, call("hurried"), "timeout")
	require.Equal(t, "a ****** hello", call("pinned"), "the host is away, and so the retry goes to the other")
	require.Contains(t, last, "attempt\x013", "behind the one for its token")
	h.Advance(time.Second)
	require.EqualValues(t, 1, cfg.Counter("dubbo.t.everything_refused.reason.limit"))
	require.EqualValues(t, 0, cfg.Counter("dubbo.t.everything_active"))
	require.Len(t, cfg.Histogram("dubbo.t.everything_size"), 8)
}
