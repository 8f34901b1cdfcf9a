package golang

import "github.com/meltemi-mesh/meltemi/filter/host"

var (
	bufferSizes = [...]int{4 << 10, 16 << 10, 64 << 10, 256 << 10}
	// bufferKeep is how many of each size a worker keeps.
	bufferKeep = [...]int{1024, 64, 16, 4}
)

// buffers are the outgoing buffers of one worker that are used again. It is used under
// the worker's lock.
type buffers struct {
	free [len(bufferSizes)][]*buffer
	idle [len(bufferSizes)]int // of them that were not needed since the last trim
	join []byte                // where what goes to a client by one write is put together
}

type buffer struct {
	host.Buffer
	pool  *buffers
	class int // index in bufferSizes, -1: not kept
}

func (bs *buffers) get(n int) *host.Buffer {
	for class, size := range bufferSizes {
		if n > size {
			continue
		}
		if l := len(bs.free[class]); l > 0 {
			b := bs.free[class][l-1]
			bs.free[class] = bs.free[class][:l-1]
			bs.idle[class] = min(bs.idle[class], l-1)
			return &b.Buffer
		}
		return bs.make(size, class)
	}
	return bs.make(n, -1)
}

func (bs *buffers) make(size, class int) *host.Buffer {
	b := &buffer{pool: bs, class: class}
	b.Host, b.B = b, make([]byte, 0, size)
	return &b.Buffer
}

// Recycle implements host.Recycler.
func (b *buffer) Recycle(*host.Buffer) {
	if c := b.class; c >= 0 && cap(b.B) == bufferSizes[c] && len(b.pool.free[c]) < bufferKeep[c] {
		b.B = b.B[:0]
		b.pool.free[c] = append(b.pool.free[c], b)
	}
}

// trim drops what was not needed since the last time.
func (bs *buffers) trim() {
	for class, free := range bs.free {
		n := bs.idle[class]
		clear(free[:n])
		bs.free[class] = append(free[:0], free[n:]...)
		bs.idle[class] = len(bs.free[class])
	}
	bs.join = nil
}
