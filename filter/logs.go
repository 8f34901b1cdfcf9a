package filter

import (
	"errors"
	"time"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/accesslog"
	"github.com/meltemi-mesh/meltemi/filter/facts"
	"github.com/meltemi-mesh/meltemi/filter/host"
	"github.com/meltemi-mesh/meltemi/filter/metrics"
	"github.com/meltemi-mesh/meltemi/filter/upstream"
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
	f := m.Ended()
	if m.counted != nil {
		m.sh.telemetry.End(m.counted, f)
	}
	if m.trace.Recorded() {
		m.endSpan(f)
	}
	if m.cfg.logs != nil {
		m.log()
	}
}

// log writes the lines of a message that has ended, whose facts are the entry's.
func (m *Message) log() {
	e := &m.sh.entry
	e.Request, e.Response, e.Details, e.Source, e.Destination = &m.req, m.resp, m.details, m.source, m.destination
	m.cfg.writeLogs(m.conn)
}

// logBeat writes the lines of a heartbeat that has been answered, or needs no answer, if
// there are to be any.
func (m *Message) logBeat() {
	if m.cfg.logs == nil || !m.cfg.AccessLogs.Heartbeats {
		return
	}
	m.endedAt = m.sh.w.Now()
	m.sh.told = nil
	f := m.Ended()
	f.Kind = facts.Heartbeat
	if f.SentBytes > 0 {
		f.Answered, m.details = f.End, "health_check_ok"
	}
	m.log()
}

// logs has the copy that is about to be made logged, if copies are to be.
func (s *shadow) logs(m *Message) {
	wl := m.cfg
	if wl.logs == nil || !wl.AccessLogs.Mirrors {
		return
	}
	s.conn, s.route, s.begun = m.conn, m.route.Name, m.sh.w.Now()
	m.conn.located() // which may end before
	m.conn.d.TLS()
	wl.left++
	if wl.AccessLogs.Reads {
		s.req.SetOperation(m.req.Service(), m.req.Method())
		for _, p := range m.req.Properties() {
			s.req.Put(p.Name, p.Value)
		}
		s.req.Detach()
	}
}

// log writes the lines of a copy whose way is over, by an answer, a failure, or neither.
func (s *shadow) log(resp *codecs.Metadata, failed *upstream.Failure) {
	wl := s.cfg
	e := &s.sh.entry
	s.sh.told = nil
	*e = accesslog.Entry{Request: &s.req, Response: resp, Facts: Facts{
		Kind: facts.Mirror, Protocol: wl.Protocol, Route: s.route, Cluster: s.policy.Cluster, Host: s.call.Host(), Attempts: 1,
		UpstreamSentBytes: int64(s.sent), Start: s.begun, Sent: s.call.SentAt(), End: s.sh.w.Now(),
	}}
	switch {
	case resp != nil:
		e.Answered, e.Status, e.Code = e.End, resp.Status, resp.Code
		e.ResponseBytes = resp.HeaderSize + resp.BodySize
		e.UpstreamReceivedBytes = int64(e.ResponseBytes)
	case failed != nil:
		e.Replied, e.Status, e.Local = true, codecs.StatusError, codecs.LocalError{Type: failed.Type, Message: failed.Reason}
		e.Flags = flagOf[failed.Type]
	}
	wl.writeLogs(s.conn)
	wl.left--
}

// writeLogs writes the lines of the worker's entry, which tells of the message.
func (wl *workerListener) writeLogs(c *connection) {
	s := wl.sh
	e, w := &s.entry, c.located()
	e.RemoteAddress, e.DirectRemoteAddress, e.LocalAddress, e.ConnectionID = w.from, w.by, w.to, w.id
	e.TLS = c.d.TLS()
	e.Rand = [2]uint64{s.rand.Uint64(), s.rand.Uint64()}
	e.StartTime, e.Second = s.wall.at(e.Start, s.w.Now()), &s.second
	wl.AccessLogs.Write(e, wl.logs)
	e.Request, e.Response = nil, nil
	for _, b := range wl.logs {
		if b.Full() {
			wl.countLogs(b.Queue())
		}
	}
	if !wl.logsWait {
		wl.logsWait = true
		s.logging = append(s.logging, wl)
		if !s.logged.Running() {
			s.timers.Start(&s.logged, s.w.Now()+logTime)
		}
	}
}

// wall tells the time of day of moments on a worker's clock. It looks at the clock that
// somebody may set now and then: to do so for each line costs more than half a line.
type wall struct {
	zero time.Time     // when the worker's clock was 0
	read time.Duration // when that was found out, on that clock
}

// wallTime is how long a clock that was set may be seen as it was.
const wallTime = 50 * time.Millisecond

// at is when moment was, now that the worker's clock is at now.
func (w *wall) at(moment, now time.Duration) time.Time {
	if w.zero.IsZero() || now-w.read >= wallTime {
		w.zero, w.read = time.Now().Round(0).Add(-now), now // without a monotonic reading
	}
	return w.zero.Add(moment)
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
		wl.countLogs(b.Flush())
	}
}

func (wl *workerListener) countLogs(written, lost int64) {
	if written > 0 {
		wl.count(metrics.AccessLogWritten, written)
	}
	if lost > 0 {
		wl.count(metrics.AccessLogLost, lost)
	}
}
