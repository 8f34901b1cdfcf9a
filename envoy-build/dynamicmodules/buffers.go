package dynamicmodules

import (
	"runtime"
	"slices"
	"unsafe"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

// Outgoing bytes are Go memory that is pinned once and used again and again:
// the C half may hold on to it until a batch has been carried out.
var (
	bufferSizes = [...]int{4 << 10, 16 << 10, 64 << 10, 256 << 10}
	// bufferKeep is how many of each size a worker keeps.
	bufferKeep = [...]int{1024, 64, 16, 4}
)

// buffers are the buffers of one worker.
type buffers struct {
	free [len(bufferSizes)][]*buffer
	// idle is how many of them were not needed since the last trim.
	idle [len(bufferSizes)]int
	// sent are those of batches that are yet to be carried out.
	sent []*buffer
}

type buffer struct {
	host.Buffer
	pool   *buffers
	pinner runtime.Pinner
	pinned *byte // the array of B that is
	class  int   // index in bufferSizes, -1: not kept
}

func (bs *buffers) get(n int) *host.Buffer {
	class := -1
	for i, size := range bufferSizes {
		if n <= size {
			class = i
			break
		}
	}
	if class >= 0 {
		if l := len(bs.free[class]); l > 0 {
			b := bs.free[class][l-1]
			bs.free[class] = bs.free[class][:l-1]
			bs.idle[class] = min(bs.idle[class], l-1)
			return &b.Buffer
		}
		n = bufferSizes[class]
	}
	b := &buffer{pool: bs, class: class}
	b.Host = b
	b.B = make([]byte, 0, n)
	b.pin()
	return &b.Buffer
}

func (b *buffer) pin() {
	b.pinned = unsafe.SliceData(b.B)
	b.pinner.Pin(b.pinned)
}

// take makes b's bytes ready for the C half, until the batch is done.
func (bs *buffers) take(hb *host.Buffer) (p *byte, n int) {
	b := hb.Host.(*buffer)
	if unsafe.SliceData(b.B) != b.pinned { // an append has moved it
		b.pinner.Unpin()
		b.pin()
		b.class = -1
	}
	bs.sent = append(bs.sent, b)
	return b.pinned, len(b.B)
}

// carriedOut takes the buffers back whose batches are done.
func (bs *buffers) carriedOut() {
	for i, b := range bs.sent {
		b.Recycle(&b.Buffer)
		bs.sent[i] = nil
	}
	bs.sent = bs.sent[:0]
}

// trim drops the free buffers that were not needed since the last time.
func (bs *buffers) trim() {
	for class, free := range bs.free {
		for _, b := range free[:bs.idle[class]] {
			b.drop()
		}
		bs.free[class] = slices.Delete(free, 0, bs.idle[class])
		bs.idle[class] = len(bs.free[class])
	}
}

// Recycle implements host.Recycler.
func (b *buffer) Recycle(*host.Buffer) {
	if b.class >= 0 && unsafe.SliceData(b.B) == b.pinned && len(b.pool.free[b.class]) < bufferKeep[b.class] {
		b.B = b.B[:0]
		b.pool.free[b.class] = append(b.pool.free[b.class], b)
		return
	}
	b.drop()
}

func (b *buffer) drop() {
	b.pinner.Unpin()
	b.pinned = nil
}
