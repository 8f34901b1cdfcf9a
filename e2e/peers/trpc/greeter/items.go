// Package greeter is what the tRPC-Go server and client share: the stubs, which
// trpc-cmdline v1.0.9 generated of greeter.proto (--rpconly --nogomod
// --mock=false), and the content of streams.
package greeter

import "fmt"

// NewItem makes the item of that number. Its payload is its own: an item of
// another number or length has another one.
func NewItem(number uint64, size int) *Item {
	payload := make([]byte, size)
	for i := range payload {
		payload[i] = content(number, i)
	}
	return &Item{Number: number, Payload: payload}
}

func content(number uint64, i int) byte { return byte(number>>(8*(i%4))) + byte(i*7) }

// Tally counts items that should come in their order.
type Tally struct {
	Items, Bytes uint64
	// Wrong says what was wrong with the first item that was not as it was sent.
	Wrong string
}

// Add counts an item.
func (t *Tally) Add(item *Item) {
	if t.Wrong == "" {
		t.Wrong = t.check(item)
	}
	t.Items++
	t.Bytes += uint64(len(item.GetPayload()))
}

func (t *Tally) check(item *Item) string {
	if item.GetNumber() != t.Items {
		return fmt.Sprintf("item %d came in place of %d", item.GetNumber(), t.Items)
	}
	for i, b := range item.GetPayload() {
		if b != content(item.GetNumber(), i) {
			return fmt.Sprintf("item %d differs at byte %d", item.GetNumber(), i)
		}
	}
	return ""
}
