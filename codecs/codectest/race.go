//go:build race

package codectest

// raced says that the race detector is at work. It makes decoding more than ten
// times as slow, and has little to find where there is one goroutine.
const raced = true
