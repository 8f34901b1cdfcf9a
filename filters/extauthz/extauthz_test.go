package extauthz

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/filter"
	"github.com/meltemi-mesh/meltemi/filter/filtertest"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/internal/raced"
)

func header(key, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: key, Value: value}}
}

// TestWhatIsSent.
func TestWhatIsSent(t *testing.T) {
	b := newBed(t, byCluster, `[{"match": {"metadata": [{"name": "tenant", "present_match": true}]}, "route": {"cluster": "greeter"},
		"typed_per_filter_config": {"`+Name+`": {"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.ext_authz.v1alpha.ExtAuthzPerRoute",
			"check_settings": {"context_extensions": {"route": "tenants"}}}}}]`)
	b.c = b.DialTLS(b.cfg, host.TLS{Mutual: true, ServerName: "greeter.example", URISANs: []string{"spiffe://c/ns/n/sa/s"}})
	b.ask([2]string{"Tenant", "acme"}, [2]string{"tenant", "x"}, [2]string{"bin", "a\xc3\xa9"})
	c := b.authorizer.next()
	a := c.GetAttributes()
	require.Equal(t, "10.0.0.2", a.GetSource().GetAddress().GetSocketAddress().GetAddress())
	require.NotZero(t, a.GetSource().GetAddress().GetSocketAddress().GetPortValue())
	require.Equal(t, "spiffe://c/ns/n/sa/s", a.GetSource().GetPrincipal())
	require.NotEmpty(t, a.GetDestination().GetAddress().GetSocketAddress().GetAddress())
	require.Equal(t, "greeter.example", a.GetTlsSession().GetSni())
	require.Equal(t, map[string]string{"route": "tenants"}, a.GetContextExtensions())
	require.NotZero(t, a.GetRequest().GetTime().GetSeconds())
	h := a.GetRequest().GetHttp()
	require.Equal(t, "POST", h.GetMethod())
	require.Equal(t, "/org.example.Greeter/sayHello", h.GetPath())
	require.Equal(t, "/org.example.Greeter/sayHello", h.GetHeaders()[":path"])
	require.Equal(t, "POST", h.GetHeaders()[":method"])
	require.Equal(t, "acme,x", h.GetHeaders()["tenant"])
	require.Equal(t, "aé", h.GetHeaders()["bin"])
	require.Equal(t, "sayHello", h.GetHeaders()["method"])
	c.allow(nil)
	b.passes()
}

func TestWhatIsNotSent(t *testing.T) {
	b := newBed(t, byCluster+`, "allowed_headers": {"patterns": [{"exact": "Tenant"}, {"prefix": "x-"}, {"suffix": "-ID"}, {"contains": "user"}]},
		"disallowed_headers": {"patterns": [{"prefix": "x-secret"}]}`, routes)
	b.ask([2]string{"TENANT", "t"}, [2]string{"x-a", "1"}, [2]string{"X-Secret-1", "2"}, [2]string{"order-id", "3"}, [2]string{"the-user-name", "4"}, [2]string{"other", "5"})
	c := b.authorizer.next()
	require.Equal(t, map[string]string{
		":path": "/org.example.Greeter/sayHello", ":method": "POST", "tenant": "t", "x-a": "1", "order-id": "3", "the-user-name": "4",
	}, c.GetAttributes().GetRequest().GetHttp().GetHeaders())
	c.allow(nil)
	b.passes()
	b.counts(map[string]int{"ok": 1})
}

// TestTooMuchToCheck is refused, also if failures pass: nothing must get by that way.
func TestTooMuchToCheck(t *testing.T) {
	b := newBed(t, byCluster+`, "failure_mode_allow": true, "allowed_headers": {"patterns": [{"exact": "tenant"}]}`, routes)
	b.ask([2]string{"padding", strings.Repeat("x", 64<<10)})
	b.refused(40, "the request has too many properties to be checked")
	b.counts(map[string]int{"invalid": 1})
}

// TestALongName is refused as well, and not kept.
func TestALongName(t *testing.T) {
	b := newBed(t, byCluster+`, "failure_mode_allow": true`, routes)
	heap := func() int {
		runtime.GC()
		var ms runtime.MemStats
		runtime.ReadMemStats(&ms)
		return int(ms.HeapAlloc)
	}
	b.ask([2]string{"padding", strings.Repeat("x", 64<<10)})
	b.refused(40, "the request has too many properties to be checked")
	before := heap()
	b.c.Send(dubbotest.Request{ID: 77, Method: strings.Repeat("x", 8<<20)}.Bytes())
	b.refused(40, "the request has too many properties to be checked")
	b.ask([2]string{"padding", strings.Repeat("x", 64<<10)})
	b.refused(40, "the request has too many properties to be checked")
	require.Less(t, heap()-before, 4<<20)
	b.counts(map[string]int{"invalid": 3})
}

func TestDenied(t *testing.T) {
	for name, tt := range map[string]struct {
		config string
		answer *authv3.DeniedHttpResponse
		status byte
		text   string
	}{
		"without a word":          {"", nil, 40, "denied by the authorization service"},
		"with a text":             {"", &authv3.DeniedHttpResponse{Body: "go away"}, 40, "go away"},
		"as configured":           {`, "denied_status": {"body": "no", "code": 90}`, &authv3.DeniedHttpResponse{}, 90, "no"},
		"as configured, and text": {`, "denied_status": {"body": "no", "code": 90}`, &authv3.DeniedHttpResponse{Body: "go away", Status: &typev3.HttpStatus{Code: 401}}, 90, "go away"},
		"by a status":             {`, "denied_status": {"code": 90}`, &authv3.DeniedHttpResponse{Status: &typev3.HttpStatus{Code: 429}}, 100, "denied by the authorization service"},
		"as not found":            {"", &authv3.DeniedHttpResponse{Status: &typev3.HttpStatus{Code: 404}}, 60, "denied by the authorization service"},
		"with garbage":            {"", &authv3.DeniedHttpResponse{Body: strings.Repeat("x", 5000), Status: &typev3.HttpStatus{Code: 99}}, 40, strings.Repeat("x", 4096)},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, byCluster+tt.config, routes)
			b.ask()
			b.authorizer.next().deny(tt.answer)
			b.refused(tt.status, tt.text)
			require.Empty(t, b.got)
			b.counts(map[string]int{"denied": 1})
		})
	}
}

// TestChanges: what the service adds, appends and removes counts for rules, and goes to
// the server; what it tells is a property.
func TestChanges(t *testing.T) {
	b := newBed(t, byCluster, `[{"match": {"metadata": [{"name": "user", "string_match": {"exact": "alice"}}]}, "route": {"cluster": "greeter"}},
		{"direct_response": {"body": "no user"}}]`)
	saw := map[string]string{}
	onPass = func(m *filter.Message) {
		for _, name := range []string{"user", "roles", "token", "fresh", "old", "absent", "ext_authz.metadata.tier", "ext_authz.metadata.n", "ext_authz.metadata.list"} {
			if v, has := m.Request().Get(name); has {
				saw[name] = string(v)
			}
		}
	}
	tell, err := structpb.NewStruct(map[string]any{"tier": "gold", "n": 3, "list": []any{1}})
	require.NoError(t, err)
	b.ask([2]string{"User", "mallory"}, [2]string{"roles", "r1"}, [2]string{"token", "secret-token"}, [2]string{"old", "1"})
	appended, absent, exists, added := header("roles", "r2"), header("old", "2"), header("absent", "3"), header("fresh", "f")
	appended.Append = wrapperspb.Bool(true) //nolint:staticcheck // as services say it
	absent.AppendAction = corev3.HeaderValueOption_ADD_IF_ABSENT
	exists.AppendAction = corev3.HeaderValueOption_OVERWRITE_IF_EXISTS
	b.authorizer.next().say(&authv3.CheckResponse{DynamicMetadata: tell, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
		Headers:              []*corev3.HeaderValueOption{header("user", "alice"), appended, absent, exists, added},
		HeadersToRemove:      []string{"Token"},
		ResponseHeadersToAdd: []*corev3.HeaderValueOption{header("checked", "yes")},
	}}})
	var frames []dubbotest.Parsed
	b.WaitUntil(func() bool { frames, _ = dubbotest.Parse(b.c.Take()); return len(frames) > 0 })
	require.EqualValues(t, 20, frames[0].Status, frames[0].Text())
	require.Contains(t, string(frames[0].Body), "checked\x03yes")
	require.Equal(t, map[string]string{
		"user": "alice", "roles": "r1,r2", "token": "", "fresh": "f", "old": "1", "ext_authz.metadata.tier": "gold", "ext_authz.metadata.n": "3",
	}, saw)
	require.Len(t, b.got, 1)
	body := string(b.got[0].Body)
	for text, in := range map[string]bool{
		"mallory": false, "secret-token": false, "alice": true, "r1,r2": true, "\x05fresh\x01f": true, "\x03old\x011": true, "gold": false, "absent": false,
	} {
		require.Equal(t, in, strings.Contains(body, text), "%q in %q", text, body)
	}
	b.counts(map[string]int{"ok": 1})
}

// TestWhatIsTheServices is not the client's to say, in whatever case and however often: not
// for a request that the service says nothing of, nor for one that is not checked.
func TestWhatIsTheServices(t *testing.T) {
	const gold = `{"match": {"metadata": [{"name": "ext_authz.metadata.tier", "string_match": {"exact": "gold"}}]}, "direct_response": {"body": "gold"}}`
	forged := [][2]string{{"ext_authz.metadata.tier", "gold"}, {"Ext_Authz.Metadata.Tier", "gold"}}
	b := newBed(t, byCluster+`, "cache": {"ttl": "60s"}, "failure_mode_allow": true`, `[`+gold+`, {"route": {"cluster": "greeter"}}]`)
	b.ask(forged...)
	b.authorizer.next().allow(nil)
	b.passes()
	b.ask(forged...)
	b.passes() // as it is known
	b.serve(nil)
	b.ask(append(forged, [2]string{"another", "key"})...)
	b.passes() // as nobody answers
	b = newBed(t, byCluster, `[`+gold+`, {"route": {"cluster": "greeter"}, "typed_per_filter_config": {"`+Name+`":
		{"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.ext_authz.v1alpha.ExtAuthzPerRoute", "disabled": true}}}]`)
	b.ask(forged...)
	b.passes()
}

// TestTwoServicesTell: what the first has said stays if the second says nothing.
func TestTwoServicesTell(t *testing.T) {
	b := newBed(t, byCluster, routes)
	l := listener(byCluster, routes)
	one := l[strings.Index(l, `{"name": "`+Name):strings.Index(l, `{"name": "test.behind"`)]
	b.c = b.Dial(b.MustLoad(strings.Replace(l, one, one+one, 1)))
	tier := ""
	onPass = func(m *filter.Message) {
		v, _ := m.Request().Get("ext_authz.metadata.tier")
		tier = string(v)
	}
	tell, err := structpb.NewStruct(map[string]any{"tier": "gold"})
	require.NoError(t, err)
	b.ask([2]string{"ext_authz.metadata.tier", "lead"})
	b.authorizer.next().say(&authv3.CheckResponse{DynamicMetadata: tell})
	b.WaitUntil(func() bool { return len(b.authorizer.calls) > 0 })
	b.authorizer.next().allow(nil)
	b.passes()
	require.Equal(t, "gold", tier)
}

// TestManyRepeats of a key, as which all of its cases count, cost what they are long.
func TestManyRepeats(t *testing.T) {
	b := newBed(t, byCluster, routes)
	var all [][2]string
	value := strings.Repeat("0123456789", 5)
	for i := range 1000 {
		name := []byte("abcdefghij")
		for j := range name {
			name[j] -= byte(i >> j & 1 << 5)
		}
		all = append(all, [2]string{string(name), value})
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	b.ask(all...)
	runtime.ReadMemStats(&after)
	c := b.authorizer.next()
	require.Equal(t, strings.Repeat(","+value, 1000)[1:], c.GetAttributes().GetRequest().GetHttp().GetHeaders()["abcdefghij"])
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(5<<20))
	c.allow(nil)
	b.passes()
}

// TestChangesThatCannotBeMade refuse the request: its server may rely on them.
func TestChangesThatCannotBeMade(t *testing.T) {
	for name, answer := range map[string]*authv3.OkHttpResponse{
		"set":          {Headers: []*corev3.HeaderValueOption{header("path", "x")}},
		"in an answer": {ResponseHeadersToAdd: []*corev3.HeaderValueOption{header("", "x")}},
		"removed":      {HeadersToRemove: []string{"interface"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, byCluster+`, "failure_mode_allow": true`, routes)
			b.ask()
			b.authorizer.next().allow(answer)
			b.refused(40, "the authorization service failed")
			b.counts(map[string]int{"invalid": 1})
		})
	}
}

// TestAServiceThatFails: late, with an error, with garbage.
func TestAServiceThatFails(t *testing.T) {
	many := &authv3.OkHttpResponse{HeadersToRemove: make([]string, 65)}
	garbage := &authv3.CheckResponse{Status: &status.Status{Code: 13}, HttpResponse: &authv3.CheckResponse_ErrorResponse{ErrorResponse: &authv3.DeniedHttpResponse{Body: "x"}}}
	for name, fail := range map[string]func(b *bed, c *call){
		"late": func(b *bed, c *call) {
			b.Advance(190 * time.Millisecond)
			require.Empty(b.t, b.c.Take())
			b.Advance(20 * time.Millisecond)
			<-c.ctx.Done()
		},
		"an error":      func(_ *bed, c *call) { c.answer <- result{nil, errors.New("x")} },
		"its own error": func(_ *bed, c *call) { c.say(garbage) },
		"too much":      func(_ *bed, c *call) { c.allow(many) },
	} {
		for _, allow := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " ", allow), func(t *testing.T) {
				b := newBed(t, byCluster+fmt.Sprintf(`, "failure_mode_allow": %v, "failure_mode_allow_header_add": true, "status_on_error": {"status": "NO_HEALTHY_UPSTREAM", "body": "later"}`, allow), routes)
				b.ask()
				fail(b, b.authorizer.next())
				want := map[string]int{"error": 1}
				if name == "late" {
					want["timeout"] = 1
				}
				if allow {
					b.passes()
					require.Contains(t, string(b.got[0].Body), passed)
					want["failure_mode_allowed"] = 1
				} else {
					b.refused(80, "later")
				}
				b.counts(want)
				require.Contains(t, b.Log()[len(b.Log())-1], "ext_authz: cluster authz: ")
			})
		}
	}
}

// TestARequestHasNoMoreTime for a service that may take longer.
func TestARequestHasNoMoreTime(t *testing.T) {
	b := newBed(t, strings.Replace(byCluster, `"grpc_service": {`, `"grpc_service": {"timeout": "60s", `, 1), routes)
	b.ask()
	c := b.authorizer.next()
	b.Advance(14900 * time.Millisecond)
	require.Empty(t, b.c.Take())
	b.Advance(200 * time.Millisecond)
	<-c.ctx.Done()
	b.refused(40, "the authorization service failed")
	b.counts(map[string]int{"error": 1, "timeout": 1})
}

// TestADeadService: its clients are told at once, and are checked again when it is back.
func TestADeadService(t *testing.T) {
	b := newBed(t, byCluster, routes)
	b.ask()
	b.authorizer.next().allow(nil)
	b.passes()
	b.ask()
	b.authorizer.next()
	b.serve(nil)
	b.refused(40, "the authorization service failed")
	b.serve(newAuthorizer(t))
	for deadline := time.Now().Add(3 * patience); ; {
		require.True(t, time.Now().Before(deadline))
		b.ask()
		select {
		case c := <-b.authorizer.calls:
			c.deny(&authv3.DeniedHttpResponse{Body: "back"})
			b.refused(40, "back")
			return
		case <-time.After(50 * time.Millisecond): // connections are made with pauses
			b.refused(40, "the authorization service failed")
		}
	}
}

// TestAClientThatLeaves takes its check along.
func TestAClientThatLeaves(t *testing.T) {
	b := newBed(t, byCluster, routes)
	b.ask()
	c := b.authorizer.next()
	b.c.Close()
	b.Settle()
	<-c.ctx.Done()
	b.c = b.Dial(b.cfg)
	b.ask()
	b.authorizer.next().allow(nil)
	b.passes()
	require.Len(t, b.got, 1)
}

func TestOnewaysAreChecked(t *testing.T) {
	b := newBed(t, byCluster, routes)
	for i, allow := range []bool{true, false, true} {
		b.c.Send(dubbotest.Request{ID: uint64(i), Oneway: true}.Bytes())
		c := b.authorizer.next()
		if allow {
			c.allow(nil)
		} else {
			c.deny(nil)
		}
		b.WaitWake()
	}
	require.Len(t, b.got, 2)
	require.Empty(t, b.c.Take())
	b.counts(map[string]int{"ok": 2, "denied": 1})
}

func TestRoutesThatAreNotChecked(t *testing.T) {
	b := newBed(t, byCluster, `[{"route": {"cluster": "greeter"}, "typed_per_filter_config": {"`+Name+`":
		{"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.ext_authz.v1alpha.ExtAuthzPerRoute", "disabled": true}}}]`)
	b.ask()
	b.passes()
	b.counts(map[string]int{"disabled": 1})
}

// TestAnswersAreKept for requests that would be checked by the same, and for so long.
func TestAnswersAreKept(t *testing.T) {
	b := newBed(t, byCluster+`, "allowed_headers": {"patterns": [{"exact": "user"}]}, "cache": {"ttl": "10s", "max_entries": 2}`, routes)
	user := func(name string) [2]string { return [2]string{"user", name} }
	b.ask(user("alice"))
	b.authorizer.next().allow(&authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{header("role", "admin")}})
	b.passes()
	b.ask(user("alice"), [2]string{"trace", "1"})
	b.passes()
	require.Contains(t, string(b.got[1].Body), "admin")
	b.ask(user("bob"))
	b.authorizer.next().deny(&authv3.DeniedHttpResponse{Body: "not bob"})
	b.refused(40, "not bob")
	b.ask(user("bob"))
	b.refused(40, "not bob")
	alice := b.c
	b.c = b.DialTLS(b.cfg, host.TLS{Mutual: true, URISANs: []string{"spiffe://x"}})
	b.ask(user("alice")) // another client of that name, for which alice's place is needed
	b.authorizer.next().answer <- result{nil, errors.New("x")}
	b.refused(40, "the authorization service failed")
	b.ask(user("alice"))
	b.authorizer.next().allow(nil) // failures are not kept
	b.passes()
	b.c = alice
	b.ask(user("bob"))
	b.refused(40, "not bob")
	b.Advance(9900 * time.Millisecond)
	b.ask(user("bob"))
	b.refused(40, "not bob")
	b.Advance(200 * time.Millisecond)
	b.ask(user("bob"))
	b.authorizer.next().allow(nil)
	b.passes()
	b.ask(user("alice"))
	b.authorizer.next().deny(nil)
	b.refused(40, "denied by the authorization service")
	b.counts(map[string]int{"ok": 4, "denied": 5, "error": 1, "cached": 4})
}

func TestTheCachesBounds(t *testing.T) {
	c := newCache(&config{ttl: time.Second, maxEntries: 100})
	for i := range 10_000 {
		k := key{byte(i), byte(i >> 8)}
		c.put(k, &decision{}, 0)
		c.put(k, &decision{}, 1)
		require.NotNil(t, c.get(k, 1))
		c.put(key{1, 2, 3}, &decision{size: maxKept + 1}, 0)
	}
	require.Len(t, c.known, 100)
	require.Len(t, c.order, 100)
	require.Nil(t, c.get(key{1, 2, 3}, 0))
	require.Nil(t, c.get(key{0x0f, 0x27}, time.Second+1), "its time is over")
}

// TestKeptAnswersAllocateNothing.
func TestKeptAnswersAllocateNothing(t *testing.T) {
	allocations := map[string]float64{}
	for name, settings := range map[string]string{"disabled": `"disabled": true`, "kept": `"check_settings": {"context_extensions": {"a": "b"}}`} {
		b := newBed(t, byCluster+`, "cache": {"ttl": "1000s"}`, `[{"route": {"cluster": "greeter"}, "typed_per_filter_config": {"`+Name+`":
			{"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.ext_authz.v1alpha.ExtAuthzPerRoute", `+settings+`}}}]`)
		b.greeter.Serve = func(s *filtertest.Server, in []byte) int {
			frames, rest := dubbotest.Parse(in)
			for _, f := range frames {
				s.Send(dubbotest.Response(f.ID, "x"))
			}
			return len(in) - len(rest)
		}
		request := dubbotest.Request{ID: 77, Attachments: [][2]string{{"tenant", "acme"}}}.Bytes()
		round := func() { b.c.Send(request); b.c.Take() }
		if b.c.Send(request); name == "kept" {
			b.authorizer.next().allow(nil)
		}
		b.passes()
		for range 100 {
			round()
		}
		allocations[name] = raced.AllocsPerRun(t, 1000, round)
	}
	require.Equal(t, int(allocations["disabled"]), int(allocations["kept"]))
}

// TestManyWait, and none keeps another from being served, on its worker or elsewhere.
func TestManyWait(t *testing.T) {
	b := newBed(t, byCluster, routes)
	var clients []*filtertest.Client
	for range 50 {
		c := b.Dial(b.cfg)
		b.askBy(c)
		clients = append(clients, c)
	}
	var calls []*call
	for range clients {
		calls = append(calls, b.authorizer.next())
	}
	for i := range calls {
		calls[len(calls)-1-i].allow(nil)
	}
	answers := 0
	b.WaitUntil(func() bool {
		for _, c := range clients {
			frames, _ := dubbotest.Parse(c.Take())
			answers += len(frames)
		}
		return answers == len(clients)
	})
	b.counts(map[string]int{"ok": 50})
}

func TestWhatIsRefused(t *testing.T) {
	for config, want := range map[string]string{
		`"failure_mode_allow": true`:                                                                      "grpc_service: required",
		`"grpc_service": {"timeout": "0s"}`:                                                               "grpc_service: want envoy_grpc or google_grpc",
		`"grpc_service": {"envoy_grpc": {}}`:                                                              "grpc_service.envoy_grpc.cluster_name: required",
		`"grpc_service": {"envoy_grpc": {"cluster_name": "c"}, "timeout": "0s"}`:                          "grpc_service.timeout: must be at least 1ms, is 0s",
		byCluster + `, "cache": {}`:                                                                       "cache.ttl: required",
		byCluster + `, "cache": {"ttl": "3601s"}`:                                                         "cache.ttl: must be at most 1h0m0s, is 1h0m1s",
		byCluster + `, "cache": {"ttl": "1s", "max_entries": 0}`:                                          "cache.max_entries: must be between 1 and 1048576, is 0",
		byCluster + `, "denied_status": {"code": 300}`:                                                    "denied_status.code: ",
		byCluster + `, "status_on_error": {"code": 300}`:                                                  "status_on_error.code: ",
		byCluster + `, "allowed_headers": {"patterns": [{"exact": "a"}, {"safe_regex": {"regex": "a"}}]}`: "allowed_headers.patterns[1]: want exact, prefix, suffix or contains",
		byCluster + `, "disallowed_headers": {"patterns": [{"prefix": ""}]}`:                              "disallowed_headers.patterns[0]: must not be empty",
		byCluster + `, "with_request_body": {}`:                                                           "with_request_body: ",
	} {
		_, err := filtertest.New(t).Load(listener(config, routes))
		require.ErrorContains(t, err, "meta_protocol_filters[0].config."+want, config)
	}
	for settings, want := range map[string]string{
		`"disabled": false`: "disabled: must be true",
		`"check_settings": {"context_extensions": {"k": "` + strings.Repeat("x", 4097) + `"}}`: `check_settings.context_extensions: "k" has more than 4096 bytes`,
	} {
		_, err := filtertest.New(t).Load(listener(byCluster, `[{"route": {"cluster": "c"}, "typed_per_filter_config": {"`+Name+`":
			{"@type": "type.googleapis.com/aeraki.meta_protocol_proxy.filters.ext_authz.v1alpha.ExtAuthzPerRoute", `+settings+`}}}]`))
		require.ErrorContains(t, err, "typed_per_filter_config["+Name+"]."+want, settings)
	}
}

// TestAnswersThatComeBroken do not bring down anything.
func FuzzAnswers(f *testing.F) {
	b, err := proto.Marshal(&authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{Headers: []*corev3.HeaderValueOption{header("a", "b"), nil}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &authv3.CheckResponse{}
		if proto.Unmarshal(b, r) != nil {
			return
		}
		if d, err := (&config{}).decide(r); err == nil {
			require.LessOrEqual(t, len(d.request)+len(d.response)+len(d.removed)+len(d.properties), 4*maxEntries)
		}
	})
}

func TestTheReadmesConfiguration(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(readme), "```yaml\n")
	require.True(t, ok)
	config, _, _ := strings.Cut(rest, "```")
	var proxy map[string]any
	require.NoError(t, yaml.Unmarshal([]byte(config), &proxy))
	b, err := json.Marshal(proxy)
	require.NoError(t, err)
	filtertest.New(t).MustLoad(string(b))
}
