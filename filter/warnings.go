package filter

import (
	"fmt"
	"time"

	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/internal/guard"
)

const (
	// Peers can do wrong as often as they like. Lines of the same kind come a
	// second apart at first, and with pauses that double up to the longest. What
	// has not happened for a while begins anew.
	firstPause = time.Second
	maxPause   = 5 * time.Minute
	forgetTime = time.Minute
	// maxWarnings bounds the kinds that are told apart.
	maxWarnings = 256
	// maxOperationLogged is how much of a service or a method a line has, in bytes.
	maxOperationLogged = 1 << 10
)

// warnings is what a worker has logged of what can happen often, by its kind.
type warnings map[warning]*said

// warning is a kind of lines. They do not hide those of another.
type warning struct {
	statPrefix, format, subject string
}

type said struct {
	last   time.Duration // when it happened
	until  time.Duration // from when the next is said
	pause  time.Duration
	unsaid int
}

// warn logs what a peer did wrong.
func (s *shard) warn(wl *workerListener, format string, args ...any) {
	s.warnOf("", wl, format, args...)
}

// warnOf is warn of a subject that does not come from peers, such as a cluster.
func (s *shard) warnOf(subject string, wl *workerListener, format string, args ...any) {
	s.log(host.Warn, wl.StatPrefix, subject, format, args...)
}

// debug logs a decision about a message.
func (m *Message) debug(format string, args ...any) {
	m.sh.w.Logf(host.Debug, "%s: request to %s: "+format, append([]any{m.cfg.StatPrefix, m.cluster}, args...)...)
}

// Logf logs a line of the filter whose hook runs with the host's logger, and in front of
// it what belongs to the message: the listener, the filter, the client and its
// connection, what is called, and the trace. As peers can cause it as often as they
// like, lines of one filter and format come a second apart at first, then with
// pauses that double up to five minutes, and the next one says how many were left out.
func (m *Message) Logf(level host.Level, format string, args ...any) {
	k := &m.cfg.chain[min(m.pos, len(m.cfg.chain)-1)]
	m.sh.log(level, m.cfg.StatPrefix, k.name, "filter %s: %v: "+format, append([]any{k.name, about{m}}, args...)...)
}

// about is what belongs to a message, for people.
type about struct{ m *Message }

func (a about) String() string {
	m, c := a.m, a.m.Connection()
	s := fmt.Sprintf("client %s (connection %d), %s", c.RemoteAddress(), c.ID(), m.req.AppendOperationUpTo(nil, maxOperationLogged))
	if t := m.Facts().Trace; t.ID != ([16]byte{}) {
		s += fmt.Sprintf(", trace %x", t.ID)
	}
	return s
}

// logPanic logs a panic; those at other places do not hide it. what is where it was
// caught, and statPrefix may be "".
func (s *shard) logPanic(statPrefix, what string, p *guard.Panic) {
	s.log(host.Error, statPrefix, p.Site, "panic%s: %v\n%s", what, p.Value, p.Stack)
}

func (s *shard) log(level host.Level, statPrefix, subject, format string, args ...any) {
	now := s.w.Now()
	k := warning{statPrefix, format, subject}
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
	if now >= w.last+forgetTime {
		w.pause, w.until = 0, now
	}
	w.last = now
	if now < w.until {
		w.unsaid++
		return
	}
	w.pause = min(max(2*w.pause, firstPause), maxPause)
	w.until = now + w.pause
	if statPrefix != "" {
		format = "stat_prefix %q: " + format
		args = append([]any{statPrefix}, args...)
	}
	if w.unsaid > 0 {
		format += " (%d more such lines left out)"
		args = append(args, w.unsaid)
		w.unsaid = 0
	}
	s.w.Logf(level, "meltemi: "+format, args...)
}

// prune forgets what has not happened for long.
func (ws warnings) prune(now time.Duration) {
	for k, w := range ws {
		if now >= w.last+forgetTime {
			delete(ws, k)
		}
	}
}
