package rds_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/meltemi-mesh/meltemi/control/operator/rds"
	"github.com/meltemi-mesh/meltemi/control/status"
)

// replicas are beds at addresses, 1:1 and so on.
type replicas []*bed

func newReplicas(b *bed, o rds.Options) replicas {
	other := &bed{T: b.T, store: rds.NewStore()}
	other.up(o)
	b.Cleanup(func() { other.down() })
	return replicas{b, other}
}

func (r replicas) dial(ctx context.Context, address string) (net.Conn, error) {
	for i, b := range r {
		if address == fmt.Sprintf("%d:%[1]d", i+1) {
			return b.DialCluster(ctx, "")
		}
	}
	return nil, fmt.Errorf("%s: nobody", address)
}

// board is one of a bed's, and what it has told of.
type board struct {
	*rds.Board
	stop func()

	mu      sync.Mutex
	news    []string
	reports int // how often news came
}

func (r replicas) board(b *bed) *board {
	bo := &board{}
	bo.Board = rds.NewBoard(b.server, func(names []string) {
		bo.mu.Lock()
		defer bo.mu.Unlock()
		bo.news = append(bo.news, names...)
		bo.reports++
	}, grpc.WithContextDialer(r.dial))
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { bo.Run(ctx) })
	bo.stop = func() {
		cancel()
		running.Wait()
	}
	b.Cleanup(bo.stop)
	return bo
}

// told is what it has told of since it was last asked.
func (b *board) told() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	news := b.news
	b.news = nil
	slices.Sort(news)
	return slices.Compact(news)
}

// What the proxies of all replicas say is known in each; of whom nothing can be known it
// is said.
func TestReplicasTellEachOther(t *testing.T) {
	ca, f := newAuthority(t), files(t)
	ca.write(f)
	o := rds.Options{Credentials: rds.NewCredentials(f, logr.Discard())}
	virtually(t, o, func(b *bed) {
		r := newReplicas(b, o)
		as := func(b *bed) secure { return secure{b, []tls.Certificate{ca.sign(inDemo)}} }
		for _, b := range r {
			b.put("a", "one")
			b.put("hidden", "one", "other")
		}
		one := rds.Version(table("a", "one"))
		r[0].proxy("a", "pod-1", deltaOwn, as(r[0]))
		r[1].proxy("a", "pod-2", forms["world http"], as(r[1]))
		r[1].proxy("hidden", "pod-2", deltaOwn, as(r[1]))
		picky := r[1].proxy("a", "pod-3", deltaOwn, as(r[1]))
		picky.refuse("two")
		synctest.Wait()

		bo := r.board(r[0])
		bo.Replicas([]string{"1:1", "2:2", "3:3"})
		settle()
		require.Equal(t, status.Routes{Name: "a", Version: one, Accepted: 3, Unknown: []string{"3:3"}}, bo.Total("a", one))
		bo.Replicas([]string{"1:1", "2:2"})
		require.Contains(t, bo.told(), "a", "all can be judged now")
		require.Empty(t, bo.Total("a", one).Unknown)
		sum := bo.Total("hidden", rds.Version(table("hidden", "one")))
		require.Zero(t, sum.Accepted+sum.Waiting+sum.Refused, "it is not for them")

		// A replica does not know yet of a version: its proxies wait.
		two := rds.Version(table("a", "two"))
		r[0].put("a", "two")
		settle()
		require.Equal(t, []string{"a"}, bo.told())
		require.Equal(t, status.Routes{Name: "a", Version: two, Accepted: 1, Waiting: 2}, bo.Total("a", two))
		r[1].put("a", "two")
		settle()
		sum = bo.Total("a", two)
		reason := sum.Refusals[0].Reason
		require.Contains(t, reason, "not that one")
		require.Equal(t, status.Routes{
			Name: "a", Version: two, Accepted: 2, Refused: 1,
			Refusals: []status.Refusal{{Node: "pod-3", Identity: inDemo, Reason: reason}},
		}, sum)

		// What has ended is forgotten, and asked again.
		r[1].down()
		settle()
		require.Equal(t, status.Routes{Name: "a", Version: two, Accepted: 1, Unknown: []string{"2:2"}}, bo.Total("a", two))
		r[1].up(o)
		settle()
		sum = bo.Total("a", two)
		require.Equal(t, 2, sum.Accepted)
		require.Empty(t, sum.Unknown)
	})
}

// Only replicas may know what all proxies say.
func TestReportsAreForReplicas(t *testing.T) {
	ca, f := newAuthority(t), files(t)
	ca.write(f)
	o := rds.Options{Credentials: rds.NewCredentials(f, logr.Discard())}
	virtually(t, o, func(b *bed) {
		for uri, want := range map[string]codes.Code{
			inDemo: codes.PermissionDenied,
			"spiffe://cluster.local/ns/meltemi-system/sa/meltemi-operator": codes.OK,
		} {
			conn, err := grpc.NewClient("passthrough:x", grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return b.DialCluster(ctx, "") }),
				grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{ca.sign(uri)}})))
			require.NoError(t, err)
			ctx, cancel := context.WithCancel(b.Context())
			st, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/meltemi.operator.Reports/Watch")
			require.NoError(t, err)
			require.NoError(t, st.SendMsg(&emptypb.Empty{}))
			require.NoError(t, st.CloseSend())
			require.Equal(t, want, grpcstatus.Code(st.RecvMsg(&emptypb.Empty{})), uri)
			cancel()
			require.NoError(t, conn.Close())
		}
		// And who pretends to be one learns of nothing, as it is not asked.
		elsewhere, g := newAuthority(t), files(t)
		elsewhere.write(g)
		liar := &bed{T: b.T, store: rds.NewStore()}
		liar.up(rds.Options{Credentials: rds.NewCredentials(g, logr.Discard())})
		b.Cleanup(func() { liar.down() })
		r := replicas{b, liar}
		bo := r.board(b)
		bo.Replicas([]string{"2:2"})
		settle()
		require.Equal(t, []string{"2:2"}, bo.Total("a", "").Unknown)
	})
}

// However many proxies answer, and how often, there is a report a second.
func TestReportsAreFew(t *testing.T) {
	virtually(t, rds.Options{}, func(b *bed) {
		bo := replicas{b}.board(b)
		const n = 100
		for i := range n {
			b.proxy("a", fmt.Sprint("pod-", i), deltaOwn, b)
		}
		b.put("a", "one")
		settle()
		bo.mu.Lock()
		bo.reports = 0
		bo.mu.Unlock()
		b.put("a", "two")
		b.put("a", "three")
		time.Sleep(time.Second)
		synctest.Wait()
		bo.mu.Lock()
		require.LessOrEqual(t, bo.reports, 2)
		bo.mu.Unlock()
		three := rds.Version(table("a", "three"))
		settle()
		require.Equal(t, status.Routes{Name: "a", Version: three, Accepted: n}, bo.Total("a", three))
	})
}
