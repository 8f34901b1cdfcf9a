package controller

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/meltemi-mesh/meltemi/control/ir"
	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
	"github.com/meltemi-mesh/meltemi/control/operator/rds"
	"github.com/meltemi-mesh/meltemi/control/operator/translate"
)

// RDS says how routes are served.
type RDS struct {
	// Address to listen at; "": none are served.
	Address string
	// Service is where proxies find it: the operator's own host, and the port of that.
	Service ir.Destination
	// Files are the server's credentials. Insecure has it serve without, instead.
	Files    rds.Files
	Insecure bool
	// TrustDomain that proxies must be of; "": any that the roots vouch for.
	TrustDomain string

	listen func() (net.Listener, error) // nil: at the address
}

func init() { metrics.Registry.MustRegister(rds.Metrics()...) }

// publisher keeps what is served as the objects say. It does so in all replicas.
type publisher struct {
	r           *reconciler
	store       *rds.Store
	credentials *rds.Credentials // nil: there is no TLS
	// mu keeps what is older from being put behind what is newer.
	mu        sync.Mutex
	listening atomic.Bool
}

// serveRoutes adds to the manager what serves routes.
func (r *reconciler) serveRoutes(m manager.Manager) error {
	if r.RDS.Address == "" {
		return nil
	}
	p := &publisher{r: r, store: rds.NewStore()}
	if !r.RDS.Insecure {
		p.credentials = rds.NewCredentials(r.RDS.Files, r.log)
	}
	r.routes = rds.NewServer(p.store, rds.Options{Credentials: p.credentials, TrustDomain: r.RDS.TrustDomain, Log: r.log})
	r.judge = newJudge(r, r.routes)
	everywhere := false
	c, err := controller.NewTyped("routes", m, controller.TypedOptions[Request]{Reconciler: p, NeedLeaderElection: &everywhere, SkipNameValidation: new(true)})
	if err != nil {
		return err
	}
	for _, o := range said() {
		if err := c.Watch(source.TypedKind(m.GetCache(), o, r.handler(o), relevant)); err != nil {
			return err
		}
	}
	if err := m.AddReadyzCheck("rds", p.ready); err != nil {
		return err
	}
	if err := r.judge.findReplicas(context.Background(), m.GetCache()); err != nil {
		return err
	}
	return m.Add(p)
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (*publisher) NeedLeaderElection() bool { return false }

// Start serves, as soon as there is all that is to be served, until ctx is done. What fails
// before, as by a mesh config that nobody can read, fails for those who serve already, too,
// and they go on: neither does it end this replica, which is not ready before it is mended.
func (p *publisher) Start(ctx context.Context) error {
	for delay := firstDelay; ; delay = min(2*delay, maxDelay) {
		err := p.publishAll(ctx)
		if err == nil {
			break
		}
		p.r.log.Error(err, "routes are not served before there are those of all hosts")
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil
		}
	}
	listen := p.r.RDS.listen
	if listen == nil {
		listen = func() (net.Listener, error) { return net.Listen("tcp", p.r.RDS.Address) }
	}
	l, err := listen()
	if err != nil {
		return err
	}
	if p.credentials != nil {
		if err := p.credentials.Ready(); err != nil {
			p.r.log.Error(err, "nobody can be served without a certificate")
		}
	}
	p.listening.Store(true)
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { p.r.judge.board.Run(ctx) })
	running.Go(func() { p.r.judge.run(ctx) })
	return p.r.routes.Serve(ctx, l)
}

// publishAll has there be what is to be served of all hosts.
func (p *publisher) publishAll(ctx context.Context) error {
	routers := &api.MetaRouterList{}
	if err := p.r.List(ctx, routers, client.UnsafeDisableDeepCopy); err != nil {
		return err
	}
	for i := range routers.Items {
		if err := p.publish(ctx, p.r.routerHost(&routers.Items[i])); err != nil {
			return err
		}
	}
	return nil
}

// ready is a replica that serves, for which it must have a certificate: the sidecar from
// which that comes may start later.
func (p *publisher) ready(*http.Request) error {
	if !p.listening.Load() {
		return errors.New("routes are not served yet")
	}
	if p.credentials != nil {
		return p.credentials.Ready()
	}
	return nil
}

// Reconcile does what there is to be done.
func (p *publisher) Reconcile(ctx context.Context, q Request) (ctrl.Result, error) {
	if q.Host == "" {
		return ctrl.Result{}, nil
	}
	return ctrl.Result{}, p.publish(ctx, q.Host)
}

// publish has what is served of a host be what the objects say.
func (p *publisher) publish(ctx context.Context, host string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	routers := &api.MetaRouterList{}
	if err := p.r.List(ctx, routers, client.MatchingFields{byHost: host}); err != nil {
		return err
	}
	var all []*api.MetaRouter
	for i := range routers.Items {
		all = append(all, &routers.Items[i])
	}
	if !translate.ByRDS(translate.Oldest(all)) {
		return p.store.Put(host, nil)
	}
	in, err := p.r.gather(ctx, host)
	if err != nil {
		return err
	}
	out := translate.Translate(in)
	if !out.Complete {
		return nil // what was before stays
	}
	var resources []rds.Resource
	for _, t := range out.Tables {
		resources = append(resources, rds.Resource{Routes: t, Namespaces: out.Readers})
	}
	return p.store.Put(host, resources)
}

// told serves what the proxies of this replica have said of routes: /rds?name=HOST_PORT.
func (r *reconciler) told(w http.ResponseWriter, q *http.Request) {
	name := q.URL.Query().Get("name")
	if r.routes == nil || name == "" {
		http.Error(w, "want /rds?name=HOST_PORT of an operator that serves routes", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	states := r.routes.States(name)
	if states == nil {
		states = []rds.State{}
	}
	_ = json.NewEncoder(w).Encode(states) // who has gone needs no answer
}
