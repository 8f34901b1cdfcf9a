package istio

import (
	"flag"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/meltemi-mesh/meltemi/e2e/internal/mesh"
	"github.com/meltemi-mesh/meltemi/e2e/internal/peers"
)

var churn = flag.Int("churn", 60, "`changes` of a MetaRouter that TestRoutersChangeUnderLoad makes; a thousand take minutes")

// TestRoutersChangeUnderLoad: routes change as fast as they can be applied, while the
// operator is killed, another replica takes over, and istiod is away. No call fails, no
// connection breaks, and in the end all is as the last change says.
func TestRoutersChangeUnderLoad(t *testing.T) {
	o := openOperated(t)
	routes := func(subset string) string { return "  routes: [{name: all, route: [{" + o.to(subset) + "}]}]\n" }
	o.metaRouter(routes("v1"))
	busy, calm := o.consumer(peers.DubboGo, peers.ConsumerOptions{}), o.consumer(peers.DubboGo, peers.ConsumerOptions{})
	answers(t, calm, 100, "v1")
	open := o.dial(o.client, o.vip+":20880")
	ask := func() string {
		open.Ask(1, hello)
		return open.Read().Text()
	}
	require.Equal(t, "v1: hello x", ask())

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
	before, start := o.reloads(o.client), time.Now()
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
		case *churn * 7 / 8:
			require.NoError(t, world.StartIstiod())
		}
		o.Apply(router("greeter", o.host(), routes([]string{"v2", "v1"}[i%2])))
		require.NotEmpty(t, ask())
	}
	took := time.Since(start)
	o.Apply(router("greeter", o.host(), routes("v2")))
	o.conditions("greeter", "Accepted=True Programmed=True")
	o.Eventually("the last routes", func() bool { return ask() == "v2: hello x" })
	close(end)
	<-over
	t.Logf("%d changes in %v, of which the client's proxy took %d; %d calls", *churn, took, o.reloads(o.client)-before, calls)
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
