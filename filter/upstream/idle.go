package upstream

import "time"

// idleList are exclusive connections without a call, in the order in which they
// became so: the first has been idle longest. Taken in turn, all hosts have theirs.
type idleList struct {
	first, last *conn
	n           int
}

func (l *idleList) push(cn *conn) {
	cn.idle, cn.idlePrev, cn.idleNext = l, l.last, nil
	if l.last == nil {
		l.first = cn
	} else {
		l.last.idleNext = cn
	}
	l.last = cn
	l.n++
}

func (l *idleList) remove(cn *conn) {
	if cn.idlePrev == nil {
		l.first = cn.idleNext
	} else {
		cn.idlePrev.idleNext = cn.idleNext
	}
	if cn.idleNext == nil {
		l.last = cn.idlePrev
	} else {
		cn.idleNext.idlePrev = cn.idlePrev
	}
	cn.idle, cn.idlePrev, cn.idleNext = nil, nil, nil
	l.n--
}

// rest makes an exclusive connection without a call ready for the next: first for
// the lines that wait for it, then for anybody.
func (cn *conn) rest() {
	p := cn.pool
	if p.opts.Shared || cn.inFlight > 0 || cn.spoilt || cn.state == closed || cn.rite != nil || cn.leased() || cn.ejected || cn.doubt.Running() {
		return
	}
	if cn.resume(); cn.inFlight == 0 && cn.state == ready && !cn.blocked && cn.idle == nil && !cn.leased() {
		if cn.leaving() || cn.unlisted() {
			p.parting.push(cn)
		} else {
			p.idle.push(cn)
			if p.byHost {
				cn.to.rests(cn)
			}
		}
	}
}

// doubts has an exclusive connection wait for whether its server closes it.
func (cn *conn) doubts() {
	cn.doubt.Fire = cn.trusts
	cn.pool.m.timers.Start(&cn.doubt, cn.pool.m.now()+doubtTime)
}

func (cn *conn) trusts() {
	cn.rest()
	cn.pool.kick()
}

// leavesUntil notes until when the connection's host is taken to leave, 0: it stays.
func (cn *conn) leavesUntil(t time.Duration) {
	cn.leavingUntil = t
	if cn.idle != nil {
		cn.unrest()
		cn.rest()
	}
}

// unrest takes an exclusive connection off those that are idle.
func (cn *conn) unrest() {
	if cn.idle != nil {
		cn.idle.remove(cn)
		if cn.idleAt > 0 {
			cn.to.works(cn)
		}
	}
}
