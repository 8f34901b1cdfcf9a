package brpc

import "github.com/meltemi-mesh/meltemi/codecs"

// Error codes of brpc (its src/brpc/errno.proto) and of Linux, as its servers
// and clients use them.
const (
	eHostDown = 112

	eNoService    = 1001
	eRequest      = 1003
	eRPCTimedOut  = 1008
	eFailedSocket = 1009
	eOvercrowded  = 1011
	eEOF          = 1014
	eReject       = 1018
	lastOfClients = 1019

	eInternal     = 2001
	eResponse     = 2002
	eLogOff       = 2003
	eLimit        = 2004
	lastOfServers = 2007

	// 3000 is jprotobuf's for a body that cannot be decompressed, the others
	// are brpc's for RDMA.
	firstOfTransports = 3000
	lastOfTransports  = 3002
)

// CheckCode implements codecs.CodeChecker: any error code can be told. Services are
// free to use all that are not brpc's, negative ones too.
func (c *codec) CheckCode(int32) error { return nil }

// codeOf chooses the error code. C++ clients repeat calls that end with 112,
// 1009 or 2004, as they do when no proxy is between, and none of the others.
// None of these makes them give up a connection, as 2003 does, and of connections
// for one call each also 22, 101, 111 and 113.
func codeOf(e *codecs.LocalError) int32 {
	if e.Code != 0 {
		return e.Code
	}
	switch e.Type {
	case codecs.RouteNotFound, codecs.ClusterNotFound:
		return eNoService
	case codecs.NoHealthyUpstream:
		return eHostDown
	case codecs.ConnectFailure, codecs.UpstreamReset:
		return eFailedSocket
	case codecs.Timeout:
		return eRPCTimedOut
	case codecs.OverLimit:
		return eLimit
	case codecs.BadRequest:
		return eRequest
	case codecs.BadResponse:
		return eResponse
	case codecs.Denied:
		return eReject
	default:
		return eInternal
	}
}

// isFailure reports whether an error code says that the protocol, a server or
// the way to it has failed. Applications are free to use all others, and say so
// by them that a call has worked but its outcome is an error.
func isFailure(code int32) bool {
	switch {
	case code >= eNoService && code <= lastOfClients,
		code >= eInternal && code <= lastOfServers,
		code >= firstOfTransports && code <= lastOfTransports:
		return true
	}
	return isUnreachable(code)
}

// isUnreachable reports whether a code is Linux's for a host that cannot be reached.
func isUnreachable(code int32) bool {
	switch code {
	case 101, 104, 110, 111, eHostDown, 113: // ENETUNREACH, ECONNRESET, ETIMEDOUT, ECONNREFUSED, …, EHOSTUNREACH
		return true
	}
	return false
}

// failureOf says of what isFailure whether another attempt may help. A server answers
// with 2003, 2004 and 1011 before it looks at what is called (baidu_rpc_protocol.cpp).
// A service that has failed to reach another may answer with the code of that, so those
// say nothing of whether it has been executed itself.
func failureOf(code int32) codecs.FailureClass {
	switch code {
	case eLogOff:
		return codecs.Refused
	case eLimit, eOvercrowded:
		return codecs.Overloaded
	case eRPCTimedOut, eFailedSocket, eEOF, eInternal:
		return codecs.HostFailure
	}
	if isUnreachable(code) {
		return codecs.HostFailure
	}
	return codecs.NoFailure
}
