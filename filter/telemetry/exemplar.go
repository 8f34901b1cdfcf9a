package telemetry

import (
	"encoding/hex"
	"sync/atomic"
	"time"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meltemi-mesh/meltemi/filter/facts"
)

// exemplarTime is how long a bucket keeps its exemplar.
const exemplarTime = time.Second

// exemplar is a traced request that a bucket has counted. It does not change.
type exemplar struct {
	trace facts.Trace
	took  time.Duration
	end   time.Duration // on the worker's clock
	time  time.Time     // the same
}

// exemplars are those of the classic buckets. One goroutine writes, others read.
type exemplars [len(bounds) + 1]atomic.Pointer[exemplar]

// exemplify has a request whose span is told of stand for those of bucket i.
func (h *histogram) exemplify(i int, f *facts.Facts) {
	es := h.exemplars.Load()
	if es == nil {
		es = new(exemplars)
		h.exemplars.Store(es)
	}
	if e := es[i].Load(); e == nil || f.End-e.end >= exemplarTime {
		es[i].Store(&exemplar{trace: f.Trace, took: max(0, f.End-f.Start), end: f.End, time: time.Now()})
	}
}

// shown is e as Prometheus has it, nil if there is none.
func (e *exemplar) shown() *dto.Exemplar {
	if e == nil {
		return nil
	}
	return &dto.Exemplar{
		Label: []*dto.LabelPair{
			{Name: proto.String("span_id"), Value: proto.String(hex.EncodeToString(e.trace.Span[:]))},
			{Name: proto.String("trace_id"), Value: proto.String(hex.EncodeToString(e.trace.ID[:]))},
		},
		Value: proto.Float64(e.took.Seconds()), Timestamp: timestamppb.New(e.time),
	}
}
