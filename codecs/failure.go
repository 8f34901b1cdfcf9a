package codecs

// FailureClass is what an answer that tells of an error says of its request and of
// the host: whether another attempt is safe, and whose fault it is.
type FailureClass uint8

const (
	// NoFailure: a success, an exception of the application, a client's mistake, or
	// anything that another host would say too. It is never retried, and nobody's
	// fault.
	NoFailure FailureClass = iota
	// HostFailure: the host has failed, or what is behind it, and the request may
	// have been executed. It is retried only where that may be twice, and is held
	// against the host.
	HostFailure
	// Refused: the host has surely not executed the request. Another may be tried,
	// whatever the method; it is held against this one.
	Refused
	// Overloaded: as Refused, by a host that is sound and has too much to do. It is
	// not held against it.
	Overloaded
)

var failureClassNames = [...]string{"no failure", "host failure", "refused", "overloaded"}

func (f FailureClass) String() string {
	if int(f) < len(failureClassNames) {
		return failureClassNames[f]
	}
	return "unknown"
}

// Unexecuted reports whether the request has surely not been executed.
func (f FailureClass) Unexecuted() bool { return f == Refused || f == Overloaded }
