package upstream

import "github.com/meltemi-mesh/meltemi/codecs"

// standIn puts another call into the place of c, so that those behind it still get
// their own answers. It keeps what the decoder may ask of the request, and the
// deadline.
func (cn *conn) standIn(c *Call) {
	p := cn.pool
	m := p.m
	m.timers.Stop(&c.deadline)
	if c.absent { // it was one
		return
	}
	c.probe.Free()
	if c.released { // its answer is waited for again
		c.released = false
		cn.inFlight++
		p.inFlight++
	}
	owed := cn.owed(c)
	owed.conn, owed.id = cn, c.id
	cn.calls.replace(c, owed)
	if p.byID() {
		p.ids.replace(c.id, owed)
	}
	cn.awaits(owed)
	c.conn = nil
	if c.line != nil {
		c.line.ended(cn)
	}
}

// owed returns a call that can stand in for c.
func (cn *conn) owed(c *Call) *Call {
	owed := &Call{pool: cn.pool, absent: true, sent: c.sent, due: c.due}
	owner := &absent{}
	if cn.answers != nil {
		owner.req = c.owner.Request().Outline()
	}
	owed.Init(owner)
	return owed
}

// awaits counts an owed call that is in the list.
func (cn *conn) awaits(owed *Call) {
	p := cn.pool
	if owed.due > p.m.now() {
		p.m.timers.Start(&owed.deadline, owed.due)
	}
	cn.owesUntil = max(cn.owesUntil, owed.due)
	cn.absent++
	p.absent++
}

// absent is the owner of a call that stands in for another.
type absent struct {
	Owner // none of its other methods is called
	req   *codecs.Metadata
}

func (a *absent) Request() *codecs.Metadata { return a.req }

func (*absent) Answered(*codecs.Metadata) {}

func (*absent) Failed(*Failure) {}

func (*absent) Sent() {}
