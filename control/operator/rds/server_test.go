package rds_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	routeservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	"github.com/stretchr/testify/require"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/meltemi-mesh/meltemi/control/operator/rds"
	"github.com/meltemi-mesh/meltemi/filter/config"
	client "github.com/meltemi-mesh/meltemi/filter/rds"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// Proxies get what they want in each form, each version once, and nothing is said of what
// there is not.
func TestRoutesReachProxies(t *testing.T) {
	for name, f := range forms {
		t.Run(name, func(t *testing.T) {
			virtually(t, rds.Options{}, func(b *bed) {
				u, other := b.proxy("a", "pod-1", f, b), b.proxy("b", "pod-1", f, b)
				synctest.Wait()
				require.Empty(t, u.heard())

				b.put("a", "one")
				require.Equal(t, "one", u.to())
				require.Empty(t, other.heard())
				b.put("a", "one")
				require.Equal(t, []client.Event{client.Accepted}, u.heard())
				b.put("a", "two")
				require.Equal(t, "two", u.to())
				require.Equal(t, []client.Event{client.Accepted, client.Accepted}, u.heard())

				late := b.proxy("a", "pod-2", f, b)
				synctest.Wait()
				require.Equal(t, "two", late.to())
				states := b.server.States("a")
				require.Len(t, states, 2)
				for i, node := range []string{"pod-1", "pod-2"} {
					require.Len(t, states[i].Accepted, 32)
					require.Equal(t, rds.State{Node: node, Type: f.typeURL, Accepted: states[0].Accepted, Current: true}, states[i])
				}

				// What is gone stays in use.
				require.NoError(t, b.store.Put("a", nil))
				synctest.Wait()
				require.Equal(t, "two", u.to())
				require.False(t, b.server.States("a")[0].Current)
				b.put("a", "two")
				require.True(t, b.server.States("a")[0].Current)
			})
		})
	}
}

// A proxy that refuses a version says why, is not sent it again, and gets the next one.
func TestRefusalsAreKept(t *testing.T) {
	for name, f := range forms {
		t.Run(name, func(t *testing.T) {
			virtually(t, rds.Options{}, func(b *bed) {
				u := b.proxy("a", "pod-1", f, b)
				u.refuse("bad")
				b.put("a", "good")
				held := b.server.States("a")[0].Accepted
				b.put("a", "bad")
				settle()
				require.Equal(t, []client.Event{client.Accepted, client.Refused}, u.heard())
				s := b.server.States("a")[0]
				require.Equal(t, held, s.Accepted)
				require.False(t, s.Current)
				require.NotEmpty(t, s.Refused)
				require.Contains(t, s.Reason, "not that one")
				b.put("a", "better")
				s = b.server.States("a")[0]
				require.True(t, s.Current)
				require.Empty(t, s.Refused+s.Reason)
				require.Equal(t, "better", u.to())
			})
		})
	}
}

// Who has what there is already is not sent it by another replica, whatever it was asked.
func TestVersionsOutliveServers(t *testing.T) {
	for name, f := range forms {
		t.Run(name, func(t *testing.T) {
			virtually(t, rds.Options{}, func(b *bed) {
				u := b.proxy("a", "pod-1", f, b)
				b.put("a", "one")
				b.down()
				require.Empty(t, b.server.States("a"))
				b.up(rds.Options{})
				settle()
				states := b.server.States("a")
				require.Len(t, states, 1)
				require.True(t, states[0].Current)
				accepted := 0
				for _, e := range u.heard() {
					if e == client.Accepted {
						accepted++
					}
				}
				require.Equal(t, 1, accepted)

				b.down()
				b.put("a", "two")
				b.up(rds.Options{})
				settle()
				require.Equal(t, "two", u.to())
				b.put("a", "three")
				require.Equal(t, "three", u.to())
			})
		})
	}
}

// What is changed while a proxy judges goes with the next answer, once.
func TestOneAnswerAtATime(t *testing.T) {
	virtually(t, rds.Options{}, func(b *bed) {
		st := b.delta()
		st.ask(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: config.ProxyRoutes, ResourceNamesSubscribe: []string{"a", "b"}})
		b.put("a", "one")
		first := st.next()
		require.Len(t, first.GetResources(), 1)
		b.put("a", "two")
		b.put("a", "three")
		b.put("b", "one")
		require.Empty(t, st.answers)
		st.ask(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: first.GetNonce()})
		second := st.next()
		require.Len(t, second.GetResources(), 2)
		require.Equal(t, "a", second.GetResources()[0].GetName())
		require.NotEqual(t, first.GetResources()[0].GetVersion(), second.GetResources()[0].GetVersion())

		// A word about an answer before says nothing of this one.
		st.ask(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: first.GetNonce(), ErrorDetail: &rpcstatus.Status{Message: "late"}})
		require.Empty(t, b.server.States("b")[0].Refused)
		st.ask(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: second.GetNonce()})
		require.True(t, b.server.States("b")[0].Current)

		require.NoError(t, b.store.Put("a", nil))
		third := st.next()
		require.Equal(t, []string{"a"}, third.GetRemovedResources())
		st.ask(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: third.GetNonce(), ResourceNamesUnsubscribe: []string{"b"}})
		b.put("b", "two")
		require.Empty(t, st.answers)
		// Who asks again has lost it.
		st.ask(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"b"}})
		fourth := st.next()
		st.ask(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: fourth.GetNonce(), ResourceNamesSubscribe: []string{"b"}})
		require.Len(t, st.next().GetResources(), 1)
	})
}

// An answer of the state of the world has all that is wanted.
func TestTheStateOfTheWorldIsWhole(t *testing.T) {
	virtually(t, rds.Options{}, func(b *bed) {
		b.put("a", "one")
		b.put("b", "one")
		st := b.world()
		st.ask(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"a", "b", "c"}})
		first := st.next()
		require.Equal(t, config.EnvoyRoutes, first.GetTypeUrl())
		require.Len(t, first.GetResources(), 2)
		st.ask(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"a", "b", "c"}, ResponseNonce: first.GetNonce(), VersionInfo: first.GetVersionInfo()})
		b.put("b", "two")
		second := st.next()
		require.Len(t, second.GetResources(), 2)
		require.NotEqual(t, first.GetVersionInfo(), second.GetVersionInfo())
		// What is about an answer before is said again.
		st.ask(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"b"}, ResponseNonce: first.GetNonce()})
		require.Len(t, b.server.States("a"), 1)
		st.ask(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"b"}, ResponseNonce: second.GetNonce(), VersionInfo: second.GetVersionInfo()})
		require.Empty(t, b.server.States("a"))
		b.put("a", "two")
		require.Empty(t, st.answers)

		again := b.world()
		again.ask(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"a", "b"}, VersionInfo: second.GetVersionInfo()})
		require.Len(t, again.next().GetResources(), 2)
	})
}

func TestWhatCannotBeWanted(t *testing.T) {
	many := make([]string, rds.MaxNames+1)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	for name, c := range map[string]struct {
		request *discoveryv3.DiscoveryRequest
		code    codes.Code
		text    string
	}{
		"another type":   {&discoveryv3.DiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster"}, codes.InvalidArgument, "type_url"},
		"everything":     {&discoveryv3.DiscoveryRequest{ResourceNames: []string{"*"}}, codes.InvalidArgument, `"*"`},
		"a long name":    {&discoveryv3.DiscoveryRequest{ResourceNames: []string{strings.Repeat("a", 1000)}}, codes.InvalidArgument, "resource names"},
		"too many names": {&discoveryv3.DiscoveryRequest{ResourceNames: many}, codes.ResourceExhausted, "1001, at most 1000"},
	} {
		t.Run(name, func(t *testing.T) {
			virtually(t, rds.Options{}, func(b *bed) {
				st := b.world()
				st.ask(c.request)
				err := <-st.failed
				require.Equal(t, c.code, status.Code(err))
				require.ErrorContains(t, err, c.text)
			})
		})
	}
}

// Routes that Envoy's own type has no words for are served in ours.
func TestRoutesThatHTTPCannotSay(t *testing.T) {
	virtually(t, rds.Options{}, func(b *bed) {
		own, http := b.proxy("a", "pod-1", deltaOwn, b), b.proxy("a", "pod-2", forms["delta http"], b)
		rc := table("a", "one")
		rc.Routes[0].Match = &routev1alpha.RouteMatch{SourceLabels: map[string]string{"app": "a"}}
		require.NoError(t, b.store.Put("a", []rds.Resource{{Routes: rc}}))
		synctest.Wait()
		require.Equal(t, "one", own.to())
		require.Empty(t, http.heard())
		b.put("a", "two")
		require.Equal(t, "two", http.to())
	})
}

// raw is a stream whose every word the test says.
type raw[Q, A any] struct {
	ask     func(*Q)
	answers chan *A
	failed  chan error
}

func (r *raw[Q, A]) next() *A { return <-r.answers }

func (b *bed) conn() *grpc.ClientConn {
	c, err := grpc.NewClient("passthrough:rds", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return b.DialCluster(ctx, "rds") }))
	require.NoError(b, err)
	b.Cleanup(func() { c.Close() })
	return c
}

func open[Q, A any](b *bed, st grpc.BidiStreamingClient[Q, A], err error) *raw[Q, A] {
	b.Helper()
	require.NoError(b, err)
	r := &raw[Q, A]{answers: make(chan *A, 100), failed: make(chan error, 1)}
	r.ask = func(q *Q) {
		require.NoError(b, st.Send(q))
		synctest.Wait()
	}
	go func() {
		for {
			a, err := st.Recv()
			if err != nil {
				r.failed <- err
				return
			}
			r.answers <- a
		}
	}()
	return r
}

func (b *bed) world() *raw[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse] {
	st, err := routeservicev3.NewRouteDiscoveryServiceClient(b.conn()).StreamRoutes(b.Context())
	return open(b, st, err)
}

func (b *bed) delta() *raw[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse] {
	st, err := routeservicev3.NewRouteDiscoveryServiceClient(b.conn()).DeltaRoutes(b.Context())
	return open(b, st, err)
}

// Who connects at a shutdown is told so, and the listener is closed.
func TestShutdown(t *testing.T) {
	virtually(t, rds.Options{}, func(b *bed) {
		st := b.world()
		st.ask(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"a"}})
		b.down()
		require.Equal(t, codes.Unavailable, status.Code(<-st.failed))
	})
}
