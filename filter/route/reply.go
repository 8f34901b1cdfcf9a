package route

import (
	"cmp"
	"fmt"
	"net/http"

	"github.com/meltemi-mesh/meltemi/codecs"
	routev1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/config/route/v1alpha"
)

// maxSuccess is the largest payload of a direct response, in bytes.
const maxSuccess = 64 << 10

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
// open is as in def, all of it if d is nil. The errors have path, that of d, before
// their fields.
func Reply(d *routev1alpha.DirectResponse, def codecs.LocalError, path string, cs []codecs.Codec) (codecs.LocalError, []*Error) {
	if d == nil {
		return def, nil
	}
	e, errs := reply(d, path, func(code int32) error { return codecs.CheckCode(cs, code) })
	if d.GetStatus() == routev1alpha.DirectResponse_UNSPECIFIED {
		e.Type = def.Type
		e.Code = cmp.Or(e.Code, def.Code)
	}
	if d.GetBody() == "" {
		e.Message = def.Message
	}
	if d.GetSuccess() != nil {
		errs = append(errs, &Error{Path: path + ".success", Reason: "must be a route's: the filter answers with an error"})
	}
	return e, errs
}

// TypeOfHTTP is the error that a status of HTTP stands for.
func TypeOfHTTP(status int) codecs.ErrorType {
	switch status {
	case http.StatusBadRequest:
		return codecs.BadRequest
	case http.StatusNotFound:
		return codecs.RouteNotFound
	case http.StatusRequestTimeout, http.StatusGatewayTimeout:
		return codecs.Timeout
	case http.StatusTooManyRequests:
		return codecs.OverLimit
	case http.StatusBadGateway:
		return codecs.BadResponse
	case http.StatusServiceUnavailable:
		return codecs.NoHealthyUpstream
	}
	if status >= 500 {
		return codecs.Unspecified
	}
	return codecs.Denied
}

// direct is what a route answers with. Which codec does so need not be known yet.
func (c *compiler) direct(d *routev1alpha.DirectResponse, path string) *codecs.LocalError {
	check := func(int32) error { return nil }
	if checker, ok := c.env.Mutator.(codecs.CodeChecker); ok {
		check = checker.CheckCode
	}
	e, errs := reply(d, path, check)
	c.errs = append(c.errs, errs...)
	return &e
}

// success is what a route answers with that does not answer with an error.
func (c *compiler) success(d *routev1alpha.DirectResponse, path string) *codecs.Payload {
	s, p := d.GetSuccess(), &codecs.Payload{}
	field := path + ".success"
	switch v := s.GetValue().(type) {
	case *routev1alpha.DirectResponse_Success_Payload:
		p.Bytes, field = v.Payload, field+".payload"
	case *routev1alpha.DirectResponse_Success_Text:
		p.Bytes, p.Text, field = []byte(v.Text), true, field+".text"
	}
	checker, known := c.env.Mutator.(interface{ CheckReply(p codecs.Payload) error })
	switch {
	case d.GetStatus() != routev1alpha.DirectResponse_UNSPECIFIED || d.GetBody() != "" || d.GetCode() != 0:
		c.refuse(path+".success", "does not go with status, body or code: those are of an error")
	case len(p.Bytes) > maxSuccess:
		c.refuse(field, "must have at most %d bytes, has %d", maxSuccess, len(p.Bytes))
	case known:
		if err := checker.CheckReply(*p); err != nil {
			c.refuse(field, "%v", err)
		}
	}
	return p
}

func reply(d *routev1alpha.DirectResponse, path string, check func(code int32) error) (e codecs.LocalError, errs []*Error) {
	refuse := func(field, format string, args ...any) {
		errs = append(errs, &Error{Path: path + "." + field, Reason: fmt.Sprintf(format, args...)})
	}
	t, known := statuses[d.GetStatus()]
	if !known {
		refuse("status", "unknown value %d", d.GetStatus())
	}
	if n := len(d.GetBody()); n > maxBody {
		refuse("body", "must have at most %d bytes, has %d", maxBody, n)
	}
	if err := check(d.GetCode()); err != nil {
		refuse("code", "%v", err)
	}
	return codecs.LocalError{Type: t, Message: cmp.Or(d.GetBody(), t.String()), Code: d.GetCode()}, errs
}
