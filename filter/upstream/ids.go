package upstream

// ids hands out request ids: the number of a slot and, above it, a generation
// that changes with each use, so that an answer that comes late, twice or
// unasked finds nobody. All pools of a worker whose ids are as wide share them, see idsOf: pools
// are many where each client's address has its own, and resting slots are not few.
type ids struct {
	slots []idSlot
	// Free slots form a queue: a slot rests as long as possible before its
	// next use. That matters where ids are 32 bits or fewer and generations
	// come round again.
	head, tail int32
	free       int
	rest       int // free slots to keep before one is used again
	bits       uint
	genMask    uint64
}

type idSlot struct {
	call *Call
	gen  uint64
	next int32
}

const noSlot = -1

func (t *ids) init(maxID uint64) {
	t.head, t.tail = noSlot, noSlot
	// 20 bits of slot allow a million requests in flight on a worker. Small ids
	// leave few generations: then slots rest longer instead.
	t.bits, t.rest = 20, 64
	if maxID < 1<<40 {
		t.rest = 1 << 14
	}
	for t.bits > 0 && maxID>>t.bits == 0 {
		t.bits--
	}
	if t.rest > 1<<t.bits/2 {
		t.rest = 1 << t.bits / 2
	}
	t.genMask = maxID >> t.bits
	// A mask needs all ones.
	for t.genMask&(t.genMask+1) != 0 {
		t.genMask &= t.genMask >> 1
	}
}

// scarce reports whether an id comes again soon enough for a late answer to be
// taken for that to another call.
func (t *ids) scarce() bool { return (t.genMask+1)*uint64(t.rest) < 1<<24 }

// take registers c and returns its id; ok is false when all ids are in use.
func (t *ids) take(c *Call) (id uint64, ok bool) {
	if t.free <= t.rest && len(t.slots) < 1<<t.bits {
		t.push(int32(len(t.slots)), true)
	}
	if t.free == 0 {
		return 0, false
	}
	i := t.head
	s := &t.slots[i]
	t.head = s.next
	if t.head == noSlot {
		t.tail = noSlot
	}
	t.free--
	s.gen = (s.gen + 1) & t.genMask
	s.call = c
	return s.gen<<t.bits | uint64(i), true
}

func (t *ids) push(i int32, fresh bool) {
	if fresh {
		t.slots = append(t.slots, idSlot{})
	}
	s := &t.slots[i]
	s.call, s.next = nil, noSlot
	if t.tail == noSlot {
		t.head = i
	} else {
		t.slots[t.tail].next = i
	}
	t.tail = i
	t.free++
}

// find returns the call that waits for id on cn, nil if there is none.
func (t *ids) find(id uint64, cn *conn) *Call {
	i := id & (1<<t.bits - 1)
	if i >= uint64(len(t.slots)) {
		return nil
	}
	s := &t.slots[i]
	if s.call == nil || s.gen != id>>t.bits || s.call.conn != cn {
		return nil
	}
	return s.call
}

// replace puts c into the place of the call that has id.
func (t *ids) replace(id uint64, c *Call) { t.slots[id&(1<<t.bits-1)].call = c }

// drop frees the slot of id.
func (t *ids) drop(id uint64) { t.push(int32(id&(1<<t.bits-1)), false) }
