// Package telemetry counts and times requests by what they call and what becomes of
// them, and shows that to Prometheus. Each worker has its own numbers, which it alone
// changes: no request waits for another worker, and nothing is allocated for one whose
// labels have been seen.
package telemetry

import (
	"sync/atomic"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/facts"
)

const (
	// maxOperations and maxSeries are what is told apart: what comes later is counted
	// under Other.
	maxOperations, maxSeries = 1000, 4000
	// Other is the service and the method of what is not told apart.
	Other = "_OTHER"
)

// Registry is the process's.
type Registry struct {
	on         atomic.Bool
	overflow   atomic.Uint64 // requests that were not told apart
	operations *Table[operation, inFlights]
	series     *Table[labels, histogram]
}

// NewRegistry returns an empty one, which does not count.
func NewRegistry() *Registry {
	return &Registry{
		operations: NewTable[operation, inFlights](maxOperations, func(o operation) operation {
			return operation{o.protocol, Other, Other}
		}),
		series: NewTable[labels, histogram](maxSeries, func(l labels) labels {
			return labels{operation: operation{l.protocol, Other, Other}, route: Other, cluster: Other, outcome: Other}
		}),
	}
}

// On has requests counted that begin from now on, for good.
func (r *Registry) On() { r.on.Store(true) }

// Counts reports whether On was called.
func (r *Registry) Counts() bool { return r.on.Load() }

// operation is what requests call.
type operation struct{ protocol, service, method string }

// labels are those of a series.
type labels struct {
	operation
	route, cluster, outcome string
}

// inFlights is how many requests of an operation are, on one worker.
type inFlights struct{ n Count }

// Operation is what requests of a worker call.
type Operation struct {
	of       operation
	inFlight *inFlights
	last     cellKey // of its requests: the next is often the same
	lastCell *histogram
}

// Worker counts the requests of one worker.
type Worker struct {
	r          *Registry
	key        []byte
	operations map[string]*Operation // by name, of those that are their labels
	labelled   map[operation]*Operation
	inFlights  *Part[operation, inFlights]
	cells      map[cellKey]*histogram
	series     *Part[labels, histogram]
	last       struct {
		key []byte
		op  *Operation
	}
	shaped struct { // the last of those that have a shape
		shape    uint64
		protocol string
		op       *Operation
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
	return &Worker{
		r: r, operations: map[string]*Operation{}, labelled: map[operation]*Operation{}, cells: map[cellKey]*histogram{},
		inFlights: r.operations.Part(), series: r.series.Part(),
	}
}

// Begin counts a request that begins, nil while nothing is counted. What it calls is
// valid during the call.
func (w *Worker) Begin(protocol string, md *codecs.Metadata) *Operation {
	if !w.r.on.Load() {
		return nil
	}
	shape := md.Shape()
	if of := &w.shaped; shape != nil && of.shape == shape.ID() && of.protocol == protocol {
		of.op.inFlight.n.Add(1)
		return of.op
	}
	k := append(append(w.key[:0], protocol...), 0)
	k = md.AppendOperationUpTo(k, maxLabel+1) // what is behind tells no labels apart
	w.key = k
	op := w.last.op
	if op == nil || string(k) != string(w.last.key) {
		if op = w.operations[string(k)]; op == nil {
			op = w.learn(protocol, k[len(protocol)+1:], min(len(md.Method()), maxLabel+1))
		}
		w.last.op, w.last.key = op, append(w.last.key[:0], k...)
	}
	if shape != nil {
		w.shaped.shape, w.shaped.protocol, w.shaped.op = shape.ID(), protocol, op
	}
	op.inFlight.n.Add(1)
	return op
}

// learn returns the operation of a name that the worker does not remember. Clients choose
// names, and the labels of any number of them can be the same.
func (w *Worker) learn(protocol string, name []byte, method int) *Operation {
	o := operation{protocol: protocol, method: Label(name[len(name)-method:])}
	whole := o.method
	switch {
	case method == 0:
		o.service = Label(name)
		whole = o.service
	case method < len(name):
		o.service = Label(name[:len(name)-method-1])
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
	n, told := w.inFlights.Cell(o)
	if !told {
		w.r.overflow.Add(1)
		o = w.r.operations.other(o)
		if op := w.labelled[o]; op != nil {
			return op
		}
	}
	op := &Operation{of: o, inFlight: n}
	w.labelled[o] = op
	return op
}

// End counts a request that has ended.
func (w *Worker) End(op *Operation, f *facts.Facts) {
	op.inFlight.n.Add(^uint64(0))
	k := cellKey{op, f.Flags, f.Status, f.Answered == 0 && !f.Replied, f.Route, f.Cluster}
	c := op.lastCell
	if c == nil || op.last != k {
		if c = w.cells[k]; c == nil {
			c = w.cell(k)
		}
		op.last, op.lastCell = k, c
	}
	i := c.observe(f.End - f.Start)
	if f.Trace.Sampled {
		c.exemplify(i, f)
	}
}

func (w *Worker) cell(k cellKey) *histogram {
	// A filter may have made the names of what clients say.
	k.route, k.cluster = Label(k.route), Label(k.cluster)
	if c := w.cells[k]; c != nil {
		return c
	}
	c, told := w.series.Cell(labels{k.op.of, k.route, k.cluster, outcome(k)})
	if !told {
		w.r.overflow.Add(1)
		return c
	}
	w.cells[k] = c
	return c
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
