package controller

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	routeservicev3 "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"

	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
	"github.com/meltemi-mesh/meltemi/control/operator/rds"
	"github.com/meltemi-mesh/meltemi/control/operator/translate"
	"github.com/meltemi-mesh/meltemi/filter/config"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// queued are the hosts whose status is to be written.
type queued struct {
	workqueue.TypedRateLimitingInterface[Request]
	mu    sync.Mutex
	hosts []string
}

func (q *queued) Add(r Request) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.hosts = append(q.hosts, r.Host)
}

func (q *queued) take() []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	hosts := q.hosts
	q.hosts = nil
	return hosts
}

// judged is a judge of a replica in virtual time, and what it wants to be written.
type judged struct {
	*testing.T
	*judge
	queued
	store  *rds.Store
	dial   func(context.Context, string) (net.Conn, error)
	router *api.MetaRouter
}

func judging(t *testing.T, f func(j *judged)) {
	synctest.Test(t, func(t *testing.T) {
		j := &judged{T: t, store: rds.NewStore(), router: &api.MetaRouter{}}
		server := rds.NewServer(j.store, rds.Options{Log: logr.Discard()})
		j.judge = newJudge(&reconciler{}, server)
		j.lead(&j.queued)
		l := bufconn.Listen(64 << 10)
		j.dial = func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = server.Serve(ctx, l) })
		running.Go(func() { j.board.Run(ctx) })
		running.Go(func() { j.run(ctx) })
		t.Cleanup(func() {
			cancel()
			running.Wait()
		})
		f(j)
	})
}

// put has a host's routes be of a version, and tells what the status shall say.
func (j *judged) put(host, route string) metav1.Condition {
	j.Helper()
	table := &routev1alpha.RouteConfiguration{Name: host + "_1", Routes: []*routev1alpha.Route{{Name: route}}}
	require.NoError(j, j.store.Put(host, []rds.Resource{{Routes: table}}))
	c := j.says(host, table)
	synctest.Wait()
	return c
}

func (j *judged) says(host string, table *routev1alpha.RouteConfiguration) metav1.Condition {
	return j.condition(host, j.router, &translate.Output{Tables: []*routev1alpha.RouteConfiguration{table}})
}

// proxy asks for a host's routes. What it says is the error's text, "" for none.
func (j *judged) proxy(node, host string) (says func(string)) {
	j.Helper()
	conn, err := grpc.NewClient("passthrough:x", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(j.dial))
	require.NoError(j, err)
	ctx, cancel := context.WithCancel(j.Context())
	st, err := routeservicev3.NewRouteDiscoveryServiceClient(conn).DeltaRoutes(ctx)
	require.NoError(j, err)
	j.Cleanup(func() {
		cancel()
		conn.Close()
	})
	require.NoError(j, st.Send(&discoveryv3.DeltaDiscoveryRequest{
		Node: &corev3.Node{Id: node}, TypeUrl: config.ProxyRoutes, ResourceNamesSubscribe: []string{host + "_1"},
	}))
	synctest.Wait()
	return func(text string) {
		j.Helper()
		a, err := st.Recv()
		require.NoError(j, err)
		q := &discoveryv3.DeltaDiscoveryRequest{ResponseNonce: a.GetNonce()}
		if text != "" {
			q.ErrorDetail = &rpcstatus.Status{Code: 3, Message: text}
		}
		require.NoError(j, st.Send(q))
		synctest.Wait()
	}
}

// soon are the hosts whose status is to be written within some seconds.
func (j *judged) soon() []string {
	time.Sleep(4 * time.Second)
	synctest.Wait()
	return j.take()
}

// TestAStatusFollowsWhatProxiesSay: it is written when it becomes another one, and not
// when proxies come and go.
func TestAStatusFollowsWhatProxiesSay(t *testing.T) {
	judging(t, func(j *judged) {
		is := func(c metav1.Condition, status metav1.ConditionStatus, reason string) {
			t.Helper()
			require.Equal(t, status, c.Status, c)
			require.Equal(t, reason, c.Reason, c)
		}
		again := func() metav1.Condition {
			j.judge.mu.Lock()
			defer j.judge.mu.Unlock()
			before := j.told["a"]
			return j.verdict(before.versions, &before.Condition)
		}
		synctest.Wait()
		is(j.put("a", "one"), metav1.ConditionUnknown, reasonNoProxies)
		first := j.proxy("first", "a")
		first("")
		require.Equal(t, []string{"a"}, j.soon())
		is(j.put("a", "one"), metav1.ConditionTrue, reasonAccepted)

		second := j.proxy("second", "a")
		require.Empty(t, j.soon(), "who comes later")
		is(again(), metav1.ConditionTrue, reasonAccepted)
		second("")
		require.Empty(t, j.soon())

		is(j.put("a", "two"), metav1.ConditionUnknown, reasonWaiting)
		first("")
		require.Empty(t, j.soon(), "not all yet")
		second("not this one")
		require.Equal(t, []string{"a"}, j.soon())
		c := j.put("a", "two")
		is(c, metav1.ConditionFalse, reasonRefused)
		require.Contains(t, c.Message, ": accepted by 1, refused by 1, not answered by 0\nsecond: not this one")

		// Further ones are counted later.
		third := j.proxy("third", "a")
		third("nor I")
		require.Empty(t, j.soon())
		require.Equal(t, c.Message, j.put("a", "two").Message)
		time.Sleep(recountTime)
		require.Equal(t, []string{"a"}, j.soon())
		require.Contains(t, j.put("a", "two").Message, "refused by 2")

		is(j.put("a", "three"), metav1.ConditionUnknown, reasonWaiting)
		for _, p := range []func(string){first, second, third} {
			p("")
		}
		require.Equal(t, []string{"a"}, j.soon())
		is(j.put("a", "three"), metav1.ConditionTrue, reasonAccepted)
		j.forget("a")
		require.Empty(t, j.told)
	})
}

// TestNoStormOfStatuses: many hosts whose proxies answer at once are written one after the
// other.
func TestNoStormOfStatuses(t *testing.T) {
	judging(t, func(j *judged) {
		synctest.Wait()
		const n = 3 * maxTold
		for i := range n {
			host := fmt.Sprint("host-", i)
			j.put(host, "one")
			j.proxy("a", host)("")
		}
		written := map[string]bool{}
		for range 8 {
			time.Sleep(judgePace)
			synctest.Wait()
			hosts := j.take()
			require.LessOrEqual(t, len(hosts), maxTold)
			for _, h := range hosts {
				require.False(t, written[h], h)
				written[h] = true
			}
		}
		require.Len(t, written, n)
	})
}
