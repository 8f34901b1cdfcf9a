package controller

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	networking "istio.io/api/networking/v1alpha3"
	istio "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	api "github.com/meltemi-mesh/meltemi/control/operator/api/metaprotocol/v1alpha1"
)

// world is an API server in virtual time, with a user and operators.
type world struct {
	*testing.T
	*apiServer
	scheme *runtime.Scheme
	user   client.Client
}

func virtually(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, apiServer: newAPIServer()}
		var err error
		w.scheme, err = Scheme()
		require.NoError(t, err)
		w.user = w.apiServer.user(t)
		f(w)
	})
}

// replica is an operator.
type replica struct {
	cancel context.CancelFunc
	done   chan error
}

func (w *world) start(name string, o Options) *replica {
	w.Helper()
	o.RootNamespace, o.Domain, o.Metrics, o.Health = "istio-system", "cluster.local", "0", "0"
	m, err := New(w.config(name), o, logr.Discard())
	require.NoError(w, err)
	ctx, cancel := context.WithCancel(context.Background())
	r := &replica{cancel, make(chan error, 1)}
	go func() { r.done <- m.Start(ctx) }()
	return r
}

func (r *replica) stop() error {
	r.cancel()
	return <-r.done
}

// settle lets all happen that will, also what fails and is tried again.
func settle() {
	time.Sleep(5 * time.Minute)
	synctest.Wait()
}

// story is what a user does, each step of it, with something of all that is written:
// filters of clients in the root namespace and in others, of servers, of gateways, a
// VirtualService, conditions.
func story() (before []client.Object, steps []func(c client.Client) error) {
	o := shopOf(1)
	service, router := o[0], o[3].(*api.MetaRouter)
	meta := metav1.ObjectMeta{Namespace: "team-1", Name: "edge"}
	gateway := &istio.Gateway{ObjectMeta: meta, Spec: networking.Gateway{
		Selector: map[string]string{"istio": "gateway"},
		Servers:  []*networking.Server{{Hosts: []string{"*"}, Port: &networking.Port{Name: "tcp-metaprotocol-dubbo", Number: 20880, Protocol: "TCP"}}},
	}}
	younger := router.DeepCopy()
	younger.Name = "younger"
	update := func(change func(r *api.MetaRouterSpec)) func(c client.Client) error {
		return func(c client.Client) error {
			r := &api.MetaRouter{}
			if err := c.Get(context.Background(), client.ObjectKeyFromObject(router), r); err != nil {
				return err
			}
			change(&r.Spec)
			return c.Update(context.Background(), r)
		}
	}
	remove := func(o client.Object) func(c client.Client) error {
		return func(c client.Client) error { return c.Delete(context.Background(), o.DeepCopyObject().(client.Object)) }
	}
	create := func(o client.Object) func(c client.Client) error {
		return func(c client.Client) error { return c.Create(context.Background(), o.DeepCopyObject().(client.Object)) }
	}
	return []client.Object{o[1], o[2], gateway, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istio"}}},
		[]func(c client.Client) error{
			create(service),
			create(router),
			update(func(s *api.MetaRouterSpec) { s.Routes = s.Routes[:1] }),
			update(func(s *api.MetaRouterSpec) { s.Gateways = []string{"edge"} }),
			create(younger),
			update(func(s *api.MetaRouterSpec) { s.Gateways, s.ExportTo = nil, []string{".", "team-2"} }),
			update(func(s *api.MetaRouterSpec) { s.Routes[0].Route[0].Destination.Host = "nobody.example" }),
			remove(service),
			remove(router),
			create(service),
		}
}

// TestWorkGrowsWithTheChange: whatever the number of services, a start asks for nothing to
// be written that is as it shall be, and a change has that host looked at and its filters
// written.
func TestWorkGrowsWithTheChange(t *testing.T) {
	for _, services := range []int{1, 20} {
		virtually(t, func(w *world) {
			for i := range services {
				for _, o := range shopOf(i) {
					w.put(w, w.scheme, o)
				}
			}
			require.NoError(w, func() error { r := w.start("first", Options{}); settle(); return r.stop() }())
			require.Len(w, w.writes, 3*services+2, "two filters and a status of each, the loopback listener in two forms")
			asked := []string{}
			var mu sync.Mutex
			w.before = func(q *http.Request) error {
				mu.Lock()
				defer mu.Unlock()
				if q.Header.Get("User-Agent") == "second" {
					asked = append(asked, q.Method+" "+q.URL.Path)
				}
				return nil
			}
			r := w.start("second", Options{})
			defer func() { require.NoError(w, r.stop()) }()
			settle()
			require.Empty(w, asked)
			before := len(w.writes)
			router := &api.MetaRouter{}
			require.NoError(w, w.user.Get(w.Context(), client.ObjectKey{Namespace: "team-0", Name: "orders-0"}, router))
			router.Spec.Routes[3].Route[0].Weight, router.Spec.Routes[3].Route[1].Weight = 50, 50
			require.NoError(w, w.user.Update(w.Context(), router))
			settle()
			require.Len(w, w.writes, before+3, "the user's, a filter, a status")
			slices.Sort(asked) // a cache that is behind has a status asked for twice
			require.Equal(w, []string{
				"PATCH /apis/metaprotocol.aeraki.io/v1alpha1/namespaces/team-0/metarouters/orders-0/status",
				"PATCH /apis/networking.istio.io/v1alpha3/namespaces/istio-system/envoyfilters/meltemi-outbound-orders-0.team-0-20880",
			}, slices.Compact(asked))
		})
	}
}

// TestKilledAtEachStep: whatever write an operator dies at, before it has been heard or
// before it knows that it has, the next one ends where an undisturbed one does, after each
// step of the story.
func TestKilledAtEachStep(t *testing.T) {
	before, steps := story()
	want := make([]map[string]any, len(steps))
	written := make([]int, len(steps))
	run := func(t *testing.T, each func(w *world, step int)) {
		virtually(t, func(w *world) {
			for _, o := range before {
				w.put(t, w.scheme, o)
			}
			for i, step := range steps {
				require.NoError(t, step(w.user))
				each(w, i)
			}
		})
	}
	run(t, func(w *world, i int) {
		from := len(w.writes)
		r := w.start("one", Options{})
		settle()
		require.NoError(w, r.stop())
		want[i], written[i] = w.state(), len(w.writes)-from
	})
	require.Greater(t, slices.Max(written), 4)
	run(t, func(w *world, i int) { // nothing is different for who has been there all the time
		for k := range written[i] {
			for _, heard := range []bool{false, true} {
				restore := w.save()
				n, dead := 0, errors.New("the process is dead")
				dies := func(*http.Request) error {
					if n++; n > k {
						return dead
					}
					return nil
				}
				if heard {
					w.after = dies
					w.before = func(*http.Request) error {
						if n > k {
							return dead
						}
						return nil
					}
				} else {
					w.before = dies
				}
				r := w.start("killed", Options{})
				time.Sleep(time.Second)
				synctest.Wait()
				_ = r.stop()
				w.before, w.after = nil, nil
				r = w.start("next", Options{})
				settle()
				require.NoError(w, r.stop())
				require.Equal(w, want[i], w.state(), "step %d, write %d, heard: %v", i, k, heard)
				restore()
			}
		}
		r := w.start("one", Options{})
		settle()
		require.NoError(w, r.stop())
		require.Equal(w, want[i], w.state())
	})
}

// TestOutages: an API server that is away, and one that has forgotten what a watch asks
// for, change nothing of where an operator ends that runs on.
func TestOutages(t *testing.T) {
	before, steps := story()
	run := func(t *testing.T, outage func(w *world, step func())) (states []map[string]any) {
		virtually(t, func(w *world) {
			for _, o := range before {
				w.put(t, w.scheme, o)
			}
			r := w.start("one", Options{})
			settle()
			for _, step := range steps {
				outage(w, func() { require.NoError(t, step(w.user)) })
				time.Sleep(time.Minute)
				synctest.Wait()
				states = append(states, w.state())
			}
			require.NoError(t, r.stop())
		})
		return states
	}
	want := run(t, func(_ *world, step func()) { step() })
	for name, outage := range map[string]func(w *world, step func()){
		"forgetful":                  func(w *world, step func()) { step(); w.forget() },
		"forgetful, before a change": func(w *world, step func()) { w.forget(); step() },
		"away": func(w *world, step func()) {
			// What the user says is said elsewhere in the meantime.
			w.away(true)
			time.Sleep(time.Minute)
			w.away(false)
			step()
			w.away(true)
			time.Sleep(5 * time.Minute)
			w.forget()
			w.away(false)
		},
		"refusing": func(w *world, step func()) {
			var n atomic.Int32
			step()
			w.ask(func(*http.Request) error {
				if n.Add(1)%3 != 0 {
					return errors.New("overloaded")
				}
				return nil
			})
			settle()
			w.ask(nil)
		},
		"refusing all for long": func(w *world, step func()) {
			step()
			w.ask(func(*http.Request) error { return errors.New("the webhook is away") })
			time.Sleep(15 * time.Minute)
			w.ask(nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := run(t, outage)
			for i := range want {
				require.Equal(t, want[i], got[i], "step %d", i)
			}
		})
	}
}

// leadersWrite holds that nobody writes but who was the last to write the lease.
func (w *world) leadersWrite() {
	leader := ""
	w.after = func(q *http.Request) error {
		switch {
		case strings.Contains(q.URL.Path, "/leases"):
			leader = q.UserAgent()
		case q.UserAgent() != "user" && !strings.Contains(q.URL.Path, "/events"):
			assert.Equal(w, leader, q.UserAgent(), q.URL.Path)
		}
		return nil
	}
}

// TestTwoReplicas: one of them writes, whoever it is, and after each step of the story the
// state is that of one alone, however often the leader changes, ends, or is cut off.
func TestTwoReplicas(t *testing.T) {
	before, steps := story()
	virtually(t, func(w *world) {
		for _, o := range before {
			w.put(t, w.scheme, o)
		}
		var cut atomic.Value // who does not reach the API server to say that it leads
		w.before = func(q *http.Request) error {
			if strings.Contains(q.URL.Path, "/leases") && q.UserAgent() == cut.Load() {
				return errors.New("no route to host")
			}
			return nil
		}
		w.leadersWrite()
		replicas := map[string]*replica{}
		for _, name := range []string{"a", "b"} {
			replicas[name] = w.start(name, Options{Namespace: "meltemi-system"})
		}
		settle()
		lost := "" // who leads no more, and has not ended
		for i, step := range steps {
			from := len(w.writes)
			require.NoError(t, step(w.user))
			settle()
			writers := map[string]bool{}
			for _, x := range w.writes[from:] {
				if x.who != "user" {
					writers[x.who] = true
				}
			}
			require.Len(t, writers, 1, "step %d: %v", i, w.writes[from:])
			var leader string
			for leader = range writers {
			}
			require.NotEqual(t, lost, leader)
			if lost = ""; i%2 == 1 {
				lost = leader
				cut.Store(leader)
				time.Sleep(time.Minute)
				cut.Store("")
				continue
			}
			require.NoError(t, replicas[leader].stop())
			replicas[leader] = w.start(leader, Options{Namespace: "meltemi-system"})
		}
		settle()
		got := w.state()
		for _, r := range replicas {
			require.NoError(t, r.stop())
		}
		r := w.start("one", Options{})
		settle()
		require.NoError(t, r.stop())
		require.Equal(t, w.state(), got)
	})
}

// TestAStaleLeaderChangesNothing: what an operator sends that does not know yet that
// another one leads, and has, is refused, or repaired.
func TestAStaleLeaderChangesNothing(t *testing.T) {
	before, steps := story()
	for at, name := range map[int]string{2: "an update", 4: "a condition", 5: "a removal", 7: "the last removal"} {
		t.Run(name, func(t *testing.T) {
			virtually(t, func(w *world) {
				for _, o := range before {
					w.put(t, w.scheme, o)
				}
				for _, step := range steps[:at] {
					require.NoError(t, step(w.user))
				}
				stuck, gate := 0, make(chan struct{})
				w.before = func(q *http.Request) error {
					if q.UserAgent() == "stale" {
						stuck++
						<-gate // on its way, whatever becomes of who has sent it
					}
					return nil
				}
				stale := w.start("settled", Options{})
				settle()
				require.NoError(t, stale.stop())
				stale = w.start("stale", Options{})
				settle()
				require.NoError(t, steps[at](w.user))
				settle()
				require.NotZero(t, stuck)
				leader := w.start("leader", Options{})
				settle()
				for _, step := range steps[at+1:] {
					require.NoError(t, step(w.user))
					settle()
				}
				want := w.state()
				close(gate)
				settle()
				require.Equal(t, want, w.state())
				require.NoError(t, stale.stop())
				require.NoError(t, leader.stop())
			})
		})
	}
}

// save returns what has all be again as it is now.
func (a *apiServer) save() (restore func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	objects := maps.Clone(a.objects)
	version, past, expired, writes := a.version, slices.Clone(a.past), a.expired, slices.Clone(a.writes)
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.objects, a.version, a.past, a.expired, a.writes = maps.Clone(objects), version, past, expired, writes
	}
}
