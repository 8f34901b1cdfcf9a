// Package process is how Meltemi behaves in a process that is somebody else's: what
// it says in its log, what becomes of panics, and how much of the machine it takes.
package process

import (
	"sync"
	"time"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

// Log writes a line into the process's log. Any goroutine may call it.
type Log func(level host.Level, format string, args ...any)

// pause is how long a [Sometimes] says nothing after a line.
const pause = time.Second

// Sometimes logs what may happen all the time, as others can see to it: a line a
// second, with the number of those that were left out.
type Sometimes struct {
	mu     sync.Mutex
	said   time.Time
	unsaid int
}

// Logf logs by log, unless it has done so within the last second. Any goroutine may
// call it.
func (s *Sometimes) Logf(log Log, level host.Level, format string, args ...any) {
	s.mu.Lock()
	now := time.Now()
	if !s.said.IsZero() && now.Sub(s.said) < pause {
		s.unsaid++
		s.mu.Unlock()
		return
	}
	unsaid := s.unsaid
	s.said, s.unsaid = now, 0
	s.mu.Unlock()
	if unsaid > 0 {
		format += " (%d more such lines left out)"
		args = append(args, unsaid)
	}
	log(level, format, args...)
}
