package codecs

// FailureClass says what an answer that tells of a failure means for its request: by
// it retries are decided, and whether the host is at fault.
type FailureClass uint8

const (
	// NoFailure: a success, an exception of the application, a mistake of the
	// client's. A repeat would say the same.
	NoFailure FailureClass = iota
	// HostFailure: the server, or something on the way to it, has failed. The request
	// may have been executed. It is the host's fault.
	HostFailure
	// Refused: the server has not executed the request, whatever it asks.
	Refused
	// Overloaded: as Refused, as the server has too much to do. That is no fault of
	// the host's.
	Overloaded
)

var failureNames = [...]string{"no failure", "host failure", "refused", "overloaded"}

func (f FailureClass) String() string {
	if int(f) < len(failureNames) {
		return failureNames[f]
	}
	return "unknown"
}
