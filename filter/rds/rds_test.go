package rds_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meltemi-mesh/meltemi/filter/config"
	"github.com/meltemi-mesh/meltemi/filter/rds"
	"github.com/meltemi-mesh/meltemi/filter/route"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

func TestStateOfTheWorld(t *testing.T) {
	virtually(t, func(b *bed) {
		b.serve(newServer())
		u, cancel := b.subscribe(source(t, `"node": {"id": "n1", "cluster": "c1"}, "config_source": {"api_config_source": {"api_type": "GRPC",
			"transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}, "initial_metadata": [{"key": "X-Tenant", "value": "acme"}]}]}}`))
		defer cancel()
		st := b.stream()
		require.Equal(t, []string{"acme"}, st.metadata.Get("x-tenant"))
		require.Equal(t, []string{"xds"}, st.metadata.Get(":authority"))
		r := next(b, st.world)
		require.Equal(t, []string{name}, r.GetResourceNames())
		require.Equal(t, config.EnvoyRoutes, r.GetTypeUrl())
		require.Equal(t, "n1", r.GetNode().GetId())
		require.Equal(t, "c1", r.GetNode().GetCluster())
		require.Equal(t, "meltemi", r.GetNode().GetUserAgentName())
		require.Empty(t, r.GetVersionInfo()+r.GetResponseNonce())

		r = b.answer(st, response("1", http(name, "v1")))
		require.Equal(t, "1", r.GetVersionInfo())
		require.Equal(t, "n1", r.GetResponseNonce())
		require.Nil(t, r.GetErrorDetail())
		require.Equal(t, "v1", u.to())
		require.Equal(t, "n1", r.GetNode().GetId(), "with each, as Envoy tells it")

		require.Equal(t, "2", b.answer(st, response("2", own(name, "v2"))).GetVersionInfo())
		require.Equal(t, "v2", u.to(), "a resource says itself which type it is")

		require.Equal(t, "3", b.answer(st, response("3", packed(&discoveryv3.Resource{Name: name, Resource: http(name, "v3")}))).GetVersionInfo())
		require.Equal(t, "v3", u.to())
		require.Equal(t, []rds.Event{rds.Accepted, rds.Accepted, rds.Accepted}, u.events)
	})
}

func TestDelta(t *testing.T) {
	virtually(t, func(b *bed) {
		b.serve(newServer())
		u, _ := b.subscribe(source(t, delta+`, "type_url": "`+config.ProxyRoutes+`"`))
		st := b.stream()
		r := next(b, st.delta)
		require.Equal(t, []string{name}, r.GetResourceNamesSubscribe())
		require.Equal(t, config.ProxyRoutes, r.GetTypeUrl())
		require.Empty(t, r.GetInitialResourceVersions())
		hostname, err := os.Hostname()
		require.NoError(t, err)
		require.Equal(t, hostname, r.GetNode().GetId())

		require.NoError(t, st.send(deltaResponse("1", own(name, "v1"))))
		r = next(b, st.delta)
		require.Equal(t, "n1", r.GetResponseNonce())
		require.Nil(t, r.GetErrorDetail())
		require.Empty(t, r.GetResourceNamesSubscribe())
		require.Equal(t, "v1", u.to())

		bad := deltaResponse("2", http(name, ""))
		require.NoError(t, st.send(bad))
		r = next(b, st.delta)
		require.Equal(t, "n2", r.GetResponseNonce())
		require.Equal(t, "resources[0].virtual_hosts[0].routes[0].route.cluster: required", r.GetErrorDetail().GetMessage())
		require.Equal(t, "v1", u.to())

		// As in Envoy what is removed stays in use.
		require.NoError(t, st.send(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: config.ProxyRoutes, Nonce: "n3", SystemVersionInfo: "s3", RemovedResources: []string{name}}))
		r = next(b, st.delta)
		require.Equal(t, "n3", r.GetResponseNonce())
		require.Nil(t, r.GetErrorDetail())
		require.Equal(t, "v1", u.to())

		// Another one's name.
		other := deltaResponse("4", own(name, "v4"))
		other.Resources[0].Name = "other"
		require.NoError(t, st.send(other))
		require.Contains(t, next(b, st.delta).GetErrorDetail().GetMessage(), `want "greeter", is "other"`)
		require.Equal(t, "v1", u.to())
		require.Equal(t, []rds.Event{rds.Accepted, rds.Refused, rds.Empty, rds.Refused}, u.events)

		// On the next stream it tells what it has.
		b.serve(newServer())
		st = b.stream()
		require.Equal(t, map[string]string{name: "1"}, next(b, st.delta).GetInitialResourceVersions())
	})
}

// TestWhatIsRefused: the server is told where the fault is, and the table that is held
// stays.
func TestWhatIsRefused(t *testing.T) {
	huge := own(name, "v2")
	huge.Value = append(huge.Value, make([]byte, rds.MaxBytes)...)
	unknown := own(name, "v2")
	unknown.Value = append(unknown.Value, 0xf8, 0x7f, 1) // field 2047
	many := &routev1alpha.RouteConfiguration{Name: name}
	for range 9 {
		many.Routes = append(many.Routes, &routev1alpha.Route{})
	}
	twoHosts := &routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{{}, {}}}
	withType := response("2", own(name, "v2"))
	withType.TypeUrl = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	for what, tc := range map[string]struct {
		answer *discoveryv3.DiscoveryResponse
		want   string
	}{
		"garbage":             {response("2", &anypb.Any{TypeUrl: config.EnvoyRoutes, Value: []byte("\xff\xffgarbage")}), "resources[0]: the bytes are no serialized envoy.config.route.v3.RouteConfiguration"},
		"garbage of ours":     {response("2", &anypb.Any{TypeUrl: config.ProxyRoutes, Value: []byte("\xff")}), "resources[0]: the bytes are no serialized aeraki.meta_protocol_proxy.config.route.v1alpha.RouteConfiguration"},
		"oversize":            {response("2", huge), "resources[0]: has 33554"},
		"another type":        {response("2", packed(&discoveryv3.DiscoveryRequest{})), "resources[0]: want type.googleapis.com/envoy.config.route.v3.RouteConfiguration or"},
		"no type":             {response("2", &anypb.Any{}), `, is ""`},
		"the answer's type":   {withType, "type_url: want type.googleapis.com/envoy.config.route.v3.RouteConfiguration, is"},
		"another name":        {response("2", own("other", "v2")), `resources[0].name: want "greeter", is "other"`},
		"two":                 {response("2", own(name, "v2"), own("other", "v2")), "resources: want one, has 2"},
		"an unknown field":    {response("2", unknown), "resources[0].#2047: unknown field of"},
		"two virtual hosts":   {response("2", packed(twoHosts)), "resources[0].virtual_hosts: want one, has 2"},
		"many faults":         {response("2", packed(many)), "resources[0].routes[4].route: required; and 4 more"},
		"a fault in Resource": {response("2", packed(&discoveryv3.Resource{Resource: http(name, "")})), "resources[0].resource.virtual_hosts[0].routes[0].route.cluster: required"},
	} {
		t.Run(what, func(t *testing.T) {
			virtually(t, func(b *bed) {
				b.serve(newServer())
				u, st := b.asked(source(t, world))
				b.answer(st, response("1", http(name, "v1")))
				r := b.answer(st, tc.answer)
				require.Contains(t, r.GetErrorDetail().GetMessage(), tc.want)
				require.EqualValues(t, 3, r.GetErrorDetail().GetCode())
				require.Equal(t, "1", r.GetVersionInfo(), "what is held")
				require.Equal(t, "n2", r.GetResponseNonce())
				require.Equal(t, "v1", u.to())
				require.Equal(t, 1, b.said(`routes "greeter", version "2", from cluster xds refused: `))
				// It goes on.
				require.Equal(t, "3", b.answer(st, response("3", http(name, "v3"))).GetVersionInfo())
				require.Equal(t, "v3", u.to())
				b.noStream()
			})
		})
	}
}

// TestAMessageThatIsFarTooLarge ends its stream, as it is not read.
func TestAMessageThatIsFarTooLarge(t *testing.T) {
	virtually(t, func(b *bed) {
		b.serve(newServer())
		u, st := b.asked(source(t, world))
		b.answer(st, response("1", http(name, "v1")))
		huge := &anypb.Any{TypeUrl: config.ProxyRoutes, Value: make([]byte, 2*rds.MaxBytes)}
		_ = st.send(response("2", huge))
		st = b.stream()
		require.Equal(t, "1", next(b, st.world).GetVersionInfo())
		require.Equal(t, "v1", u.to())
		require.Equal(t, []rds.Event{rds.Accepted, rds.Failed}, u.events)
	})
}

// TestAServerThatRepeatsWhatIsRefused is told later and later, and the log once.
func TestAServerThatRepeatsWhatIsRefused(t *testing.T) {
	virtually(t, func(b *bed) {
		b.serve(newServer())
		_, st := b.asked(source(t, world))
		begun := time.Now()
		for range 20 {
			b.answer(st, response("1", own("other", "v1")))
		}
		require.Greater(t, time.Since(begun), time.Minute)
		require.Equal(t, 1, b.said("refused"))
		b.answer(st, response("2", own(name, "v1")))
		begun = time.Now()
		b.answer(st, response("3", own("other", "v1")))
		require.Less(t, time.Since(begun), time.Second, "it begins anew")
	})
}

// TestAServerThatGoes: its routes stay, the version that is held is told to the next,
// the log has one line, and pauses grow and are not the same each time.
func TestAServerThatGoes(t *testing.T) {
	virtually(t, func(b *bed) {
		b.serve(newServer())
		u, st := b.asked(source(t, world))
		b.answer(st, response("7", http(name, "v1")))
		b.serve(nil)
		begun := len(b.dials())
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		require.Equal(t, "v1", u.to())
		require.Equal(t, 1, b.said(`going on with version "7"`))
		var pauses []time.Duration
		dials := b.dials()
		for i := begun + 1; i < len(dials); i++ {
			pauses = append(pauses, dials[i]-dials[i-1])
		}
		require.Less(t, len(pauses), 60)
		require.Greater(t, len(pauses), 20)
		require.LessOrEqual(t, slices.Max(pauses), 31*time.Second)
		require.GreaterOrEqual(t, slices.Min(pauses[6:]), 15*time.Second)
		require.NotEqual(t, pauses[8], pauses[9])
		require.GreaterOrEqual(t, len(u.events), len(pauses))
		require.NotContains(t, u.events[1:], rds.Accepted)

		// It comes back, with nothing.
		b.serve(newServer())
		st = b.stream()
		require.Equal(t, "7", next(b, st.world).GetVersionInfo())
		r := b.answer(st, response("8"))
		require.Equal(t, "8", r.GetVersionInfo())
		require.Nil(t, r.GetErrorDetail(), "as in Envoy: accepted, and of no effect")
		require.Equal(t, "v1", u.to())
		require.Equal(t, rds.Empty, u.events[len(u.events)-1])
		require.Equal(t, 1, b.said("answers again"))

		// Another one, with another version.
		b.serve(newServer())
		st = b.asks()
		require.Equal(t, "1", b.answer(st, response("1", http(name, "v2"))).GetVersionInfo())
		require.Equal(t, "v2", u.to())
	})
}

// TestNobodyListens at first.
func TestNobodyListens(t *testing.T) {
	virtually(t, func(b *bed) {
		u, _ := b.subscribe(source(t, world))
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, 1, b.said("nobody listens in xds"))
		require.Equal(t, 1, b.said("there are none yet"))
		b.serve(newServer())
		st := b.asks()
		b.answer(st, response("1", http(name, "v1")))
		require.Equal(t, "v1", u.to())
	})
}

// TestUsersShareAStream: whoever wants the same of the same server.
func TestUsersShareAStream(t *testing.T) {
	virtually(t, func(b *bed) {
		b.serve(newServer())
		first, cancelFirst := b.subscribe(source(t, world))
		st := b.asks()
		b.answer(st, response("1", http(name, "v1")))
		second, cancelSecond := b.subscribe(source(t, strings.Replace(world, `"config_source": {`, `"config_source": {"initial_fetch_timeout": "3s", `, 1)))
		require.Equal(t, "v1", second.routes.GetRoutes()[0].GetRoute().GetCluster(), "at once")
		require.Equal(t, []rds.Event{rds.Accepted}, second.events)
		b.noStream()
		// Another way to ask is another stream.
		_, cancelThird := b.subscribe(source(t, delta))
		next(b, b.stream().delta)

		b.answer(st, response("2", http(name, "v2")))
		require.Equal(t, "v2", first.to())
		require.Equal(t, "v2", second.to())
		cancelFirst()
		b.answer(st, response("3", http(name, "v3")))
		require.Equal(t, "v2", first.to())
		require.Equal(t, "v3", second.to())
		cancelSecond()
		cancelThird()
		synctest.Wait()
		require.Eventually(t, func() bool { return st.send(response("4", http(name, "v4"))) != nil }, time.Minute, time.Second, "the stream has ended")
		// The next one begins anew.
		b.subscribe(source(t, world))
		require.Empty(t, next(b, b.stream().world).GetVersionInfo())
	})
}

// TestStreamsShareAConnection, up to as many as servers allow, and another one when it
// is lost.
func TestStreamsShareAConnection(t *testing.T) {
	virtually(t, func(b *bed) {
		b.serve(newServer())
		for i := range 70 {
			b.subscribe(source(t, fmt.Sprintf(`"node": {"id": "n%d"}, %s`, i, world)))
			next(b, b.stream().world)
		}
		require.Len(t, b.dials(), 2)
		b.serve(newServer())
		for range 70 {
			next(b, b.stream().world)
		}
		require.LessOrEqual(t, len(b.dials()), 2+3)
	})
}

// TestAllUsersOrNone: what one of them cannot use is refused for all. One that comes
// later has nothing then, and others keep what they have.
func TestAllUsersOrNone(t *testing.T) {
	virtually(t, func(b *bed) {
		b.serve(newServer())
		cfg := source(t, world)
		first, _ := b.subscribe(cfg)
		picky := &user{compile: func(rc *routev1alpha.RouteConfiguration) []*route.Error {
			if rc.GetRoutes()[0].GetRoute().GetCluster() == "v1" {
				return []*route.Error{{Path: "routes[0].request_mutation[3].key", Reason: "not of this codec"}}
			}
			return nil
		}}
		st := b.asks()
		b.answer(st, response("1", http(name, "v1")))
		defer b.Subscribe(cfg, b, picky)()
		require.Equal(t, []rds.Event{rds.Refused}, picky.events)
		require.Empty(t, picky.to())
		require.Equal(t, 1, b.said("virtual_hosts[0].routes[0].request_headers_to_add[3].header.key: not of this codec"))
		b.answer(st, response("2", http(name, "v2")))
		require.Equal(t, "v2", picky.to())
		require.Contains(t, b.answer(st, response("3", http(name, "v1"))).GetErrorDetail().GetMessage(), "not of this codec")
		require.Equal(t, "v2", first.to())
		require.Equal(t, "v2", picky.to())
	})
}

// TestWhoComesLaterWaitsForNothing: what came so far has brought no routes.
func TestWhoComesLaterWaitsForNothing(t *testing.T) {
	virtually(t, func(b *bed) {
		b.serve(newServer())
		cfg := source(t, world)
		_, st := b.asked(cfg)
		before, cancelBefore := b.subscribe(cfg)
		defer cancelBefore()
		require.Empty(t, before.events)
		b.answer(st, response("1", own("other", "v1")))
		require.Equal(t, []rds.Event{rds.Refused}, before.events)
		later, cancelLater := b.subscribe(cfg)
		defer cancelLater()
		require.Equal(t, []rds.Event{rds.Refused}, later.events)
	})
}

// TestAPanicIsARefusal.
func TestAPanicIsARefusal(t *testing.T) {
	virtually(t, func(b *bed) {
		b.serve(newServer())
		u := &user{compile: func(*routev1alpha.RouteConfiguration) []*route.Error { panic("dropped") }}
		defer b.Subscribe(source(t, world), b, u)()
		st := b.asks()
		require.Equal(t, "internal error", b.answer(st, response("1", http(name, "v1"))).GetErrorDetail().GetMessage())
		require.Equal(t, 1, b.said("panic in rds: dropped"))
		require.Equal(t, []rds.Event{rds.Refused}, u.events)
	})
}

// TestTheSameAgain is not compiled again.
func TestTheSameAgain(t *testing.T) {
	virtually(t, func(b *bed) {
		b.serve(newServer())
		compiled := 0
		u := &user{compile: func(*routev1alpha.RouteConfiguration) []*route.Error { compiled++; return nil }}
		defer b.Subscribe(source(t, world), b, u)()
		st := b.asks()
		for i := range 3 {
			version := fmt.Sprint(i)
			require.Equal(t, version, b.answer(st, response(version, http(name, "v1"))).GetVersionInfo())
		}
		require.Equal(t, 1, compiled)
		require.Len(t, u.events, 3)
	})
}

// TestNodeIsToldOnce if that is wanted.
func TestNodeIsToldOnce(t *testing.T) {
	virtually(t, func(b *bed) {
		b.serve(newServer())
		b.subscribe(source(t, strings.Replace(delta, `"api_type"`, `"set_node_on_first_message_only": true, "api_type"`, 1)))
		st := b.stream()
		require.NotNil(t, next(b, st.delta).GetNode())
		require.NoError(t, st.send(deltaResponse("1", own(name, "v1"))))
		require.Nil(t, next(b, st.delta).GetNode())
	})
}

// TestAnAddress: a server that is dialled without a host's help.
func TestAnAddress(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": socket} {
		t.Run(network, func(t *testing.T) {
			l, err := net.Listen(network, address)
			require.NoError(t, err)
			target := "unix:" + socket
			if network == "tcp" {
				target = l.Addr().String()
			}
			b := &bed{T: t, Registry: rds.NewRegistry(), server: newServer()}
			defer b.server.grpc.Stop()
			go b.server.grpc.Serve(l)
			_, st := b.asked(source(t, strings.Replace(world, `{"envoy_grpc": {"cluster_name": "xds"}}`, `{"google_grpc": {"target_uri": "`+target+`"}}`, 1)))
			require.Equal(t, "1", b.answer(st, response("1", http(name, "v1"))).GetVersionInfo())
			require.Empty(t, b.dials())
		})
	}
}
