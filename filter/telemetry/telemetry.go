// Package telemetry counts and times requests by what they call and what becomes of
// them, and shows that to Prometheus. Each worker has its own numbers, which it alone
// changes: no request waits for another worker, and nothing is allocated for one whose
// labels have been seen.
package telemetry

import (
	"maps"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/facts"
)

const (
	// maxOperations and maxSeries are what is told apart: what comes later is counted
	// under Other.
	maxOperations, maxSeries = 1000, 4000
	// maxLabel is where the names of services and methods are cut, in bytes.
	maxLabel = 256
	// Other is the service and the method of what is not told apart.
	Other = "_OTHER"
)

// Registry is the process's.
type Registry struct {
	on       atomic.Bool
	overflow atomic.Uint64 // requests that were not told apart

	mu         sync.Mutex
	operations map[operation]*inFlight
	series     map[labels]*series
	// The same, as they came: no worker waits for a scrape that goes through them.
	operationList []*inFlight
	seriesList    []*series
	// Those that are told apart when there are as many as may be: read without the lock.
	allOperations atomic.Pointer[map[operation]*inFlight]
	allSeries     atomic.Pointer[map[labels]*series]
}

// NewRegistry returns an empty one, which does not count.
func NewRegistry() *Registry {
	return &Registry{operations: map[operation]*inFlight{}, series: map[labels]*series{}}
}

// On has requests counted that begin from now on, for good.
func (r *Registry) On() { r.on.Store(true) }

// operation is what requests call.
type operation struct{ protocol, service, method string }

// labels are those of a series.
type labels struct {
	operation
	route, cluster, outcome string
}

// inFlight is how many requests of an operation are, by worker: a list that only grows.
type inFlight struct {
	operation
	first atomic.Pointer[Operation]
}

// series is what became of requests, by worker: a list that only grows.
type series struct {
	labels
	first atomic.Pointer[cell]
}

// Operation is what requests of a worker call.
type Operation struct {
	of       operation
	next     *Operation // of another worker
	inFlight atomic.Int64
	last     cellKey // of its requests: the next is often the same
	lastCell *cell
}

// cell is a worker's part of a series. The worker alone writes.
type cell struct {
	next  *cell // of another worker
	times histogram
}

// Worker counts the requests of one worker.
type Worker struct {
	r          *Registry
	key        []byte
	operations map[string]*Operation // by name, of those that are their labels
	labelled   map[operation]*Operation
	cells      map[cellKey]*cell
	other      map[string]*Operation // by protocol, see otherOperation
	last       struct {
		key []byte
		op  *Operation
	}
}

// cellKey is a worker's name for labels.
type cellKey struct {
	op             *Operation
	flags          facts.Flags
	status         codecs.Status
	ended          bool // without an answer
	route, cluster string
}

// NewWorker returns a worker's own part.
func (r *Registry) NewWorker() *Worker {
	return &Worker{r: r, operations: map[string]*Operation{}, labelled: map[operation]*Operation{}, cells: map[cellKey]*cell{}, other: map[string]*Operation{}}
}

// Begin counts a request that begins, nil while nothing is counted. What it calls is
// valid during the call.
func (w *Worker) Begin(protocol string, md *codecs.Metadata) *Operation {
	if !w.r.on.Load() {
		return nil
	}
	k := append(append(w.key[:0], protocol...), 0)
	k = md.AppendOperation(k)
	w.key = k
	op := w.last.op
	if op == nil || string(k) != string(w.last.key) {
		if op = w.operations[string(k)]; op == nil {
			op = w.learn(protocol, k[len(protocol)+1:], len(md.Method()))
		}
		w.last.op, w.last.key = op, append(w.last.key[:0], k...)
	}
	op.inFlight.Store(op.inFlight.Load() + 1)
	return op
}

// learn returns the operation of a name that the worker does not remember. Clients choose
// names, and the labels of any number of them can be the same.
func (w *Worker) learn(protocol string, name []byte, method int) *Operation {
	o := operation{protocol: protocol, method: label(name[len(name)-method:])}
	whole := o.method
	switch {
	case method == 0:
		o.service = label(name)
		whole = o.service
	case method < len(name):
		o.service = label(name[:len(name)-method-1])
		whole = o.service + "/" + o.method
	}
	op := w.labelled[o]
	if op == nil {
		op = w.operation(o)
	}
	if op.of == o && whole == string(name) {
		w.operations[string(w.key)] = op
	}
	return op
}

// operation returns the worker's part of o, or of what is not told apart.
func (w *Worker) operation(o operation) *Operation {
	all := w.r.operationOf(o)
	if all == nil {
		w.r.overflow.Add(1)
		o = operation{o.protocol, Other, Other}
		if op := w.labelled[o]; op != nil {
			return op
		}
		w.r.mu.Lock()
		if all = w.r.operations[o]; all == nil {
			all = w.r.addOperation(o)
		}
		w.r.mu.Unlock()
	}
	op := &Operation{of: o}
	w.r.mu.Lock()
	op.next = all.first.Load()
	all.first.Store(op)
	w.r.mu.Unlock()
	w.labelled[o] = op
	return op
}

// operationOf returns what is known of o, nil if it is not told apart.
func (r *Registry) operationOf(o operation) *inFlight {
	if all := r.allOperations.Load(); all != nil {
		return (*all)[o]
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.operations[o]
	if f == nil && len(r.operations) < maxOperations {
		f = r.addOperation(o)
		if len(r.operations) == maxOperations {
			all := maps.Clone(r.operations)
			r.allOperations.Store(&all)
		}
	}
	return f
}

// addOperation is for who holds the lock.
func (r *Registry) addOperation(o operation) *inFlight {
	f := &inFlight{operation: o}
	r.operations[o] = f
	r.operationList = append(r.operationList, f)
	return f
}

// label is a name as a label's value.
func label(name []byte) string {
	if len(name) > maxLabel {
		name = name[:maxLabel]
	}
	return strings.ToValidUTF8(string(name), "\ufffd")
}

// End counts a request that has ended.
func (w *Worker) End(op *Operation, f *facts.Facts) {
	op.inFlight.Store(op.inFlight.Load() - 1)
	k := cellKey{op, f.Flags, f.Status, f.Answered == 0 && !f.Replied, f.Route, f.Cluster}
	c := op.lastCell
	if c == nil || op.last != k {
		if c = w.cells[k]; c == nil {
			c = w.cell(k)
		}
		op.last, op.lastCell = k, c
	}
	i := c.times.observe(f.End - f.Start)
	if f.Trace.Sampled {
		c.times.exemplify(i, f)
	}
}

func (w *Worker) cell(k cellKey) *cell {
	// A filter may have made the names of what clients say.
	k.route, k.cluster = label([]byte(k.route)), label([]byte(k.cluster))
	if c := w.cells[k]; c != nil {
		return c
	}
	l := labels{k.op.of, k.route, k.cluster, outcome(k)}
	all := w.r.seriesOf(l)
	keep := all != nil
	if !keep {
		w.r.overflow.Add(1)
		k = cellKey{op: w.otherOperation(k.op.of.protocol)}
		if c := w.cells[k]; c != nil {
			return c
		}
		l = labels{operation: operation{k.op.of.protocol, Other, Other}, route: Other, cluster: Other, outcome: Other}
		w.r.mu.Lock()
		if all = w.r.series[l]; all == nil {
			all = w.r.addSeries(l)
		}
		w.r.mu.Unlock()
	}
	c := &cell{}
	w.r.mu.Lock()
	c.next = all.first.Load()
	all.first.Store(c)
	w.r.mu.Unlock()
	w.cells[k] = c
	return c
}

// otherOperation is a key only.
func (w *Worker) otherOperation(protocol string) *Operation {
	op := w.other[protocol]
	if op == nil {
		op = &Operation{of: operation{protocol, Other, Other}}
		w.other[protocol] = op
	}
	return op
}

// seriesOf returns what is known of l, nil if it is not told apart.
func (r *Registry) seriesOf(l labels) *series {
	if all := r.allSeries.Load(); all != nil {
		return (*all)[l]
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.series[l]
	if s == nil && len(r.series) < maxSeries {
		s = r.addSeries(l)
		if len(r.series) == maxSeries {
			all := maps.Clone(r.series)
			r.allSeries.Store(&all)
		}
	}
	return s
}

// addSeries is for who holds the lock.
func (r *Registry) addSeries(l labels) *series {
	s := &series{labels: l}
	r.series[l] = s
	r.seriesList = append(r.seriesList, s)
	return s
}

// outcome is Envoy's response flags, or what the answer says.
func outcome(k cellKey) string {
	switch {
	case k.flags != 0:
		return k.flags.String()
	case k.ended:
		return "none"
	case k.status == codecs.StatusBusinessException:
		return "exception"
	case k.status == codecs.StatusError:
		return "error"
	default:
		return "ok"
	}
}
