// Package mailbox holds the work that other goroutines have for a worker, until
// that comes round to it.
package mailbox

import "sync"

// keep is for how many items an empty mailbox keeps the memory.
const keep = 4096

// Mailbox is read by one worker; any goroutine may put things in.
type Mailbox[T any] struct {
	wake func()

	mu    sync.Mutex
	items []T

	taken []T // by the worker, which alone uses it
}

// New returns a mailbox whose worker wake has run [Mailbox.Run] soon. It is called
// by those that find the mailbox empty.
func New[T any](wake func()) *Mailbox[T] { return &Mailbox[T]{wake: wake} }

// Post puts v in. Any goroutine may call it.
func (b *Mailbox[T]) Post(v T) {
	b.mu.Lock()
	first := len(b.items) == 0
	b.items = append(b.items, v)
	b.mu.Unlock()
	if first {
		b.wake()
	}
}

// Run hands to do, one after the other, what there is when it is called. Should do
// panic, what is behind that item stays for the next Run, before all that has come
// since, and the worker is woken for it. Only the worker calls Run, and do does not.
func (b *Mailbox[T]) Run(do func(T)) {
	b.mu.Lock()
	items := b.items
	b.items = b.taken[:0]
	b.mu.Unlock()
	b.taken = nil
	next := 0
	defer func() {
		if next < len(items) {
			b.putBack(items[next:])
			return
		}
		if cap(items) <= keep {
			b.taken = items[:0]
		}
	}()
	for next < len(items) {
		var none T
		v := items[next]
		items[next] = none
		next++
		do(v)
	}
}

func (b *Mailbox[T]) putBack(left []T) {
	b.mu.Lock()
	b.items = append(left, b.items...)
	b.mu.Unlock()
	b.wake()
}
