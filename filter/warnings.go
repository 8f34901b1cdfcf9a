package filter

import (
	"time"

	"github.com/meltemi-mesh/meltemi/filter/host"
)

const (
	// Peers can do wrong as often as they like. Lines of the same kind come a
	// second apart at first, and with pauses that double up to the longest.
	firstPause = time.Second
	maxPause   = time.Minute
	// maxWarnings bounds the kinds that are told apart.
	maxWarnings = 256
)

// warnings is what has been logged of a worker's peers, by its kind.
type warnings map[warning]*said

// warning is a kind of lines. They do not hide those of another.
type warning struct {
	statPrefix, format, subject string
}

type said struct {
	until  time.Duration // from when the next is said
	pause  time.Duration
	unsaid int
}

// warn logs what a peer did wrong.
func (s *shard) warn(cs *configShard, format string, args ...any) {
	s.warnOf("", cs, format, args...)
}

// warnOf is warn of a subject that does not come from peers, such as a cluster.
func (s *shard) warnOf(subject string, cs *configShard, format string, args ...any) {
	now := s.w.Now()
	k := warning{cs.StatPrefix, format, subject}
	w := s.warned[k]
	if w == nil {
		if s.warned == nil {
			s.warned = warnings{}
		}
		if len(s.warned) >= maxWarnings {
			s.warned.prune(now)
		}
		if len(s.warned) >= maxWarnings { // all of them recent
			k = warning{}
		}
		if w = s.warned[k]; w == nil {
			w = &said{}
			s.warned[k] = w
		}
	}
	if now < w.until {
		w.unsaid++
		return
	}
	if now < w.until+w.pause {
		w.pause = min(2*w.pause, maxPause)
	} else { // it had been quiet
		w.pause = firstPause
	}
	w.until = now + w.pause
	format = "meltemi: stat_prefix %q: " + format
	args = append([]any{cs.StatPrefix}, args...)
	if w.unsaid > 0 {
		format += " (%d more such lines left out)"
		args = append(args, w.unsaid)
		w.unsaid = 0
	}
	s.w.Logf(host.Warn, format, args...)
}

// prune forgets what has not been said for long.
func (ws warnings) prune(now time.Duration) {
	for k, w := range ws {
		if now >= w.until+maxPause {
			delete(ws, k)
		}
	}
}
