package export

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"golang.org/x/net/http/httpguts"

	"github.com/meltemi-mesh/meltemi/filter/fields"
	"github.com/meltemi-mesh/meltemi/filter/grpcclient"
)

// uploadTime bounds an upload where the configuration does not.
const uploadTime = 10 * time.Second

// service is a collector: one of gRPC, or of HTTP.
type service struct {
	grpc    grpcclient.Target // if url is nil
	url     *url.URL
	cluster string // of url; "": its host is dialled
	header  http.Header
	host    string // to be told instead of the url's, if not ""
	timeout time.Duration
}

// String is the collector for people.
func (s *service) String() string {
	switch {
	case s.url == nil:
		return s.grpc.String()
	case s.cluster != "":
		return "cluster " + s.cluster
	default:
		return s.url.Host
	}
}

// checker gathers faults of a configuration.
type checker struct{ fields.Faults }

func (c *checker) required(s, path string) string {
	if s == "" {
		c.Add(path, "required")
	}
	return s
}

// service judges the grpc_service or the http_service of a configuration at path.
func (c *checker) service(g *corev3.GrpcService, h *corev3.HttpService, path string) service {
	switch {
	case g != nil && h != nil:
		c.Add(path, "only one of grpc_service and http_service can be")
		return service{}
	case g != nil:
		return c.grpcService(g, path+".grpc_service")
	case h != nil:
		return c.httpService(h, path+".http_service")
	default:
		c.Add(path, "want grpc_service or http_service")
		return service{}
	}
}

func (c *checker) grpcService(g *corev3.GrpcService, path string) service {
	t, err := grpcclient.Parse(g, path)
	c.AddAll("", err)
	s := service{grpc: t, timeout: t.Timeout}
	if s.timeout == 0 {
		s.timeout = uploadTime
	}
	return s
}

func (c *checker) httpService(h *corev3.HttpService, path string) service {
	c.Only(h, path, "http_uri", "request_headers_to_add")
	s := c.uri(h.GetHttpUri(), path+".http_uri")
	s.header = http.Header{}
	for i, o := range h.GetRequestHeadersToAdd() {
		at := fmt.Sprintf("%s.request_headers_to_add[%d]", path, i)
		c.Only(o, at, "header", "append_action")
		c.Only(o.GetHeader(), at+".header", "key", "value")
		key, value := o.GetHeader().GetKey(), c.expanded(o.GetHeader().GetValue(), at+".header.value")
		if strings.EqualFold(key, "host") || !httpguts.ValidHeaderFieldName(key) {
			c.Add(at+".header.key", "cannot be set: %.60q", key)
		}
		if !httpguts.ValidHeaderFieldValue(value) {
			c.Add(at+".header.value", "has what no header can have")
		}
		switch o.GetAppendAction() {
		case corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:
			s.header.Add(key, value)
		case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
			s.header.Set(key, value)
		default:
			c.Add(at+".append_action", "%v is not supported", o.GetAppendAction())
		}
	}
	return s
}

func (c *checker) uri(u *corev3.HttpUri, path string) service {
	if u == nil {
		c.Add(path, "required")
		return service{}
	}
	s := service{cluster: u.GetCluster(), timeout: c.Duration(u.GetTimeout(), path+".timeout", 0, uploadTime)}
	if s.timeout == 0 {
		s.timeout = uploadTime
	}
	s.url = c.url(u.GetUri(), s.cluster, path+".uri")
	return s
}

// url is that of a collector, of which only the path need be there if there is a
// cluster, and whose scheme says nothing then, as TLS is the cluster's.
func (c *checker) url(text, cluster, path string) *url.URL {
	u, err := url.Parse(c.required(text, path))
	if err != nil || utf8(u.Host) != u.Host { // it is a metric's label, and %FF can be in it
		c.Add(path, "is no URL: %.100q", text)
		return &url.URL{}
	}
	if cluster != "" {
		u.Scheme = "http"
		if u.Host == "" {
			u.Host = cluster
		}
		if u.Path == "" {
			u.Path = "/"
		}
		return u
	}
	if text != "" && (u.Scheme != "http" || u.Host == "") {
		c.Add(path, "without a cluster, want http://HOST:PORT/PATH, is %.100q: TLS is a cluster's", text)
	}
	return u
}

// command is an operator of Envoy's within a header's value.
var command = regexp.MustCompile(`%(?:ENVIRONMENT\(([^()]+)\))?%|%`)

// expanded has what stands in the environment for %ENVIRONMENT(X)%, which is all there
// is to be told before there is a request.
func (c *checker) expanded(value, path string) string {
	return command.ReplaceAllStringFunc(value, func(s string) string {
		name, of := strings.CutPrefix(s, "%ENVIRONMENT(")
		switch {
		case of:
			return os.Getenv(strings.TrimSuffix(name, ")%"))
		case s == "%%":
			return "%"
		default:
			c.Add(path, "only %%ENVIRONMENT(X)%% is supported, and %%%% for a percent sign")
			return ""
		}
	})
}
