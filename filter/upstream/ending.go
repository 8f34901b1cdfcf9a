package upstream

import "github.com/meltemi-mesh/meltemi/codecs"

// drain lets the connection finish its calls and closes it then.
func (cn *conn) drain() {
	switch cn.state {
	case connecting, greeting:
		cn.leave()
		cn.up.Close(false)
	case ready:
		cn.state = draining
		cn.unrest()
		cn.pool.remove(cn)
		cn.pool.drainers = append(cn.pool.drainers, cn)
		cn.closeIfDrained()
	}
}

// retire ends a connection that has just lost its only call: the server still
// gets what was written.
func (cn *conn) retire() {
	cn.drain()
	cn.closeIfDrained() // if it was draining before
}

// closeIfDrained ends a drained connection, unless that is still too early: then
// the pool's upkeep does. Answers that nobody waits for are not waited for when
// they are too many: they count as requests in flight.
func (cn *conn) closeIfDrained() {
	p := cn.pool
	if cn.state != draining || cn.inFlight > cn.absent || len(cn.stalled) > 0 || cn.leased() {
		return
	}
	// Answers over one that is spoilt could not be told apart.
	owed := cn.absent > 0 && !cn.spoilt
	if owed && p.tooManyAbsent() || !owed && p.m.now() >= cn.keepUntil {
		cn.flush()
		cn.stop(&cn.paused, false) // a server that cannot write may not read either
		cn.stop(&cn.starved, false)
		cn.leave()
		cn.up.Close(true) // what was written last still arrives
		cn.failCalls(codecs.Unspecified, "")
		cn.lastTaken = p.m.now()
		cn.linger.Fire = cn.lingers
		p.lingering++
		p.m.timers.Start(&cn.linger, cn.lastTaken+lingerTime)
	}
}

// lingers looks after a connection on which all has been written: it ends when the
// server closes it, or nothing moves any more.
func (cn *conn) lingers() {
	p := cn.pool
	limit := lingerTime
	if (p.opts.Mode == Streams || cn.blocked) && p.lingering <= p.opts.MaxExclusive {
		limit = max(limit, p.opts.Linger)
	}
	if at := max(cn.lastData, cn.lastTaken) + limit; p.m.now() < at {
		p.m.timers.Start(&cn.linger, at)
		return
	}
	cn.cut()
}

// cut ends a connection that lingers.
func (cn *conn) cut() {
	cn.lingered()
	cn.up.Close(false)
}

// lingered is called when the connection lingers no more.
func (cn *conn) lingered() {
	if cn.linger.Fire != nil {
		cn.pool.m.timers.Stop(&cn.linger)
		cn.linger.Fire = nil
		cn.pool.lingering--
	}
}

// timedOut takes a call off whose deadline has passed.
func (cn *conn) timedOut(c *Call) {
	p := cn.pool
	sent := c.sent
	cn.missed(c)
	cn.took(c, true)
	switch {
	case p.byID() && (p.opts.Shared || c.released):
		cn.giveUp(c)
		p.freed(cn)
	case p.opts.Mode == Leased: // what its client says next may depend on the answer
		cn.spoil(c)
		cn.close(codecs.UpstreamReset, "upstream connection closed: a request before has timed out")
	case p.byID() || cn.calls.n == 1:
		cn.spoil(c)
		cn.close(codecs.Unspecified, "")
	default:
		cn.standIn(c)
		cn.drain()
	}
	if cn.state == ready && cn.lastData < sent {
		// Silent since before the call: it may be dead without a word.
		cn.drain()
	}
	p.kick()
}

// cancel ends a call that nobody waits for and whose answer is still owed.
func (cn *conn) cancel(c *Call) {
	p := cn.pool
	cn.abandoned(c)
	cn.took(c, true) // at least: where others are asked beside it, a slow host may never be waited for
	switch {
	case p.byID() && (p.opts.Shared || c.released):
		if p.ids.scarce() { // its id must not come again before the answer
			cn.standIn(c)
		} else {
			cn.giveUp(c)
		}
		p.freed(cn)
	case p.opts.Shared:
		// Other clients lose nothing by it. Should the server hang at it, its
		// deadline tells.
		if cn.standIn(c); p.tooManyAbsent() {
			cn.retire()
		}
	default:
		cn.spoil(c)
		cn.retire() // the server still gets what was written
	}
	p.kick()
}

// giveUp ends a call that has an id of its own. Its answer will find nobody.
func (cn *conn) giveUp(c *Call) {
	cn.late++
	cn.keepUntil = cn.pool.m.now() + onewayTime
	c.end()
}

// spoil ends a call that nothing stands in for. The answer that it owes would be
// taken for another's.
func (cn *conn) spoil(c *Call) {
	cn.drain()
	cn.spoilt = true
	c.end()
	cn.resume()
}
