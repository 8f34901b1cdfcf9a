package filter

import (
	"errors"
	"time"

	"github.com/meltemi-mesh/meltemi/filter/accesslog"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
)

// logTime is how late lines of access logs may be, on their way to what writes them.
const logTime = 250 * time.Millisecond

// openLogs opens what a listener's access logs are written to.
func (l *listener) openLogs() error {
	if l.AccessLogs == nil {
		return nil
	}
	logf := func(format string, args ...any) { l.background.Logf(host.Warn, format, args...) }
	for i, path := range l.AccessLogs.Files {
		f, err := l.mod.files.Open(path, logf)
		if err != nil {
			l.closeLogs()
			return l.refuse(l.AccessLogs.Fields[i], errors.New("cannot be opened: "+err.Error()))
		}
		l.logFiles = append(l.logFiles, f)
	}
	for _, to := range l.AccessLogs.Loggers {
		l.logRecords = append(l.logRecords, l.mod.exports.OpenRecords(to, l.life))
	}
	return nil
}

func (l *listener) closeLogs() {
	for _, f := range l.logFiles {
		l.mod.files.Close(f)
	}
	l.logFiles = nil
}

// takeLogs gives the worker its buffers for the listener's logs.
func (wl *workerListener) takeLogs() {
	for _, f := range wl.logFiles {
		wl.logs = append(wl.logs, accesslog.NewBuffer(f))
	}
	for _, r := range wl.logRecords {
		wl.logs = append(wl.logs, accesslog.NewRecordsBuffer(r))
	}
	if wl.AccessLogs != nil && wl.AccessLogs.Reads {
		wl.endFilters++ // they want of messages what these have
		wl.keepsRequest = true
	}
}

// observe tells of a message that has ended.
func (m *Message) observe() {
	f := m.Facts()
	if m.counted != nil {
		m.sh.telemetry.End(m.counted, &f)
	}
	if m.cfg.logs != nil {
		m.log(&f)
	}
	if m.trace.Recorded() {
		m.endSpan(f)
	}
}

// log writes the lines of a message that has ended.
func (m *Message) log(f *Facts) {
	wl, c := m.cfg, m.conn
	e := &m.sh.entry
	*e = accesslog.Entry{
		Facts: *f, Request: &m.req, Response: m.resp, Details: m.details,
		RemoteAddress: (*Connection)(c).RemoteAddress(), LocalAddress: (*Connection)(c).LocalAddress(),
		ConnectionID: (*Connection)(c).ID(), Rand: m.sh.rand.Uint64(),
	}
	e.StartTime = time.Now().Add(m.start - m.endedAt)
	wl.AccessLogs.Write(e, wl.logs)
	*e = accesslog.Entry{}
	for _, b := range wl.logs {
		if b.Full() {
			wl.flushLogs()
			break
		}
	}
	if !wl.logsWait {
		wl.logsWait = true
		m.sh.logging = append(m.sh.logging, wl)
		if !m.sh.logged.Running() {
			m.sh.timers.Start(&m.sh.logged, m.sh.w.Now()+logTime)
		}
	}
}

// flushLogs hands over the lines of all listeners of the worker.
func (s *shard) flushLogs() {
	for i, wl := range s.logging {
		s.logging[i] = nil
		wl.flushLogs()
		wl.logsWait = false
	}
	s.logging = s.logging[:0]
}

func (wl *workerListener) flushLogs() {
	for _, b := range wl.logs {
		written, lost := b.Flush()
		if written > 0 {
			wl.count(metrics.AccessLogWritten, written)
		}
		if lost > 0 {
			wl.count(metrics.AccessLogLost, lost)
		}
	}
}
