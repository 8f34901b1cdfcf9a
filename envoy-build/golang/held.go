package golang

import "github.com/meltemi-mesh/meltemi/filter/host"

const (
	// maxHeld is how many bytes of a client may wait here, as the pipeline does not want to
	// be handed them for now: Envoy goes on reading whatever we do. One that sends more is
	// closed. It is more than the largest frame of the codecs.
	maxHeld = 16 << 20
	// maxAllHeld is the same for all clients of a worker. Beyond it those are closed of
	// which most waits.
	maxAllHeld = 32 << 20
	// heldChunk is what small pieces are gathered into.
	heldChunk = 64 << 10
)

// held are a client's bytes that the pipeline has not consumed.
type held struct {
	chunks [][]byte
	size   int
}

// holding is what a worker's clients hold.
type holding struct {
	clients map[*Client]struct{}
	size    int
}

// hold keeps what comes behind the first bytes of chunks.
func (c *Client) hold(chunks [][]byte, behind int) {
	if c.gone || c.closing != stays {
		return
	}
	h, all := &c.held, &c.w.holding
	all.size -= h.size
	for _, b := range chunks {
		n := min(behind, len(b))
		behind -= n
		h.add(b[n:])
	}
	all.size += h.size
	if all.clients == nil {
		all.clients = map[*Client]struct{}{}
	}
	all.clients[c] = struct{}{}
	if h.size > maxHeld {
		c.overrun("of it")
	}
	for all.size > maxAllHeld {
		most := c
		for o := range all.clients {
			if o.held.size > most.held.size {
				most = o
			}
		}
		most.overrun("of its worker's clients, most of it its own,")
	}
}

func (h *held) add(b []byte) {
	h.size += len(b)
	if n := len(h.chunks); n > 0 {
		last := &h.chunks[n-1]
		k := min(len(b), cap(*last)-len(*last))
		*last = append(*last, b[:k]...)
		b = b[k:]
	}
	if len(b) > 0 {
		h.chunks = append(h.chunks, append(make([]byte, 0, max(len(b), min(h.size, heldChunk))), b...))
	}
}

// release forgets the first n bytes.
func (c *Client) release(n int) {
	h, all := &c.held, &c.w.holding
	n = min(n, h.size) // it may have been closed meanwhile
	h.size -= n
	all.size -= n
	if h.size == 0 {
		h.chunks = nil
		delete(all.clients, c)
		return
	}
	for n > 0 {
		k := min(n, len(h.chunks[0]))
		h.chunks[0] = h.chunks[0][k:]
		if n -= k; len(h.chunks[0]) == 0 {
			h.chunks[0] = nil
			h.chunks = h.chunks[1:]
		}
	}
}

func (c *Client) overrun(of string) {
	h := c.w.h
	h.metrics.process[clientsOverrun].Add(1)
	h.overrun.Logf(h.log, host.Warn, "meltemi: client %s was closed: it sends more than is taken, and %d bytes %s wait", c.remote, c.held.size, of)
	c.Close(false)
}
