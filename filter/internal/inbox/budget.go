package inbox

import (
	"slices"
	"time"

	"github.com/meltemi-mesh/meltemi/filter/internal/timer"
)

const (
	// Small is how long an unfinished frame may be without a budget.
	Small = 32 << 10
	// stepBytes is how much of a frame must come to count as going on, or a 32nd
	// of it if that is less.
	stepBytes = 64 << 10
)

// Budget bounds the memory that unfinished frames of many peers take together.
// Beyond it one peer's frame goes on whatever the others do, so that frames are
// never in each other's way for good; other peers with such frames are not read,
// and those that send nothing more of theirs are given up. It belongs to a worker.
type Budget struct {
	stall  time.Duration
	now    func() time.Duration
	timers *timer.Wheel
	timer  timer.Timer // looks for stalled peers

	bytes    int
	favoured *Frame   // may go beyond the limit; not nil if there are starved ones
	starved  []*Frame // in the order in which they came
	keeping  []*Frame // those with memory
}

// Init prepares b. While others wait, a peer may send nothing of its frame for
// stall.
func (b *Budget) Init(stall time.Duration, now func() time.Duration, timers *timer.Wheel) {
	b.stall, b.now, b.timers = stall, now, timers
	b.timer.Fire = b.sweep
}

// Held returns the memory that is counted, and how many peers are under way beyond
// the limit or wait.
func (b *Budget) Held() (bytes, peers int) {
	if peers = len(b.starved); b.favoured != nil {
		peers++
	}
	return b.bytes, peers
}

// Peer is the connection to a peer that sends frames.
type Peer interface {
	// Starve(true) has the peer not read, as there is no room for more of its
	// frame; Starve(false) has it read again.
	Starve(starve bool)
	// Held reports whether the peer cannot send for another reason, and is no worse
	// than others for it.
	Held() bool
	// Stalled gives up the peer, which sends nothing more of its frame. It calls
	// Frame.Forget.
	Stalled()
}

// Frame is a peer's unfinished frame, as far as its inbox keeps it.
type Frame struct {
	peer   Peer
	in     *Inbox
	budget *Budget
	limit  int

	kept    int           // memory, counted in the budget
	place   int           // in budget.keeping, if any is kept
	starved bool          // in budget.starved
	marked  int           // how long it was when it went on last
	since   time.Duration // when that was
}

// Init binds f to its peer and inbox. limit is that of all the budget's frames
// beyond which this one waits.
func (f *Frame) Init(p Peer, in *Inbox, b *Budget, limit int) {
	f.peer, f.in, f.budget, f.limit = p, in, b, limit
}

// Counted reports whether the budget has to hear of what happens to the frame.
func (f *Frame) Counted() bool { return f.kept > 0 || f.starved || f.budget.favoured == f }

// Size returns the memory that is counted for the frame.
func (f *Frame) Size() int { return f.kept }

// MayGrow reports whether the inbox may grow by n bytes. If not, the peer is starved
// until it may.
func (f *Frame) MayGrow(n int) bool {
	b := f.budget
	switch {
	case n <= 0 || b.favoured == f || b.bytes+n <= f.limit:
		return true
	case b.favoured == nil && len(b.starved) == 0: // else it is another's turn
		b.favour(f)
		return true
	case !f.starved:
		f.starved = true
		b.starved = append(b.starved, f)
		f.peer.Starve(true)
	}
	return false
}

func (b *Budget) favour(f *Frame) {
	b.favoured = f
	f.since = b.now()
	if !b.timer.Running() {
		b.timers.Start(&b.timer, f.since+b.stall/4)
	}
}

// Kept notes what the inbox holds after an event. another says that the frame at
// its start is not the one that was there before.
func (f *Frame) Kept(another bool) {
	b := f.budget
	another = another || f.kept == 0
	f.count(f.in.Size())
	have, need := f.in.Buffered(), f.in.Need()
	if another || have-f.marked >= min(stepBytes, need/32+1) {
		f.marked, f.since = have, b.now()
	}
	if b.favoured == f && need == 0 {
		b.favoured = nil
	}
	b.feed()
}

// Passed tells that the frame is whole: it has had its turn, and one that begins
// right behind it has none yet.
func (f *Frame) Passed() {
	if b := f.budget; b.favoured == f {
		b.favoured = nil
	}
}

// Forget gives up the frame that has begun. Its peer is starved no more, without
// being told.
func (f *Frame) Forget() {
	b := f.budget
	f.fed()
	f.count(0)
	f.marked, f.since = 0, b.now()
	if b.favoured == f {
		b.favoured = nil
	}
	b.feed()
}

func (f *Frame) count(n int) {
	b := f.budget
	switch {
	case f.kept == 0 && n > 0:
		f.place = len(b.keeping)
		b.keeping = append(b.keeping, f)
	case f.kept > 0 && n == 0:
		last := len(b.keeping) - 1
		b.keeping[f.place] = b.keeping[last]
		b.keeping[f.place].place = f.place
		b.keeping[last] = nil
		if b.keeping = b.keeping[:last]; last == 0 {
			b.keeping = nil
		}
	}
	b.bytes += n - f.kept
	f.kept = n
}

// feed has peers read again for the rest of whose frames there is room.
func (b *Budget) feed() {
	bytes := b.bytes
	for len(b.starved) > 0 {
		f := b.starved[0]
		bytes += max(1, f.in.Need()-f.kept)
		if b.favoured == nil {
			b.favour(f)
		} else if bytes > f.limit {
			return
		}
		f.fed()
		f.peer.Starve(false)
	}
}

// fed takes f off those that are starved.
func (f *Frame) fed() {
	if !f.starved {
		return
	}
	b := f.budget
	f.starved, f.since = false, b.now()
	i := slices.Index(b.starved, f)
	if b.starved = slices.Delete(b.starved, i, i+1); len(b.starved) == 0 {
		b.starved = nil
	}
}

// sweep ends those that send nothing more of their frames while others wait
// because of them.
func (b *Budget) sweep() {
	if b.favoured == nil {
		return
	}
	now := b.now()
	b.timers.Start(&b.timer, now+b.stall/4)
	if len(b.starved) == 0 {
		return
	}
	for _, f := range slices.Clone(b.keeping) {
		switch {
		case len(b.starved) == 0:
			return
		case f.kept == 0 || f.starved: // it has ended with another
		case f.peer.Held():
			f.since = now
		case now >= f.since+b.stall:
			f.peer.Stalled()
		}
	}
}
