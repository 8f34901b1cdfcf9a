package istio

import (
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/codecs/dubbo/dubbotest"
	"github.com/meltemi-mesh/meltemi/e2e/internal/mesh"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

var churn = flag.Int("churn", 60, "`changes` of a MetaRouter that TestRoutersChangeUnderLoad makes")

// burst is how many changes are made one after the other, each seen to be where the calls
// are before the next; then as many as fast as the API server takes them, as by somebody who
// applies a folder, of which the last one is.
const burst = 10

// TestRoutersChangeUnderLoad: routes change while the operator is killed, another replica
// takes over, and istiod is away. No call fails, no connection breaks, and what is said last is
// there soon.
func TestRoutersChangeUnderLoad(t *testing.T) {
	o := openOperated(t)
	// The proxy itself says which of the changes it has; all other calls get to servers.
	routes := func(change int, subset string) string {
		return fmt.Sprintf(`  routes:
  - {name: which, match: {attributes: {method: {exact: which}}}, directResponse: {status: DENIED, body: change %d.}}
  - {name: all, route: [{%s}]}
`, change, o.to(subset))
	}
	client, err := world.Client()
	require.NoError(t, err)
	path := "/apis/metaprotocol.aeraki.io/v1alpha1/namespaces/" + o.Name + "/metarouters/greeter"
	change := func(i int, subset string) {
		t.Helper()
		require.NoError(t, client.Apply(path, router("greeter", o.host(), routes(i, subset))))
	}
	o.metaRouter(routes(-1, "v1")) // connections of before are plain TCP, and are closed
	busy, calm := o.consumer(peers.DubboGo, peers.ConsumerOptions{}), o.consumer(peers.DubboGo, peers.ConsumerOptions{})
	open := o.dial(o.client, o.vip+":20880")
	which := hello
	which.Method = "which"
	ask := func(r dubbotest.Request) string {
		open.Ask(1, r)
		return open.Read().Text()
	}
	arrives := func(i int) {
		t.Helper()
		o.Eventually(fmt.Sprintf("change %d", i), func() bool { return strings.Contains(ask(which), fmt.Sprintf("change %d.", i)) })
	}
	arrives(-1)
	answers(t, calm, 100, "v1")
	require.Equal(t, "v1: hello x", ask(hello))

	end, over := make(chan struct{}), make(chan struct{})
	calls, failed := 0, map[string]int{}
	go func() {
		defer close(over)
		for {
			s := load(busy, 2*time.Second).Summary()
			calls += s.Calls
			for text, n := range s.Errors {
				failed[text] += n
			}
			select {
			case <-end:
				return
			default:
			}
		}
	}()
	root := peers.Root()
	replica := o.Pods(mesh.PodSpec{Name: "replica"})[0].Operator(filepath.Join(root, "build", "meltemi-operator"), mesh.CRDs(root))
	before, start, away := o.reloads(o.client), time.Now(), false
	var waits []time.Duration
	for i := range *churn {
		switch i {
		case *churn / 4:
			o.operator.Kill() // who leads
		case *churn / 2:
			o.operator.Start()
			replica.Kill()
			replica.Start()
		case *churn * 5 / 8:
			world.KillIstiod()
			away = true
		case *churn * 7 / 8:
			require.NoError(t, world.StartIstiod())
			away = false
		}
		change(i, []string{"v2", "v1"}[i%2])
		require.Contains(t, ask(hello), ": hello x")
		if !away && (i/burst%2 == 0 || i%burst == burst-1) {
			from := time.Now()
			arrives(i)
			waits = append(waits, time.Since(from))
		}
	}
	change(*churn, "v2")
	o.conditions("greeter", "Accepted=True Programmed=True")
	arrives(*churn)
	took := time.Since(start)
	require.Equal(t, "v2: hello x", ask(hello))
	close(end)
	<-over
	slices.Sort(waits)
	t.Logf("%d changes in %v, of which the client's proxy took %d; they were there after %v, and after %v at most; %d calls",
		*churn, took, o.reloads(o.client)-before, waits[len(waits)/2], waits[len(waits)-1], calls)
	require.Empty(t, failed)
	answers(t, calm, 100, "v2")

	// One that knows nothing of all this finds nothing to do.
	replica.Stop()
	o.operator.Kill()
	o.operator.Start()
	o.Eventually("a look at everything", func() bool {
		return metric(o.operator.Metrics(), `controller_runtime_reconcile_total{controller="hosts",result="success"}`) > `controller_runtime_reconcile_total{controller="hosts",result="success"} 0`
	})
	require.Empty(t, metric(o.operator.Metrics(), "meltemi_operator_writes_total"))
}
