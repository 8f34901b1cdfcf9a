package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/meltemi-mesh/meltemi/filter/grpcclient"
)

// maxAnswer is what is read of a collector's answer by HTTP, and of its headers, in bytes.
const maxAnswer = 64 << 10

// client uploads to one collector. It is not used concurrently.
type client struct {
	service
	method string // of gRPC, by its full name
	dial   grpcclient.Dial
	pool   *grpcclient.Pool

	conn *grpcclient.Conn // nil: none is open
	http *http.Client
}

// the methods of OTLP.
const (
	exportTraces  = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
	exportLogs    = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
	exportMetrics = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
)

// otlp sends a request of OTLP. An error that is no *failure tells something of what was
// taken all the same.
func (c *client) otlp(ctx context.Context, request []byte) (refused int, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var answer []byte
	if c.url == nil {
		answer, err = c.call(ctx, request)
	} else {
		answer, err = c.post(ctx, "application/x-protobuf", request)
	}
	if err != nil {
		return 0, err
	}
	return partialSuccess(answer)
}

// call sends a request by gRPC.
func (c *client) call(ctx context.Context, request []byte) (answer []byte, err error) {
	if c.conn == nil {
		if c.conn, err = c.pool.Get(&c.grpc, c.dial); err != nil {
			return nil, &failure{err: err}
		}
	}
	if err := c.conn.Invoke(c.grpc.Context(ctx), c.method, request, &answer, grpc.ForceCodec(raw{})); err != nil {
		s := status.Convert(err)
		if s.Code() == codes.DeadlineExceeded { // the way there may be gone without a word
			c.conn.Reset()
		}
		return nil, grpcFailure(s)
	}
	return answer, nil
}

// raw is what is encoded already.
type raw struct{}

func (raw) Name() string                  { return "proto" }
func (raw) Marshal(v any) ([]byte, error) { return v.([]byte), nil }

func (raw) Unmarshal(b []byte, v any) error {
	*v.(*[]byte) = bytes.Clone(b)
	return nil
}

// grpcFailure judges a status as OTLP says.
func grpcFailure(s *status.Status) *failure {
	f := &failure{err: fmt.Errorf("%v: %s", s.Code(), s.Message())}
	retry := false
	for _, d := range s.Details() {
		if i, is := d.(*errdetails.RetryInfo); is {
			retry, f.after = true, i.GetRetryDelay().AsDuration()
		}
	}
	switch s.Code() {
	case codes.Canceled, codes.DeadlineExceeded, codes.Aborted, codes.OutOfRange, codes.Unavailable, codes.DataLoss:
		f.again = true
	case codes.ResourceExhausted:
		f.again = retry
	}
	return f
}

// post sends a request by HTTP.
func (c *client) post(ctx context.Context, contentType string, body []byte) ([]byte, error) {
	if c.http == nil {
		c.http = c.newHTTP()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url.String(), bytes.NewReader(body))
	if err != nil {
		return nil, &failure{err: err}
	}
	req.Header = c.header.Clone()
	req.Header.Set("Content-Type", contentType)
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", scopeName)
	}
	req.Host = c.host
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, &failure{err: err, again: true}
	}
	defer resp.Body.Close()
	answer, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer)) // cut off it says something, too
	if resp.StatusCode/100 != 2 {
		return nil, httpFailure(resp, answer)
	}
	return answer, nil
}

// httpFailure judges an answer as OTLP says.
func httpFailure(resp *http.Response, answer []byte) *failure {
	f := &failure{err: errors.New("HTTP status " + resp.Status)}
	if text := resp.Header.Get("Content-Type"); strings.HasPrefix(text, "text/") && len(answer) > 0 {
		f.err = fmt.Errorf("%w: %s", f.err, answer)
	}
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		f.again = true
		if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
			f.after = time.Duration(min(s, 3600)) * time.Second
		}
	}
	return f
}

func (c *client) newHTTP() *http.Client {
	t := &http.Transport{
		DisableCompression: true, MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: maxAnswer,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if c.cluster != "" {
				return c.dial(ctx, c.cluster)
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// close lets go of connections until the next upload.
func (c *client) close() {
	if c.conn != nil {
		c.conn.Release()
		c.conn = nil
	}
	if c.http != nil {
		c.http.CloseIdleConnections()
		c.http = nil
	}
}

// partialSuccess reads an answer of OTLP, which has the same fields for all signals. One
// that cannot be read is that of a collector that has taken all.
func partialSuccess(answer []byte) (refused int, err error) {
	message := ""
	for partial := range fieldsOf(answer, 1) {
		for n := range fieldsOf(partial.bytes, 1) {
			refused = int(min(max(int64(n.number), 0), math.MaxInt32))
		}
		for s := range fieldsOf(partial.bytes, 2) {
			message = string(s.bytes)
		}
	}
	switch {
	case refused > 0:
		err = fmt.Errorf("%d refused: %s", refused, message)
	case message != "":
		err = errors.New(message)
	}
	return refused, err
}

// field is one of protobuf's.
type field struct {
	bytes  []byte
	number uint64
}

// fieldsOf yields the fields of a message that have a number.
func fieldsOf(b []byte, number protowire.Number) func(yield func(field) bool) {
	return func(yield func(field) bool) {
		for len(b) > 0 {
			num, kind, n := protowire.ConsumeTag(b)
			if n < 0 {
				return
			}
			b = b[n:]
			size := protowire.ConsumeFieldValue(num, kind, b)
			if size < 0 {
				return
			}
			f := field{}
			switch kind {
			case protowire.BytesType:
				f.bytes, _ = protowire.ConsumeBytes(b)
			case protowire.VarintType:
				f.number, _ = protowire.ConsumeVarint(b)
			}
			b = b[size:]
			if num == number && !yield(f) {
				return
			}
		}
	}
}
