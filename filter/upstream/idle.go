package upstream

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
