package accesslog

import (
	"fmt"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	otlpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	streamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meltemi-mesh/meltemi/filter/export"
	"github.com/meltemi-mesh/meltemi/filter/fields"
	proxyv1alpha "github.com/meltemi-mesh/meltemi/protos/aeraki/meta_protocol_proxy/v1alpha"
)

// defaultFormat is the line of loggers that do not say.
const defaultFormat = `[%START_TIME%] "%PROTOCOL% %REQ(:PATH)%" %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% ` +
	`%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %UPSTREAM_REQUEST_ATTEMPT_COUNT% "%DOWNSTREAM_REMOTE_ADDRESS%" ` +
	`"%UPSTREAM_HOST%" %UPSTREAM_CLUSTER% %ROUTE_NAME%` + "\n"

// The paths of the process's own outputs.
const (
	Stdout = "/dev/stdout"
	Stderr = "/dev/stderr"
)

// Logs are the access logs of a listener, frozen.
type Logs struct {
	// Files are the paths of the files that they are written to, each once, and Fields
	// the field that names each first.
	Files, Fields []string
	// Loggers are the collectors that records go to, each once.
	Loggers []export.Logger
	// Reads says that they want the properties of messages.
	Reads bool
	// Mirrors and Heartbeats say whether these have lines, too.
	Mirrors, Heartbeats bool

	logs []log
}

type log struct {
	when   condition // nil: always
	format format
	file   int // in Files, or behind them in Loggers
}

// Parse judges the access logs of a configuration, whose field is called access_log, with
// its options. The error tells all faults; see [fields.Each].
func Parse(all []*accesslogv3.AccessLog, o *proxyv1alpha.AccessLogOptions) (*Logs, error) {
	if len(all) == 0 {
		return nil, nil
	}
	c := &compiler{}
	ls := &Logs{Mirrors: o.GetLogMirrors(), Heartbeats: o.GetLogHeartbeats()}
	for i, a := range all {
		path := fmt.Sprintf("access_log[%d]", i)
		l := log{}
		if a.GetFilter() != nil {
			l.when = c.filter(a.GetFilter(), path+".filter")
		}
		var name string
		var to *export.Logger
		if l.format, name, to = c.logger(a, path); to != nil {
			l.file = -1 - ls.collector(to) // behind all files, when they are known
		} else {
			l.file = ls.file(name, path)
		}
		ls.Reads = ls.Reads || l.format.reads
		ls.logs = append(ls.logs, l)
	}
	for i := range ls.logs {
		if l := &ls.logs[i]; l.file < 0 {
			l.file = len(ls.Files) - 1 - l.file
		}
	}
	ls.Reads = ls.Reads || c.reads
	return ls, c.Err()
}

func (ls *Logs) collector(to *export.Logger) int {
	for i := range ls.Loggers {
		if ls.Loggers[i].Key() == to.Key() {
			return i
		}
	}
	ls.Loggers = append(ls.Loggers, *to)
	return len(ls.Loggers) - 1
}

func (ls *Logs) file(name, field string) int {
	for i, f := range ls.Files {
		if f == name {
			return i
		}
	}
	ls.Files, ls.Fields = append(ls.Files, name), append(ls.Fields, field)
	return len(ls.Files) - 1
}

// logger judges the logger itself, and returns the file that it writes to, or the collector.
func (c *compiler) logger(a *accesslogv3.AccessLog, path string) (format, string, *export.Logger) {
	path += ".typed_config"
	config := a.GetTypedConfig()
	if config == nil {
		c.Add(path, "required")
		return format{}, "", nil
	}
	switch name := config.MessageName(); name {
	case "envoy.extensions.access_loggers.file.v3.FileAccessLog":
		m := new(filev3.FileAccessLog)
		c.decode(config, m, path)
		if m.GetPath() == "" {
			c.Add(path+".path", "required")
		}
		return c.fileFormat(m, path), m.GetPath(), nil
	case "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog":
		m := new(streamv3.StdoutAccessLog)
		c.decode(config, m, path)
		return c.format(m.GetLogFormat(), path+".log_format"), Stdout, nil
	case "envoy.extensions.access_loggers.stream.v3.StderrAccessLog":
		m := new(streamv3.StderrAccessLog)
		c.decode(config, m, path)
		return c.format(m.GetLogFormat(), path+".log_format"), Stderr, nil
	case "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig":
		m := new(otlpv3.OpenTelemetryAccessLogConfig)
		c.decode(config, m, path)
		f, to := c.otlp(m, path)
		return f, "", &to
	default:
		c.Add(path+".type_url", "%s is not supported: want FileAccessLog, StdoutAccessLog, StderrAccessLog or OpenTelemetryAccessLogConfig of Envoy's", name)
		return format{}, "", nil
	}
}

func (c *compiler) decode(config *anypb.Any, m proto.Message, path string) {
	if err := config.UnmarshalTo(m); err != nil {
		c.Add(path, "%s", fields.CleanError(err))
	}
}

func (c *compiler) fileFormat(m *filev3.FileAccessLog, path string) format {
	switch f := m.GetAccessLogFormat().(type) {
	case *filev3.FileAccessLog_Format:
		if f.Format == "" {
			return c.text(defaultFormat, false, "")
		}
		return c.text(f.Format, false, path+".format")
	case *filev3.FileAccessLog_JsonFormat:
		return c.json(f.JsonFormat, false, path+".json_format")
	case *filev3.FileAccessLog_TypedJsonFormat:
		return c.json(f.TypedJsonFormat, false, path+".typed_json_format")
	default:
		return c.format(m.GetLogFormat(), path+".log_format")
	}
}

func (c *compiler) format(m *corev3.SubstitutionFormatString, path string) format {
	if m == nil {
		return c.text(defaultFormat, false, "")
	}
	c.Only(m, path, "text_format", "json_format", "text_format_source", "omit_empty_values", "content_type", "json_format_options")
	switch f := m.GetFormat().(type) {
	case *corev3.SubstitutionFormatString_TextFormat:
		return c.text(f.TextFormat, m.GetOmitEmptyValues(), path+".text_format")
	case *corev3.SubstitutionFormatString_TextFormatSource:
		path += ".text_format_source"
		c.Only(f.TextFormatSource, path, "inline_string", "inline_bytes")
		s := f.TextFormatSource.GetInlineString()
		if b := f.TextFormatSource.GetInlineBytes(); b != nil {
			s = string(b)
		}
		if s == "" {
			c.Add(path+".inline_string", "required")
		}
		return c.text(s, m.GetOmitEmptyValues(), path+".inline_string")
	case *corev3.SubstitutionFormatString_JsonFormat:
		return c.json(f.JsonFormat, m.GetOmitEmptyValues(), path+".json_format")
	default:
		c.Add(path, "required: text_format_source or json_format")
		return format{}
	}
}

func (c *compiler) text(s string, omitEmpty bool, path string) format {
	f, err := textFormat(s, omitEmpty)
	if err != nil {
		c.Add(path, "%v", err)
	}
	return f
}

func (c *compiler) json(s *structpb.Struct, omitEmpty bool, path string) format {
	return jsonFormat(s, omitEmpty, path, func(path string, err error) { c.Add(path, "%v", err) })
}

// Write appends the lines of e, of those logs that want it, to what goes to their files and
// collectors: to holds the buffers of Files and then of Loggers, in their order.
func (ls *Logs) Write(e *Entry, to []*Buffer) {
	e.spent = 0
	for i := range ls.logs {
		l := &ls.logs[i]
		if l.when == nil || l.when(e) {
			b := to[l.file]
			b.data = l.format.append(b.data, e)
			b.lines++
		}
	}
}
