package controller

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	election "sigs.k8s.io/controller-runtime/pkg/leaderelection"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/recorder"
)

const leaseName = "meltemi-operator"

// Who does not reach the API server for renewDeadline writes no more, some seconds before
// others may take the lease, which is leaseTime after it was last renewed.
const (
	leaseTime     = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
	releaseTime   = 5 * time.Second
)

// leader has the reconciler work while this replica may write: for terms, of which each
// ends with the lease, as by an API server that is away. What reads and serves goes on
// beside it, since proxies' streams must not end with a lease.
type leader struct {
	r     *reconciler
	lock  resourcelock.Interface // nil: there are no other replicas
	ready chan struct{}          // closed when there is a queue
	queue workqueue.TypedRateLimitingInterface[Request]

	leads atomic.Bool     // what happens is put into the queue
	mu    sync.RWMutex    // held to read by who writes
	term  context.Context // nil: others lead
}

func newLeader(r *reconciler, config *rest.Config, events recorder.Provider) (*leader, error) {
	l := &leader{r: r, ready: make(chan struct{})}
	if r.Namespace == "" {
		return l, nil
	}
	var err error
	l.lock, err = election.NewResourceLock(rest.CopyConfig(config), events, election.Options{
		LeaderElection: true, LeaderElectionNamespace: r.Namespace, LeaderElectionID: leaseName, RenewDeadline: renewDeadline,
	})
	return l, err
}

// queues is told where to put what is to be done.
func (l *leader) queues(_ context.Context, q workqueue.TypedRateLimitingInterface[Request]) error {
	l.queue = q
	close(l.ready)
	return nil
}

// watched has only who leads work on what happens. When that is another replica one day,
// it looks at everything.
func (l *leader) watched() predicate.Predicate {
	return predicate.NewPredicateFuncs(func(client.Object) bool { return l.leads.Load() })
}

// Reconcile does what there is to be done while this replica leads.
func (l *leader) Reconcile(ctx context.Context, q Request) (ctrl.Result, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.term == nil {
		return ctrl.Result{}, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.term, cancel)()
	result, err := l.r.Reconcile(ctx, q)
	if l.term.Err() != nil {
		return ctrl.Result{}, nil
	}
	return result, err
}

// NeedLeaderElection implements manager.LeaderElectionRunnable: it is what elects.
func (*leader) NeedLeaderElection() bool { return false }

// Start leads whenever it can, until ctx is done.
func (l *leader) Start(ctx context.Context) error {
	select {
	case <-l.ready:
	case <-ctx.Done():
		return nil
	}
	if l.lock == nil {
		l.lead(ctx, ctx)
		return nil
	}
	for ctx.Err() == nil {
		if err := l.elect(ctx); err != nil {
			return err
		}
	}
	l.release()
	return nil
}

// elect waits for the lease, and leads until it is lost, or ctx is done.
func (l *leader) elect(ctx context.Context) error {
	elected := make(chan context.Context, 1)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Name: leaseName, Lock: l.lock, LeaseDuration: leaseTime, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(term context.Context) { elected <- term },
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return err
	}
	// It is renewed until nobody writes any more.
	renewing, stop := context.WithCancel(logr.NewContext(context.WithoutCancel(ctx), l.r.log))
	var electing sync.WaitGroup
	electing.Go(func() { elector.Run(renewing) })
	defer electing.Wait()
	defer stop()
	select {
	case term := <-elected:
		l.lead(ctx, term)
	case <-ctx.Done():
	}
	return nil
}

// lead works until the term or ctx is done, and nobody writes any more.
func (l *leader) lead(ctx, term context.Context) {
	term, cancel := context.WithCancel(term)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	l.r.begin()
	if l.r.judge != nil {
		l.r.judge.lead(l.queue)
		defer l.r.judge.lead(nil)
	}
	l.mu.Lock()
	l.term = term
	l.mu.Unlock()
	l.leads.Store(true)
	for _, q := range l.r.everything(term) {
		l.queue.Add(q)
	}
	<-term.Done()
	l.leads.Store(false)
	l.mu.Lock()
	l.term = nil
	l.mu.Unlock()
}

// release gives the lease away, so that the next one need not wait. client-go's own way
// does so as well with a lease that is lost, which may be another one's by then.
func (l *leader) release() {
	ctx, cancel := context.WithTimeout(context.Background(), releaseTime)
	defer cancel()
	record, _, err := l.lock.Get(ctx)
	if err != nil || record.HolderIdentity != l.lock.Identity() {
		return
	}
	now := metav1.Now()
	free := resourcelock.LeaderElectionRecord{LeaderTransitions: record.LeaderTransitions, LeaseDurationSeconds: 1, RenewTime: now, AcquireTime: now}
	if err := l.lock.Update(ctx, free); err != nil {
		l.r.log.Error(err, "the lease is not released, and ends by itself")
	}
}
