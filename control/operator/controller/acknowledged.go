package controller

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
	"github.com/meltemi-mesh/meltemi/control/operator/rds"
	"github.com/meltemi-mesh/meltemi/control/operator/translate"
	"github.com/meltemi-mesh/meltemi/control/status"
)

const (
	// judgePace is how often it is looked at what proxies have said.
	judgePace = time.Second
	// maxTold is of how many hosts the status is written at a time, however many
	// proxies come, go and answer.
	maxTold = 20
	// recountTime is how long numbers in a status may be old, while it says the same
	// but for them.
	recountTime = time.Minute
)

// judge has the status of routers tell what proxies say of their routes. Only the leader's
// writes.
type judge struct {
	r     *reconciler
	board *rds.Board

	// hearing is for pending, the hosts of which something new is known.
	hearing sync.Mutex
	pending map[string]bool

	mu sync.Mutex
	// queue is where hosts are put whose status is to be written; nil: others lead.
	queue workqueue.TypedRateLimitingInterface[Request]
	told  map[string]told // last, by host
}

// told is what a router's status says.
type told struct {
	versions map[string]string // of the routes, by their names
	metav1.Condition
	at time.Time
}

func newJudge(r *reconciler, s *rds.Server) *judge {
	j := &judge{r: r, pending: map[string]bool{}, told: map[string]told{}}
	j.board = rds.NewBoard(s, j.heard)
	return j
}

// heard is told of what routes something new is known.
func (j *judge) heard(names []string) {
	j.hearing.Lock()
	defer j.hearing.Unlock()
	for _, name := range names {
		if i := strings.LastIndexByte(name, '_'); i >= 0 {
			j.pending[name[:i]] = true
		}
	}
}

// lead has it put hosts into the queue of those whose status is to be written; nil: others
// lead, who may have statuses say something else.
func (j *judge) lead(q workqueue.TypedRateLimitingInterface[Request]) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.queue = q
	clear(j.told)
}

// run looks at what proxies have said, until ctx is done.
func (j *judge) run(ctx context.Context) {
	t := time.NewTicker(judgePace)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			j.look()
		}
	}
}

func (j *judge) look() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.queue == nil {
		return
	}
	j.hearing.Lock()
	hosts := j.pending
	j.pending = map[string]bool{}
	j.hearing.Unlock()
	written := 0
	for host := range hosts {
		before, ok := j.told[host]
		if !ok {
			delete(hosts, host) // what nothing was said of yet will be judged as it is then
			continue
		}
		c := j.verdict(before.versions, &before.Condition)
		switch {
		case same(c, before.Condition):
			delete(hosts, host)
		case c.Status == before.Status && c.Reason == before.Reason && time.Since(before.at) < recountTime:
			// Later, with what else there will be by then.
		case written < maxTold:
			written++
			delete(hosts, host)
			j.queue.Add(Request{Host: host})
		}
	}
	j.hearing.Lock()
	defer j.hearing.Unlock()
	maps.Copy(j.pending, hosts)
}

// forget a host that has no routes by RDS.
func (j *judge) forget(host string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.told, host)
}

func same(a, b metav1.Condition) bool {
	return a.Status == b.Status && a.Reason == b.Reason && a.Message == b.Message
}

// condition is what the status of a host's router shall say.
func (j *judge) condition(host string, router *api.MetaRouter, out *translate.Output) metav1.Condition {
	versions := make(map[string]string, len(out.Tables))
	for _, t := range out.Tables {
		versions[t.GetName()] = rds.Version(t)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	before := meta.FindStatusCondition(router.Status.Conditions, api.Acknowledged)
	last, again := j.told[host]
	if again = again && maps.Equal(versions, last.versions); again {
		before = &last.Condition
	}
	c := j.verdict(versions, before)
	if again && c.Status == before.Status && c.Reason == before.Reason && time.Since(last.at) < recountTime {
		return last.Condition
	}
	j.told[host] = told{versions, c, time.Now()}
	return c
}

// verdict is what proxies say of versions of routes. What was said of them before stays
// while not all replicas have told, and of those that all have accepted while nobody
// refuses them: who comes later gets no others. mu is held.
func (j *judge) verdict(versions map[string]string, before *metav1.Condition) metav1.Condition {
	var sum status.Routes
	for _, name := range slices.Sorted(maps.Keys(versions)) {
		s := j.board.Total(name, versions[name])
		sum.Add(&s)
		sum.Unknown = s.Unknown // of each name the same
	}
	version := "version " + status.Short(versions)
	stays := before != nil && strings.HasPrefix(before.Message, version+":")
	c := metav1.Condition{Type: api.Acknowledged, Status: metav1.ConditionUnknown, Reason: reasonWaiting}
	switch {
	case stays && len(sum.Unknown) > 0, stays && sum.Refused == 0 && before.Status == metav1.ConditionTrue:
		return *before
	case len(sum.Unknown) > 0:
		c.Message = fmt.Sprintf("%s: what the proxies of %s say is not known", version, strings.Join(sum.Unknown, ", "))
		return c
	case sum.Refused > 0:
		c.Status, c.Reason = metav1.ConditionFalse, reasonRefused
	case sum.Waiting > 0:
	case sum.Accepted == 0:
		c.Reason = reasonNoProxies
	default:
		c.Status, c.Reason = metav1.ConditionTrue, reasonAccepted
	}
	c.Message = version + ": " + sum.Counts()
	for _, f := range sum.Refusals[:min(len(sum.Refusals), rds.MaxRefusals)] {
		c.Message += fmt.Sprintf("\n%s: %s", f.Proxy(), f.Reason)
	}
	return c
}

// findReplicas has the board know where the replicas are, by the EndpointSlices of their
// Service.
func (j *judge) findReplicas(ctx context.Context, c cache.Cache) error {
	name, namespace, ok := j.r.ownService()
	if !ok {
		return nil
	}
	_, port, err := net.SplitHostPort(j.r.RDS.Address)
	if err != nil {
		return err
	}
	informer, err := c.GetInformer(ctx, &discovery.EndpointSlice{})
	if err != nil {
		return err
	}
	look := func(any) {
		list := &discovery.EndpointSliceList{}
		j.r.list(ctx, list, client.InNamespace(namespace), client.MatchingFields{byService: name})
		var addresses []string
		for _, s := range list.Items {
			for _, e := range s.Endpoints {
				if e.Conditions.Ready != nil && !*e.Conditions.Ready {
					continue
				}
				for _, a := range e.Addresses {
					addresses = append(addresses, net.JoinHostPort(a, port))
				}
			}
		}
		j.board.Replicas(addresses)
	}
	_, err = informer.AddEventHandler(toolscache.FilteringResourceEventHandler{
		FilterFunc: func(o any) bool {
			if gone, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
				o = gone.Obj
			}
			s, ok := o.(*discovery.EndpointSlice)
			return ok && s.Namespace == namespace && s.Labels[discovery.LabelServiceName] == name
		},
		Handler: toolscache.ResourceEventHandlerFuncs{AddFunc: look, UpdateFunc: func(_, o any) { look(o) }, DeleteFunc: look},
	})
	return err
}

// ownService is the one before the replicas.
func (r *reconciler) ownService() (name, namespace string, ok bool) {
	short, ok := strings.CutSuffix(r.RDS.Service.Host, ".svc."+r.Domain)
	if !ok {
		return "", "", false
	}
	return strings.Cut(short, ".")
}
