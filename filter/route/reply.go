package route

import (
	"cmp"

	"github.com/meltemi-mesh/meltemi/codecs"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// maxBody is the longest text of a direct response, in bytes.
const maxBody = 4096

var statuses = map[routev1alpha.DirectResponse_Status]codecs.ErrorType{
	routev1alpha.DirectResponse_UNSPECIFIED:         codecs.Unspecified,
	routev1alpha.DirectResponse_ROUTE_NOT_FOUND:     codecs.RouteNotFound,
	routev1alpha.DirectResponse_CLUSTER_NOT_FOUND:   codecs.ClusterNotFound,
	routev1alpha.DirectResponse_NO_HEALTHY_UPSTREAM: codecs.NoHealthyUpstream,
	routev1alpha.DirectResponse_BAD_RESPONSE:        codecs.BadResponse,
	routev1alpha.DirectResponse_OVER_LIMIT:          codecs.OverLimit,
	routev1alpha.DirectResponse_BAD_REQUEST:         codecs.BadRequest,
	routev1alpha.DirectResponse_TIMEOUT:             codecs.Timeout,
	routev1alpha.DirectResponse_CONNECT_FAILURE:     codecs.ConnectFailure,
	routev1alpha.DirectResponse_UPSTREAM_RESET:      codecs.UpstreamReset,
	routev1alpha.DirectResponse_DENIED:              codecs.Denied,
}

// Reply makes the error of d, a field of a filter's configuration, with which the
// filter answers by Message.ReplyWith in a listener with these codecs. What d leaves
// open is as in def, all of it if d is nil. The error has path, that of d, before its
// fields.
func Reply(d *routev1alpha.DirectResponse, def codecs.LocalError, path string, cs []codecs.Codec) (codecs.LocalError, error) {
	if d == nil {
		return def, nil
	}
	e, err := reply(d, func(code int32) error { return codecs.CheckCode(cs, code) })
	if d.GetStatus() == routev1alpha.DirectResponse_UNSPECIFIED {
		e.Type = def.Type
		e.Code = cmp.Or(e.Code, def.Code)
	}
	if d.GetBody() == "" {
		e.Message = def.Message
	}
	var faults fields.Faults
	faults.AddAll(path, err)
	return e, faults.Err()
}

// direct is what a route answers with. Which codec does so need not be known yet.
func (c *compiler) direct(d *routev1alpha.DirectResponse, path string) *codecs.LocalError {
	check := func(int32) error { return nil }
	if checker, ok := c.env.Mutator.(codecs.CodeChecker); ok {
		check = checker.CheckCode
	}
	e, err := reply(d, check)
	fields.Each(err, func(f *Error) { c.refuse(fields.Join(path, f.Path), "%s", f.Reason) })
	return &e
}

func reply(d *routev1alpha.DirectResponse, check func(code int32) error) (codecs.LocalError, error) {
	var faults fields.Faults
	t, known := statuses[d.GetStatus()]
	if !known {
		faults.Add("status", "unknown value %d", d.GetStatus())
	}
	if n := len(d.GetBody()); n > maxBody {
		faults.Add("body", "must have at most %d bytes, has %d", maxBody, n)
	}
	if err := check(d.GetCode()); err != nil {
		faults.Add("code", "%v", err)
	}
	return codecs.LocalError{Type: t, Message: cmp.Or(d.GetBody(), t.String()), Code: d.GetCode()}, faults.Err()
}
