package rds_test

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	routeservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/meltemi-mesh/meltemi/control/operator/rds"
	"github.com/meltemi-mesh/meltemi/filter/config"
	client "github.com/meltemi-mesh/meltemi/filter/rds"
)

// What changes is pushed to each of a thousand proxies once, and nothing else is.
func TestAThousandProxies(t *testing.T) {
	const n = 1000
	virtually(t, rds.Options{}, func(b *bed) {
		b.put("a", "one")
		b.put("b", "one")
		b.put("c", "one")
		users := make([]*user, n)
		for i := range users {
			users[i] = b.proxy("a", fmt.Sprint("pod-", i), deltaOwn, b)
		}
		st := b.delta()
		st.ask(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: config.ProxyRoutes, ResourceNamesSubscribe: []string{"a", "b", "c"}})
		first := st.next()
		require.Len(t, first.GetResources(), 3)
		st.ask(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: first.GetNonce()})
		b.put("b", "two")
		second := st.next()
		require.Len(t, second.GetResources(), 1)
		st.ask(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: second.GetNonce()})
		for _, u := range users {
			require.Equal(t, []client.Event{client.Accepted}, u.heard(), "of b they want nothing")
		}
		b.put("a", "two")
		require.Len(t, st.next().GetResources(), 1)
		for _, u := range users {
			require.Equal(t, "two", u.to())
			require.Equal(t, []client.Event{client.Accepted, client.Accepted}, u.heard())
		}
		states := b.server.States("a")
		require.Len(t, states, n+1)
	})
}

// A proxy that takes nothing delays no other, nor what is asked of it; what there is for it
// in the meantime is the last version, and no more.
func TestASlowProxy(t *testing.T) {
	virtually(t, rds.Options{}, func(b *bed) {
		large := func(version int) {
			rc := table("a", fmt.Sprint("v", version))
			rc.Routes[0].Name = strings.Repeat(fmt.Sprint(version%10), 1<<20)
			require.NoError(b, b.store.Put("a", []rds.Resource{{Routes: rc}}))
			synctest.Wait()
		}
		large(0)
		st, err := routeservicev3.NewRouteDiscoveryServiceClient(b.conn()).DeltaRoutes(b.Context())
		require.NoError(t, err)
		require.NoError(t, st.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: config.ProxyRoutes, ResourceNamesSubscribe: []string{"a"}}))
		synctest.Wait() // it does not read, and an answer is more than its window
		quick := b.proxy("a", "quick", deltaOwn, b)
		for version := 1; version <= 20; version++ {
			large(version)
			require.Equal(t, fmt.Sprint("v", version), quick.to())
			require.Len(t, b.server.States("a"), 2)
		}
		got := 0
		for {
			a, err := st.Recv()
			require.NoError(t, err)
			got++
			require.NoError(t, st.Send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: a.GetNonce()}))
			synctest.Wait()
			if b.server.States("a")[0].Current {
				break
			}
		}
		require.Equal(t, 2, got, "the one that was on its way, and the last")
	})
}

// BenchmarkAThousandProxies is how long a change of ten routes takes to reach all of them,
// in real time, and what a proxy takes of memory, both ends of its connection together.
func BenchmarkAThousandProxies(b *testing.B) {
	const n = 1000
	store := rds.NewStore()
	server, l := rds.NewServer(store, rds.Options{Log: logr.Discard()}), bufconn.Listen(64<<10)
	ctx, cancel := context.WithCancel(b.Context())
	var all sync.WaitGroup
	all.Go(func() { _ = server.Serve(ctx, l) })
	put := func(version int) {
		rc := table("a", fmt.Sprint(version))
		for len(rc.Routes) < 10 {
			rc.Routes = append(rc.Routes, rc.Routes[0])
		}
		if err := store.Put("a", []rds.Resource{{Routes: rc}}); err != nil {
			b.Fatal(err)
		}
	}
	put(0)
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before := heap()
	var reached sync.WaitGroup
	reached.Add(n)
	for range n {
		c, err := grpc.NewClient("passthrough:rds", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithReadBufferSize(1<<10),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		st, err := routeservicev3.NewRouteDiscoveryServiceClient(c).DeltaRoutes(ctx)
		if err != nil {
			b.Fatal(err)
		}
		if err := st.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: config.ProxyRoutes, ResourceNamesSubscribe: []string{"a"}}); err != nil {
			b.Fatal(err)
		}
		all.Go(func() {
			for {
				a, err := st.Recv()
				if err != nil || st.Send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: a.GetNonce()}) != nil {
					return
				}
				reached.Done()
			}
		})
	}
	reached.Wait()
	time.Sleep(100 * time.Millisecond) // acknowledgements
	perProxy := float64(heap()-before) / n
	version := 0
	for b.Loop() {
		version++
		reached.Add(n)
		put(version)
		reached.Wait()
	}
	b.ReportMetric(perProxy, "B/proxy")
	cancel()
	all.Wait()
}
